"""Label maps of whole scans: samples that share the first answer, the posterior they agree on, and how sure it is."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.store import BACKGROUND
from meddiff.diffusion import categorical
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.compose import Empty
from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.diffusion.ensemble import Drawn, Ensemble, Ways, adaptive, ensemble, entropy
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
LEFT_RIGHT = 2  # the axis of (B, C, *size): the model's grid is in RAS order
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
    """The ensemble's posterior, its label map and entropy; ImageError where the scan is not for this model."""
    seen = Seen(volume, config, card)
    with torch.no_grad():
        drawn = _drawn(model, config, seen, name, seed, on_sample)
        if tolerance is not None:
            result = adaptive(drawn, seen.voxel_ml, tolerance, MOST)
        else:
            result = ensemble(drawn, seen.voxel_ml, 1 if _direct(config) else config.sample.samples)
    probability = np.clip(seen.back(result.posterior), 0, None)
    probability /= probability.sum(0)
    numbers = np.array([0, *card.labels.values()])
    label = numbers[probability.argmax(0)].astype(np.min_scalar_type(int(numbers.max())))
    return Segmented(
        Volume(label, volume.geometry, "SEG", "label"),
        probability,
        entropy(torch.from_numpy(probability)).numpy(),
        result,
        tuple(card.labels),
    )


def _direct(config: Config) -> bool:
    """Whether the first answer is the whole answer."""
    return config.diffusion.process == "direct" or config.sample.steps == 1


def _drawn(
    model: nn.Module, config: Config, seen: Seen, name: str, seed: int, on_sample: Callable[[Tensor], None] | None
) -> Iterator[Drawn]:
    """One sample after another, (K, I, J, K) on the model's grid; the first answer is found once.

    A model that learned from mirrored images too is shown every other sample's scan mirrored: another view of it, of which
    an answer of its own is found.
    """
    assert isinstance(model, Posterior | LabelPosterior)
    assert isinstance(model.network, AnsweredLabels)
    sample, device = config.sample, next(model.parameters()).device
    task = build_task(config)
    assert isinstance(task, Segmentation)
    parts = in_batches(len(seen.images), sample.batch)
    images = seen.images.float().clamp(-1, 1)  # as in training

    def shown(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model(x, sigma, cond)

    denoise = seen.windowed(shown, sample, _nothing(model.classes) if sample.skip_empty else None)
    discrete = isinstance(model, LabelPosterior)
    blind = torch.tensor(0.0 if discrete else inf)

    def answered(images: Tensor) -> list[tuple[Condition, Tensor]]:
        return [_answered(denoise, images[part].to(device), blind, model.classes) for part in parts]

    views = [answered(images)]
    if _direct(config):
        answer = _told(seen.unbatch(torch.cat([answer.cpu() for _, answer in views[0]])), on_sample)
        while True:
            yield Drawn(answer, answer)
    if discrete:
        sampler, levels = categorical.sample, categorical.grid(sample.steps - 1, sample.sigma_min, sample.sigma_max)
    else:
        sampler, levels = SAMPLERS[sample.sampler], sigma_grid(sample)
    for number in itertools.count():
        mirrored = config.data.augment.flip and number % 2 == 1
        if mirrored and len(views) == 1:
            views.append(answered(images.flip(LEFT_RIGHT)))
        ends, means = [], []
        for part, (cond, answer) in zip(parts, views[mirrored], strict=True):
            names = [(name, number, i) for i in range(part.start, part.stop)]
            x = task.starting(
                model.classes,
                seen.images.shape[2:],
                float(levels[0]),
                [generator(seed, "start", *key) for key in names],
            ).to(device)
            if not discrete:
                x = x + answer  # at sigma_max D is the first answer: noise around it, not around 0
            way, ways = [generator(seed, "way", *key) for key in names], Ways(answer)
            ends.append(sampler(denoise, x, levels, cond, way, ways).cpu())
            means.append(ways.mean.cpu())
        end, mean = (seen.unbatch(_turned(torch.cat(maps), mirrored)) for maps in (ends, means))
        yield Drawn(_told(end, on_sample), _normal(mean))


def _answered(denoise: Denoiser, image: Tensor, blind: Tensor, classes: int) -> tuple[Condition, Tensor]:
    """The image with the log of the first answer to it, (B, 1 + K, *size): what the second network is given; and the answer."""
    nothing = image.new_zeros(len(image), classes, *image.shape[2:])
    p = denoise(nothing, blind, Condition(image))
    return Condition(torch.cat([image, p.clamp(min=FLOOR).log()], dim=1)), p


def _nothing(classes: int) -> Empty:
    """Windows of nothing but background are background, with probability 1."""

    def holds(cond: Condition) -> Tensor:
        assert cond.image is not None
        return (cond.image[:, :1] <= BACKGROUND).flatten(1).all(1)

    return Empty(holds, torch.eye(classes)[0])


def _turned(maps: Tensor, mirrored: bool) -> Tensor:
    return maps.flip(LEFT_RIGHT) if mirrored else maps


def _normal(posterior: Tensor) -> Tensor:
    """Without what blending windows and rounding leave: not negative, sum 1."""
    posterior = posterior.clamp(min=0)
    return posterior / posterior.sum(0)


def _told(sample: Tensor, on_sample: Callable[[Tensor], None] | None) -> Tensor:
    sample = _normal(sample)
    if on_sample:
        on_sample(sample)
    return sample
