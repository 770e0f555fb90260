"""What a run goes on from: only what was begun with the same settings and the same cases."""

import hashlib
import json
import logging
from typing import Any

from meddiff.config import Config
from meddiff.engines.checkpoint import load_checkpoint, refuse_other
from meddiff.engines.predict import teacher_grid
from meddiff.engines.run import Run

log = logging.getLogger(__name__)


def resumed(run: Run, identity: dict[str, str], others: str, force: bool) -> tuple[int, dict[str, Any] | None]:
    """Step and state to go on from; step 0 without a state where the run was stopped before its first checkpoint."""
    if any(run.checkpoints.glob("step_*.pt")):
        return load_checkpoint(run.checkpoints, identity, force=force)
    if not force:
        own = {"config": digest(run.config(), others), "manifest": run.manifest().digest}
        refuse_other(str(run.config_path), own, identity)
    log.warning("%s: was stopped before its first checkpoint; it starts again.", run.folder)
    return 0, None


def digest(config: Config, others: str = "") -> str:
    """Of what the weights depend on: not of where files lie, nor of how the model is used afterwards.

    `others` is the SHA-256 of the weights of the run that `diffusion.latent` or `train.distil` names.
    """
    elsewhere = {
        "sample": True,
        "evaluate": True,
        "data": {"manifest", "cache", "workers", "unreadable_limit"},
        "diffusion": {"latent"},
        "train": {
            "device": True,
            "checkpoint_every": True,
            "validate_every": True,
            "preview_every": True,
            "keep_checkpoints": True,
            "nonfinite_limit": True,
            "parallel": True,
            "compile": True,
            "channels_last": True,
            "deterministic": True,
            "ema_device": True,
            "distil": {"teacher"},
        },
    }
    tree = config.model_dump(mode="json", exclude=elsewhere)  # type: ignore[arg-type]
    if config.train.distil is not None:  # the levels that it learns are those it samples on
        tree["train"]["distil"]["sigmas"] = teacher_grid(config).tolist()
    return hashlib.sha256((json.dumps(tree, sort_keys=True) + others).encode()).hexdigest()
