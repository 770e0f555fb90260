"""Case by case: how good segmentations and restorations of held-out scans are, beside what else one could have used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from meddiff.config import Config, parse_config
from meddiff.data.loader import Images
from meddiff.data.manifest import Case, Manifest, load_image, load_label
from meddiff.data.store import BACKGROUND, numbered
from meddiff.data.transforms import placing, to_meta
from meddiff.degradation_config import Gaussian, Rician
from meddiff.engines.card import Card
from meddiff.engines.fit import prepare
from meddiff.engines.restore import estimates
from meddiff.engines.run import Run
from meddiff.engines.segment import Segmented, segment
from meddiff.engines.volumes import Seen
from meddiff.errors import ManifestError, RunError
from meddiff.imaging.volume import Volume
from meddiff.metrics import classical
from meddiff.metrics.calibration import (
    dice_of_samples,
    energy_distance,
    error_auroc,
    expected_calibration_error,
)
from meddiff.metrics.distances import sliced_wasserstein, spectrum_distance
from meddiff.metrics.fidelity import mae, psnr, ssim
from meddiff.metrics.overlap import dice_per_label
from meddiff.metrics.surface import surface_per_label
from meddiff.seeds import derive
from meddiff.tasks.restoration import Restoration

Row = dict[str, Any]
RANGE = (-1.0, 1.0)  # of images in model units


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


def restored(
    methods: Sequence[Method],
    manifest: Manifest,
    split: str,
    seed: int,
    compare_classical: bool,
    limit: int | None = None,  # cases
    keep: Callable[[str, Case, Tensor, Tensor, Mapping[str, Tensor]], None] | None = None,
) -> Iterator[tuple[str, str, Row]]:
    """(level, method, row) for every case: PSNR, SSIM on the model's grid, MAE in the scan's unit inside the body.

    The degradation is drawn anew for every slice or patch from the case's name, the same for all methods; noise of the
    gaussian and rician kinds is set to each of `evaluate.sigmas` in turn. A case's value is the mean over its images.
    """
    config, card = methods[0].config, methods[0].card
    images = prepare(config, manifest, split)
    for level, task in _levels(config):
        for index, items in groupby(range(len(images)), key=lambda i: images.items[i].case):
            if limit is not None and index >= limit:
                break
            case = images.cases[index]
            clean, degraded, sigma = _degraded(images, list(items), task, case.case)
            results = {"degraded": degraded}
            if compare_classical and isinstance(task.settings, Gaussian | Rician):
                results |= {
                    name: torch.from_numpy(np.stack([act(y[0].numpy(), sigma) for y in degraded]))[:, None]
                    for name, act in classical.DENOISERS.items()
                }
            for one in methods:
                results |= _by_model(one, degraded, sigma, case.case, seed)
            if keep:
                keep(level, case, clean, degraded, results)
            for name, result in results.items():
                yield level, name, {"case": case.case, "patient": case.patient, **_image_metrics(result, clean, card)}


class Sets:
    """The images of all cases by method, to compare as sets: a sample may be far from the truth and look like it."""

    def __init__(self) -> None:
        self.clean: list[Tensor] = []
        self.results: dict[str, list[Tensor]] = {}

    def add(self, clean: Tensor, results: Mapping[str, Tensor]) -> None:
        """One case."""
        self.clean.append(clean)
        for name, images in results.items():
            self.results.setdefault(name, []).append(images[:, :1].clamp(*RANGE))

    def distances(self) -> dict[str, dict[str, float]]:
        """Of each method's images to the clean ones: sliced Wasserstein in model units, texture in dB."""
        clean = torch.cat(self.clean)
        return {
            name: {
                "sliced_wasserstein": sliced_wasserstein(torch.cat(images), clean),
                "spectrum_db": spectrum_distance(torch.cat(images), clean),
            }
            for name, images in self.results.items()
        }


def _levels(config: Config) -> list[tuple[str, Restoration]]:
    settings = config.data.degradation
    if not isinstance(settings, Gaussian | Rician):
        return [(settings.kind if settings else "", Restoration(config.data))]
    levels = []
    for sigma in config.evaluate.sigmas:
        fixed = settings.model_copy(update={"sigma": (sigma, sigma)})
        data = config.data.model_copy(update={"degradation": fixed})
        levels.append((f"sigma {sigma:g}", Restoration(data)))
    return levels


def _degraded(images: Images, items: Sequence[int], task: Restoration, name: str) -> tuple[Tensor, Tensor, float]:
    clean = torch.stack([images.image(i, derive(0, "evaluate", i))["image"] for i in items])
    measured = [task.degrade(x, derive(0, "evaluate", name, k))[0] for k, x in enumerate(clean)]
    cond = task.condition(measured)
    assert cond.image is not None
    assert cond.covariates is not None
    return clean, cond.image, float(cond.covariates[0, 0].exp())


def _by_model(one: Method, degraded: Tensor, sigma: float, case: str, seed: int) -> dict[str, Tensor]:
    samples = (
        0 if one.config.diffusion.process == "direct" or one.config.sample.steps == 1 else one.config.sample.samples
    )
    with torch.no_grad():
        mean, drawn = estimates(one.model, one.config, degraded, sigma, [case], seed, samples)
    results = {f"{one.name}, one evaluation": mean}
    if samples:
        results[f"{one.name}, mean of {samples} samples"] = drawn.mean(0)
        results[f"{one.name}, one sample"] = drawn[0]
    return results


def _image_metrics(result: Tensor, clean: Tensor, card: Card) -> dict[str, float]:
    values = []
    for restored_image, truth in zip(result[:, 0].clamp(*RANGE).numpy(), clean[:, 0].numpy(), strict=True):
        body = truth > BACKGROUND
        values.append(
            {
                "psnr": psnr(restored_image, truth, RANGE),
                "ssim": ssim(restored_image, truth, RANGE),
                "mae": mae(restored_image / card.space.scale, truth / card.space.scale, body) if body.any() else 0.0,
            }
        )
    return {name: float(np.mean([v[name] for v in values])) for name in values[0]}
