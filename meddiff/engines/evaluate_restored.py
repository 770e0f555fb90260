"""Image by image: how good restorations of held-out scans are, beside what else one could have used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from meddiff.config import Config
from meddiff.data.loader import Images
from meddiff.data.manifest import Case, Manifest
from meddiff.data.store import BACKGROUND
from meddiff.degradation_config import Gaussian, Mask, Rician
from meddiff.engines.card import Card
from meddiff.engines.evaluate_cases import Method, Row
from meddiff.engines.fit import prepare
from meddiff.engines.restore import estimates
from meddiff.errors import RunError
from meddiff.metrics import classical
from meddiff.metrics.fidelity import mae, psnr, ssim
from meddiff.metrics.sets import Sets
from meddiff.seeds import derive
from meddiff.tasks.degradations import Parameters
from meddiff.tasks.restoration import Restoration

RANGE = (-1.0, 1.0)  # of images in model units


@dataclass(frozen=True, eq=False)
class RestoredCase:
    """What became of the images of one case at one level of noise, (B, 1, *size) in model units."""

    level: str
    case: Case
    clean: Tensor
    degraded: Tensor  # with what else is known, such as a mask, beside it
    parameters: list[Parameters]  # of the degradation of every image, and which slice it is
    results: dict[str, Tensor]  # of every method
    rows: dict[str, Row]  # its metrics: the mean over the images


def restored(
    methods: Sequence[Method],
    manifest: Manifest,
    split: str,
    seed: int,
    compare_classical: bool,
    limit: int | None = None,  # cases
    most: int | None = None,  # images of a case, evenly spread
) -> Iterator[RestoredCase]:
    """Every case by every method, at every level: PSNR, SSIM on the model's grid, MAE in the scan's unit inside the body.

    The degradation is drawn anew for every slice or patch from the case's name, the same for all methods; noise of the
    gaussian and rician kinds is set to each of `evaluate.sigmas` in turn. RunError where a method cannot take these images.
    """
    config, card = methods[0].config, methods[0].card
    for other in methods[1:]:
        _check_takes(other, config)
    images = prepare(config, manifest, split)
    for level, task in _levels(config):
        for index, items in groupby(range(len(images)), key=lambda i: images.items[i].case):
            if limit is not None and index >= limit:
                break
            case = images.cases[index]
            clean, degraded, sigma, parameters = _degraded(images, _spread(list(items), most), task, case.case)
            results = {"degraded": degraded[:, :1]}
            if compare_classical and isinstance(task.settings, Gaussian | Rician):
                results |= {
                    name: torch.from_numpy(np.stack([act(y[0].numpy(), sigma) for y in degraded]))[:, None]
                    for name, act in classical.DENOISERS.items()
                }
            for one in methods:
                results |= _by_model(one, degraded, sigma, case.case, seed)
            rows = {
                name: {"case": case.case, "patient": case.patient, **_image_metrics(result, clean, card)}
                for name, result in results.items()
            }
            yield RestoredCase(level, case, clean, degraded, parameters, results, rows)


def empty_sets(config: Config, manifest: Manifest, split: str) -> Sets:
    """To fill with results: their texture is compared with `evaluate.n` clean images of a split, evenly spread over it."""
    images = prepare(config, manifest, split)
    chosen = _spread(range(len(images)), config.evaluate.n)
    clean = torch.stack([images.image(i, derive(0, "evaluate", i))["image"] for i in chosen])
    return Sets(clean, [images.cases[images.items[i].case].patient for i in chosen], RANGE)


def _check_takes(other: Method, config: Config) -> None:
    """RunError unless a method sees images as `config` does, and can undo what was done to them."""
    for name in ("spacing_mm", "size", "axis", "intensity"):
        found, expected = getattr(other.config.data, name), getattr(config.data, name)
        if found != expected:
            raise RunError(f"{other.name}: data.{name} is {found}, of the run {expected}; the same images are needed.")
    undone = config.data.degradation
    if other.config.task == "segmentation":
        raise RunError(f"{other.name}: is a run of segmentation, which restores nothing.")
    if other.config.task == "synthesis" and not isinstance(undone, Gaussian | Rician | Mask):
        raise RunError(
            f"{other.name}: a run of synthesis removes white noise and fills in masked regions; this table is of "
            f"{undone.kind if undone else 'nothing'}. Leave it out."
        )
    masked = isinstance(other.config.data.degradation, Mask)
    if other.config.task == "restoration" and masked != isinstance(undone, Mask):
        raise RunError(f"{other.name}: of two runs, one is told what was masked and one is not; compare equals.")


def _spread(items: Sequence[int], most: int | None) -> list[int]:
    """At most that many of the items, from the first to the last at even distances; one is that in the middle."""
    if most is None or most >= len(items):
        return list(items)
    places = (np.arange(most) + 0.5) * len(items) / most
    return [items[int(place)] for place in places]


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


def _degraded(
    images: Images, items: Sequence[int], task: Restoration, name: str
) -> tuple[Tensor, Tensor, float, list[Parameters]]:
    """Clean and degraded images, the noise level in model units, and what was done to each."""
    clean = torch.stack([images.image(i, derive(0, "evaluate", i))["image"] for i in items])
    degraded = [task.degrade(x, derive(0, "evaluate", name, k)) for k, x in enumerate(clean)]
    cond = task.condition([measured for measured, _ in degraded])
    assert cond.image is not None
    assert cond.covariates is not None
    done = [{"slice": images.items[i].slice, **parameters} for i, (_, parameters) in zip(items, degraded, strict=True)]
    return clean, cond.image, float(cond.covariates[0, 0].exp()), done


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
