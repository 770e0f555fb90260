"""Label maps of whole scans: samples that share the first answer, their mean, and how sure it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.diffusion import categorical
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.ensemble import Ensemble, adaptive, entropy, volumes_ml
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.engines.card import Card, build_task
from meddiff.engines.predict import sigma_grid
from meddiff.engines.trainer import autocast
from meddiff.engines.volumes import Seen, in_batches
from meddiff.imaging.volume import Volume
from meddiff.seeds import generator
from meddiff.tasks.segmentation import Segmentation

MOST = 64  # samples at most, where a tolerance decides
FLOOR = 1e-6  # probability that windows are averaged from, at least: its logarithm is taken


@dataclass(frozen=True)
class Segmented:
    """What a model says of one scan, on the scan's grid.

    probability  (K, I, J, K)  background first, then the labels in the order of `names`
    ensemble     on the model's grid: samples, volumes
    """

    label: Volume  # the data set's own numbers
    probability: np.ndarray
    entropy: np.ndarray  # 0..1
    ensemble: Ensemble
    names: tuple[str, ...]

    def volumes(self) -> dict[str, dict[str, float]]:
        """Volume of each label in ml: mean over the samples, 95 % interval of that mean, standard deviation of a sample."""
        mean, half = self.ensemble.interval()
        spread = self.ensemble.volumes_ml.std(0) if self.ensemble.samples > 1 else torch.zeros_like(mean)
        values = {}
        for k, name in enumerate(self.names, 1):
            known = {"mean": float(mean[k]), "std": float(spread[k])}
            if half[k] < inf:
                known |= {"low": float(mean[k] - half[k]), "high": float(mean[k] + half[k])}
            values[name] = known
        return values


def segment(
    model: nn.Module,
    config: Config,
    card: Card,
    volume: Volume,
    name: str,  # of the case: its noise follows from seed and name
    seed: int,
    *,
    tolerance: float
    | None = None,  # relative half-width of every label's volume interval; None: `sample.samples` samples
    on_sample: Callable[[Tensor], None]
    | None = None,  # told the posterior of each sample on the model's grid, (K, I, J, K)
) -> Segmented:
    """The mean of the samples' posteriors, its label map and entropy; ImageError where the scan is not for this model."""
    seen = Seen(volume, config, card)
    with torch.no_grad():
        drawn = _posteriors(model, config, seen, name, seed, on_sample)
        if tolerance is not None:
            ensemble = adaptive((p.unsqueeze(0) for p in drawn), seen.voxel_ml, tolerance, MOST)
        else:
            ensemble = _mean(drawn, 1 if _direct(config) else config.sample.samples, seen.voxel_ml)
    probability = np.clip(seen.back(ensemble.posterior), 0, None)
    probability /= probability.sum(0)
    numbers = np.array([0, *card.labels.values()])
    label = numbers[probability.argmax(0)].astype(np.min_scalar_type(int(numbers.max())))
    return Segmented(
        Volume(label, volume.geometry, "SEG", "label"),
        probability,
        entropy(torch.from_numpy(probability)).numpy(),
        ensemble,
        tuple(card.labels),
    )


def _direct(config: Config) -> bool:
    """Whether the first answer is the whole answer."""
    return config.diffusion.process == "direct" or config.sample.steps == 1


def _mean(drawn: Iterator[Tensor], samples: int, voxel_ml: float) -> Ensemble:
    total, volumes = torch.zeros(()), []
    for _ in range(samples):
        sample = next(drawn)
        total = total + sample
        volumes.append(volumes_ml(sample.unsqueeze(0), voxel_ml))
    return Ensemble(total / samples, torch.cat(volumes), True)


def _posteriors(
    model: nn.Module, config: Config, seen: Seen, name: str, seed: int, on_sample: Callable[[Tensor], None] | None
) -> Iterator[Tensor]:
    """The posterior (K, I, J, K) of one sample after another, on the model's grid; the first answer is found once."""
    assert isinstance(model, Posterior | LabelPosterior)
    assert isinstance(model.network, AnsweredLabels)
    sample, device = config.sample, next(model.parameters()).device
    task = build_task(config)
    assert isinstance(task, Segmentation)
    parts = in_batches(len(seen.images), sample.batch)

    def shown(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model(x, sigma, cond)

    denoise = seen.windowed(shown, sample.overlap)
    discrete = isinstance(model, LabelPosterior)
    blind = torch.tensor(0.0 if discrete else inf, device=device)
    given, first = [], []
    for part in parts:
        image = seen.images[part].to(device, torch.float32)
        nothing = image.new_zeros(len(image), model.classes, *image.shape[2:])
        p = denoise(nothing, blind, Condition(image))
        first.append(p.cpu())
        given.append(Condition(torch.cat([image, p.clamp(min=FLOOR).log()], dim=1)))
    if _direct(config):
        while True:
            yield _told(seen.unbatch(torch.cat(first)), on_sample)
    if discrete:
        sampler, levels = categorical.sample, categorical.grid(sample.steps - 1, sample.sigma_min, sample.sigma_max)
    else:
        sampler, levels = SAMPLERS[sample.sampler], sigma_grid(sample)
    number = 0
    while True:
        posterior = []
        for part, cond in zip(parts, given, strict=True):
            names = [(name, number, i) for i in range(part.start, part.stop)]
            x = task.starting(
                model.classes,
                seen.images.shape[2:],
                float(levels[0]),
                [generator(seed, "start", *key) for key in names],
            ).to(device)
            if not discrete:
                assert cond.image is not None
                x = x + cond.image[:, 1:].exp()  # at sigma_max D is the first answer: noise around it, not around 0
            way = [generator(seed, "way", *key) for key in names]
            posterior.append(sampler(denoise, x, levels.to(device), cond, way).cpu())
        number += 1
        yield _told(seen.unbatch(torch.cat(posterior)), on_sample)


def _told(sample: Tensor, on_sample: Callable[[Tensor], None] | None) -> Tensor:
    sample = sample.clamp(min=0)
    sample = sample / sample.sum(0)
    if on_sample:
        on_sample(sample)
    return sample
