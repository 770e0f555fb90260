"""Case by case: how good segmentations of held-out scans are, beside what else one could have used."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.manifest import Case, Manifest, load_image, load_label
from meddiff.data.store import BACKGROUND, numbered
from meddiff.data.transforms import placing, to_meta
from meddiff.engines.card import Card
from meddiff.engines.run import Run
from meddiff.engines.segment import Segmented, segment
from meddiff.engines.volumes import Seen
from meddiff.errors import ManifestError, RunError
from meddiff.imaging.volume import Volume
from meddiff.metrics.calibration import (
    dice_of_samples,
    energy_distance,
    error_auroc,
    expected_calibration_error,
)
from meddiff.metrics.overlap import dice_per_label
from meddiff.metrics.surface import surface_per_label

Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One way to get a result: a trained model with its settings."""

    name: str
    model: nn.Module
    config: Config
    card: Card

    def with_sample(self, name: str, **settings: Any) -> "Method":
        """The same model, sampled otherwise."""
        tree = self.config.model_dump(mode="json")
        tree["sample"] |= settings
        return replace(self, name=name, config=parse_config(tree, name))


def method(name: str, run: Run, device: torch.device) -> Method:
    """The model of a run."""
    model, card = run.load_model(device)
    return Method(name, model, run.config(), card)


def held_out(manifest: Manifest, split: str) -> tuple[Case, ...]:
    """The cases of a split; ManifestError where it has none."""
    cases = manifest.split(split)
    if not cases:
        raise ManifestError(f"The manifest has no case in the split {split}. Choose another with --split.")
    return cases


def cases_from(path: Path, runs: Sequence[Run]) -> Manifest:
    """Another manifest to judge runs on; ManifestError where one of them was trained on a patient or an image of it."""
    manifest = Manifest.read(path)
    for run in runs:
        trained = run.manifest().split("train")
        patients = {case.patient for case in trained}
        images = {source.sha256 for case in trained for source in case.image}
        seen = [c.case for c in manifest.cases if c.patient in patients or any(s.sha256 in images for s in c.image)]
        if seen:
            raise ManifestError(
                f"{path}: {run.folder} was trained on {len(seen)} of its {len(manifest.cases)} cases, {seen[0]} the first. "
                "Give scans that it has not seen; where two places number their patients alike, scan these with another --key."
            )
    return manifest


def segmented(
    methods: Sequence[Method],
    manifest: Manifest,
    cases: Iterable[Case],
    seed: int,
    keep: Callable[[Case, Volume, Volume, Segmented], None] | None = None,  # told the first method's result
) -> Iterator[tuple[str, Row]]:
    """(method, row) for every case and method: Dice, HD95 and ASSD on the scan's grid, calibration inside the body.

    RunError where a method learned other labels than the first.
    """
    for other in methods[1:]:
        if other.card.labels != methods[0].card.labels:
            raise RunError(
                f"{other.name}: learned {other.card.labels}, the run {methods[0].card.labels}; compare equals."
            )
    labels = methods[0].card.labels
    for case in cases:
        volume = load_image(manifest, case, methods[0].config.data.modality)
        names = tuple(labels)
        channels = numbered(load_label(manifest, case), case, names)
        reference = channels.array.astype(np.int64)
        for number, one in enumerate(methods):
            result, maps = _with_maps(one, volume, case.case, seed)
            if keep and number == 0:
                keep(case, volume, Volume(reference, volume.geometry, "SEG", "label"), result)
            yield (
                one.name,
                {"case": case.case, "patient": case.patient, **_label_metrics(result, maps, channels, one, volume)},
            )


def _with_maps(one: Method, volume: Volume, name: str, seed: int) -> tuple[Segmented, list[np.ndarray]]:
    """A result, and the label map of each of its samples on the model's grid."""
    maps: list[np.ndarray] = []

    def keep(posterior: Tensor) -> None:
        maps.append(posterior.argmax(0).cpu().numpy().astype(np.uint8))

    return segment(one.model, one.config, one.card, volume, name, seed, on_sample=keep), maps


def _label_metrics(
    result: Segmented, maps: Sequence[np.ndarray], channels: Volume, one: Method, volume: Volume
) -> dict[str, float]:
    names = {name: k for k, name in enumerate(result.names, 1)}
    predicted, reference = result.probability.argmax(0), channels.array.astype(np.int64)
    overlap = dice_per_label(predicted, reference, names)
    seen = Seen(volume, one.config, one.card)  # its own scale: percentiles differ from scan to scan
    body = volume.array * seen.scale + seen.offset > BACKGROUND
    body |= (reference > 0) | (predicted > 0)
    there = placing(one.config.data, label=True)({"image": to_meta(channels)})["image"].numpy()[0].astype(np.int64)
    return {
        "dice": float(np.mean(list(overlap.values()))),
        **overlap,
        **surface_per_label(predicted, reference, names, volume.geometry.spacing_mm),
        "calibration_error": expected_calibration_error(result.probability, reference, body),
        "error_auroc": error_auroc(result.entropy, predicted != reference, body),
        "energy_distance": energy_distance(maps, [there], names),
        **dice_of_samples(maps, there, names),
    }
