"""A class-conditional run of synthesis as a classifier of held-out images, calibrated on the split val."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import images_of
from meddiff.data.loader import Images
from meddiff.data.manifest import Manifest
from meddiff.diffusion.noise import draw
from meddiff.engines.card import Card, build_task
from meddiff.engines.predict import bounded, check_task, check_voxels
from meddiff.engines.volumes import in_batches
from meddiff.errors import ManifestError, RunError
from meddiff.metrics.diagnosis import Calibration, calibrated, diagnosis_metrics
from meddiff.seeds import derive, generator
from meddiff.tasks.diagnosis import evidence, levels
from meddiff.tasks.synthesis import Synthesis


@dataclass(frozen=True)
class Scores:
    """What a run says of images, or of cases where the class is the whole case's."""

    names: tuple[str, ...]  # of the case, and the slice behind it where the class is the image's
    patients: tuple[str, ...]
    truth: Tensor  # (n,)
    evidence: Tensor  # (n, classes)

    def rows(self, probability: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
        """A table: case, patient, whether it is of each class, and the probability of each."""
        rows = []
        for name, patient, truth, p in zip(self.names, self.patients, self.truth.tolist(), probability, strict=True):
            row: dict[str, Any] = {"case": name, "patient": patient}
            for c, of in enumerate(classes):
                row |= {f"is/{of}": float(truth == c), f"probability/{of}": float(p[c])}
            rows.append(row)
        return rows


def diagnose(
    model: nn.Module,
    card: Card,
    config: Config,
    manifest: Manifest,
    split: str,
    seed: int,
    limit: int | None = None,  # cases of each split
    on_image: Callable[[int], None] | None = None,  # told the images done
) -> tuple[Scores, Tensor, Calibration, dict[str, dict[str, float]]]:
    """Scores of a split, their calibrated probabilities (n, classes), the calibration, and what they are worth.

    RunError where the run is not one of class-conditional images alone; ManifestError where a split has no case.
    """
    check_task(config)
    check_voxels(config)
    if not card.classes:
        raise RunError("--diagnosis needs a run with classes; train one with condition.classes.")
    if config.data.paired:
        raise RunError(
            "--diagnosis: this run draws label maps too, which a new scan has not; train one of images alone."
        )
    held, tested = (_score(model, card, config, manifest, name, seed, limit, on_image) for name in ("val", split))
    calibration = calibrated(held.evidence, held.truth)
    probability = calibration(tested.evidence)
    metrics = diagnosis_metrics(probability, tested.truth, tested.patients, card.classes)
    even = diagnosis_metrics(tested.evidence.softmax(1), tested.truth, tested.patients, card.classes)
    metrics["calibration_error_uncalibrated"] = even["calibration_error"]
    return tested, probability, calibration, metrics


def _score(
    model: nn.Module,
    card: Card,
    config: Config,
    manifest: Manifest,
    split: str,
    seed: int,
    limit: int | None,
    on_image: Callable[[int], None] | None,
) -> Scores:
    cases = manifest.split(split)[:limit]
    if not cases:
        raise ManifestError(
            f"The manifest has no case in the split {split}, which diagnosis needs. Split the data again."
        )
    images = images_of(config, card.known, manifest, cases)
    found, truth = _evidence(model, card, config, images, seed, on_image)
    by_case = [list(group) for _, group in groupby(range(len(images)), key=lambda i: images.items[i].case)]
    if config.condition.of_label:
        by_case = [[i] for group in by_case for i in group]
    first = [images.items[group[0]] for group in by_case]
    of = [cases[item.case] for item in first]
    whole = not config.condition.of_label
    return Scores(
        tuple(case.case if whole else f"{case.case}/{item.slice}" for case, item in zip(of, first, strict=True)),
        tuple(case.patient for case in of),
        torch.stack([truth[group[0]] for group in by_case]),
        torch.stack([found[group].mean(0) for group in by_case]),
    )


def _evidence(
    model: nn.Module, card: Card, config: Config, images: Images, seed: int, on_image: Callable[[int], None] | None
) -> tuple[Tensor, Tensor]:
    """The evidence (n, classes) of every image, and its class (n,)."""
    task, device, settings = build_task(config, card.known), next(model.parameters()).device, config.evaluate
    assert isinstance(task, Synthesis)
    sigmas = levels(settings.draws, *settings.draw_sigmas)
    denoise = bounded(model, config, device, None)
    found, truth = [], []
    for part in in_batches(len(images), config.sample.batch):
        items = [images.image(i, derive(0, "diagnose", i)) for i in range(part.start, part.stop)]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        names = [(images.cases[images.items[i].case].case, i) for i in range(part.start, part.stop)]
        x0, cond = task.x0(batch).to(device), task.condition(batch)
        assert cond is not None

        def noise(k: int, names: Sequence[tuple[str, int]] = names, like: Tensor = x0) -> Tensor:
            ways = [generator(seed, "diagnose", case, i, k) for case, i in names]
            return draw(config.diffusion.noise, like.shape[1:], ways, like=like)

        found.append(evidence(denoise, x0, len(card.classes), sigmas, noise, cond.map(lambda v: v.to(device))))
        truth.append(task.classes(batch))
        if on_image:
            on_image(part.stop - part.start)
    return torch.cat(found), torch.cat(truth)
