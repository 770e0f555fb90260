"""The audit of one run and one synthetic set, from folders to a folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddiff.baselines.gan import GAN
from meddiff.baselines.vae import VAE
from meddiff.config import Config
from meddiff.data.transforms import AXES
from meddiff.diffusion.compose import Latent
from meddiff.engines.card import Card, build_task, versions
from meddiff.engines.fit import prepare
from meddiff.engines.run import Run
from meddiff.errors import PrivacyError, RunError
from meddiff.privacy.audit.membership import BATCH, attack_scores
from meddiff.privacy.audit.protocol import Build, Stage, audit
from meddiff.privacy.audit.sets import Real, open_set, real_images, synthetic_images
from meddiff.report.audit import write_audit
from meddiff.tasks.synthesis import Synthesis

HELD_OUT = ("val", "test")  # no weight was learnt from either


def audit_run(
    run: Run,
    folder: Path,  # of the synthetic set
    output: Path,
    device: torch.device,
    stage: Stage = lambda title, total: lambda: None,
    detector: Build | None = None,  # another one than the protocol's
) -> dict[str, Any]:
    """Audit a set that the run's model made, write audit.json and audit.html, and return what audit.json holds.

    RunError and PrivacyError, before anything is computed, for a run of another task, a set of another model, limits that were
    moved after the training, and sets that are too small.
    """
    config, manifest = run.config(), run.manifest()
    if config.task != "synthesis":
        raise RunError(
            f"{run.folder}: was trained for {config.task}; what is released, and audited, are samples of synthesis."
        )
    model, card = run.load_model(device)
    if manifest.digest != card.manifest:
        raise RunError(
            f"{run.manifest_path}: is not the manifest that the model was trained from. Copy the run folder again; an audit has to "
            "know every training patient."
        )
    fixed = _limits_fixed(run, config, card)
    samples = open_set(folder)
    synthetic = synthetic_images(samples, card.weights, card.space, config.data.size)
    held_out_splits = [split for split in HELD_OUT if manifest.split(split)]
    if not held_out_splits:
        raise PrivacyError(
            f"{run.folder}: no patient was held out, so that nothing says what chance looks like. Scan with --split, train again."
        )
    training = real_images([prepare(config, manifest, "train")])
    held_out = real_images([prepare(config, manifest, split) for split in held_out_splits])
    task = build_task(config, card.known)
    assert isinstance(task, Synthesis)

    @torch.no_grad()
    def attempt(real: Real, step: Callable[[], None]) -> dict[str, Tensor]:
        x0, cond = task.x0(real.batch), task.condition(real.batch)  # who attacks knows what there is to know
        if isinstance(model, VAE | GAN):
            told = [model.memory(part.to(device)) for part in x0.split(BATCH)]
            return {name: torch.cat([t[name].cpu() for t in told]) for name in told[0]}
        if isinstance(model, Latent):
            x0 = torch.cat([model.encode(part.to(device))[0].cpu() for part in x0.split(1)])
        return attack_scores(model, x0, cond, card.sigma_data, config.audit.seed, device, step)

    found = audit(
        training,
        held_out,
        synthetic,
        config.audit,
        attempt,
        slice_axis=AXES[config.data.axis],
        detector=detector,
        stage=stage,
    )
    names = [case.case for case in samples.cases]
    record = {
        "verdict": found.verdict,
        "reasons": found.reasons,
        **found.record,
        "pairs": [
            {
                "synthetic": names[pair.synthetic],
                "training": training.names[pair.training],
                "suspicion": pair.suspicion,
                "copy": pair.copy,
            }
            for pair in found.pairs
        ],
        "limits": config.audit.model_dump(mode="json"),
        "limits_fixed": fixed,
        "weights": card.weights,
        "model": card.model_dump(mode="json"),
        "metrics": _metrics(run, card),
        "config": without_paths(config.model_dump()),
        "hashes": {
            "config": hashlib.sha256(run.config_path.read_bytes()).hexdigest(),
            "training_manifest": manifest.digest,
            "synthetic_manifest": samples.digest,
            "synthetic": synthetic.files,
        },
        "versions": versions(),
    }
    write_audit(output, record, [(synthetic.images[p.synthetic], training.images[p.training]) for p in found.pairs])
    return record


def without_paths(tree: Any) -> Any:
    """Settings without paths, as JSON can hold them: this part goes into the model card, and paths may name people."""
    if isinstance(tree, dict):
        return {name: without_paths(value) for name, value in tree.items() if not isinstance(value, Path)}
    return [without_paths(value) for value in tree] if isinstance(tree, tuple | list) else tree


def _limits_fixed(run: Run, config: Config, card: Card) -> str:
    """Whether the limits are those that the model was trained with; PrivacyError where they were moved."""
    if not card.limits:
        return "not recorded"
    if card.limits != config.audit.digest:
        raise PrivacyError(
            f"{run.config_path}: the section audit is not the one that the model was trained with. Limits are fixed before a run; "
            "restore the section, or train again with the new one."
        )
    return "yes"


def _metrics(run: Run, card: Card) -> dict[str, Any] | None:
    """What `meddiff evaluate RUN -o RUN/evaluation` measured of these very weights."""
    path = run.folder / "evaluation" / "metrics.json"
    if not path.is_file():
        return None
    measured = json.loads(path.read_text(encoding="utf-8"))
    return measured if measured.get("weights") == card.weights else None
