"""Train on synthetic images, test on real ones: what a synthetic set is worth to somebody who has nothing else.

The same direct segmentation is trained on real cases, on synthetic ones, and on both, and judged on the same held-out real
scans (Esteban et al. 2017 call it TSTR).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from meddiff.config import Config
from meddiff.data.manifest import Manifest
from meddiff.data.store import label_names
from meddiff.engines.evaluate_cases import Row, held_out, method, segmented
from meddiff.engines.fit import Session, fit
from meddiff.engines.run import Run
from meddiff.errors import ConfigError, ManifestError

ARMS = ("real", "synthetic", "real + synthetic")


def arms(real: Manifest, synthetic: Manifest, config: Config) -> dict[str, Manifest]:
    """A manifest for each of `ARMS`: they differ in what is trained on, val and test are the real ones in all.

    Every synthetic case is trained on, whatever its split. ManifestError where the sets name their labels otherwise.
    """
    names = label_names(real, config.data)
    label_names(synthetic, config.data.model_copy(update={"labels": names}))
    numbers = [{name: m.cases[0].labels[name] for name in names} for m in (real, synthetic)]
    if numbers[0] != numbers[1]:
        raise ManifestError(
            f"{synthetic.folder}: numbers its labels {numbers[1]}, the real cases {numbers[0]}. Write one as the other."
        )
    own = real.placed()
    kept = tuple(case for case in own if case.split != "train")
    training = tuple(case for case in own if case.split == "train")
    drawn = tuple(case.model_copy(update={"split": "train"}) for case in synthetic.placed())
    found = {
        name: Manifest((*cases, *kept), real.folder)
        for name, cases in zip(ARMS, (training, drawn, (*training, *drawn)), strict=True)
    }
    for manifest in found.values():
        manifest.check()
    return found


def train_arms(
    config: Config,
    manifests: dict[str, Manifest],
    folder: Path,
    attach: Callable[[str], Sequence[Callable[[Session], None]]],  # handlers for the run of each arm
) -> dict[str, Run]:
    """A run for each arm in a folder of its own; ConfigError unless the config is of a direct segmentation."""
    if config.task != "segmentation" or config.diffusion.process != "direct":
        raise ConfigError(
            f"Sets are tried on a direct segmentation; this config is of {config.task} with diffusion.process = "
            f"{config.diffusion.process}. Give a config of segmentation, and --set diffusion.process=direct."
        )
    folder.mkdir(parents=True, exist_ok=True)
    runs = {}
    for name, manifest in manifests.items():
        stem = name.replace(" + ", "_and_")
        path = folder / f"{stem}.jsonl"
        manifest.write(path)
        data = config.data.model_copy(update={"manifest": path})
        runs[name] = fit(config.model_copy(update={"data": data}), folder / stem, attach=attach(name))
    return runs


def judged(
    runs: dict[str, Run], real: Manifest, split: str, device: torch.device, seed: int = 0
) -> Iterator[tuple[str, Row]]:
    """(arm, row) for every held-out real case: what `evaluate` measures of a segmentation."""
    methods = [method(name, run, device) for name, run in runs.items()]
    yield from segmented(methods, real, held_out(real, split), seed)
