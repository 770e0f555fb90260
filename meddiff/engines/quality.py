"""How good a set of samples is: every metric beside what as many training images score, for any number of sets."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev

import torch
from torch import Tensor

from meddiff.errors import MetricError
from meddiff.metrics.bootstrap import around, bootstrap_mean, resampled
from meddiff.metrics.distances import directions, projected, projected_wasserstein
from meddiff.metrics.diversity import ms_ssim_pairs
from meddiff.metrics.features import Kernels, frechet, frechet_bias
from meddiff.metrics.manifold import COVERAGE_K, neighbourhoods
from meddiff.seeds import generator

Extract = Callable[[Tensor], Tensor]  # images (n, 1, *size) -> features (n, d)
DRAWS = 20  # sets of training images that the floor is averaged over
RESAMPLES = 200
ROUGH = 4  # the interval of the sliced Wasserstein distance is drawn on every fourth direction
LEAST = 2 * (COVERAGE_K + 1)  # images that neighbours, and halves of a set, need
HARDLY = 0.01  # of its mean: the least that a feature is taken to vary by
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """One metric of one set, with its 95 % interval, beside that of as many training images."""

    value: float
    low: float
    high: float
    train: float  # mean over `DRAWS` random sets of n training images
    train_std: float  # of those sets
    n: int


@dataclass(frozen=True)
class Seen:
    """A set of images, and everything that metrics look at."""

    images: Tensor  # (n, 1, *size)
    along: Tensor  # (n, projections)
    features: Mapping[str, Tensor]  # space -> (n, d), standardised by the training images

    def pick(self, index: Tensor) -> "Seen":
        """Some of them."""
        return Seen(self.images[index], self.along[index], {k: f[index] for k, f in self.features.items()})


class Judge:
    """Compares sets of samples with held-out images, in pixels and in spaces of features."""

    def __init__(
        self,
        training: Tensor,  # (N, 1, *size), all there are, model units
        held_out: Tensor,  # (n, 1, *size)
        patients: Sequence[str],  # of the held-out images: they are resampled together
        spaces: Mapping[str, Extract],
        projections: int,
    ) -> None:
        self.n, self.patients = len(held_out), tuple(patients)
        if self.n < 2 or len(training) < self.n or len(patients) != self.n:
            raise MetricError(
                f"Sets are compared at one n of 2 at least; found {self.n} held-out images of {len(patients)} named patients, "
                f"and {len(training)} training images."
            )
        if self.n < LEAST:
            log.warning(
                "n = %d: Frechet distance, precision, recall, density and coverage need %d images, and are left out.",
                self.n,
                LEAST,
            )
        self.to = directions(training.shape[1:], projections)
        self.spaces: dict[str, Extract] = {}
        known: dict[str, Tensor] = {}
        for name, extract in spaces.items():
            raw = _by_parts(extract, training)
            scale = _scale(raw)
            known[name] = scale(raw)
            self.spaces[name] = partial(_scaled, extract, scale)
        self.training = Seen(training, projected(training, self.to), known)
        self.held_out = self.see(held_out)
        floors = [self.values(self.training.pick(index)) for index in draws(len(training), self.n)]
        self.floor = {name: [f[name] for f in floors] for name in floors[0]}

    def see(self, images: Tensor) -> Seen:
        """A set of n images as metrics look at it."""
        if len(images) != self.n:
            raise MetricError(f"Sets are compared at one n: {self.n} held-out images, found {len(images)}.")
        return Seen(images, projected(images, self.to), {name: of(images) for name, of in self.spaces.items()})

    def values(self, seen: Seen) -> dict[str, float]:
        """Every metric of a set of n images against the held-out ones."""
        found: dict[str, float] = {}
        for name, features in seen.features.items():
            real = self.held_out.features[name]
            found[f"{name}/kid"] = Kernels(features, real).distance()
            if self.n < LEAST:
                continue
            near = neighbourhoods(real, features)
            found[f"{name}/frechet"] = frechet(features, real)
            found[f"{name}/frechet_bias"] = frechet_bias(features, real)
            found |= {f"{name}/{what}": float(each.mean()) for what, each in near._asdict().items()}
        found["sliced_wasserstein"] = projected_wasserstein(seen.along, self.held_out.along)
        found["ms_ssim"] = float(ms_ssim_pairs(seen.images).mean())
        return found

    def judge(self, images: Tensor) -> dict[str, Figure]:
        """Every metric of a set of n samples, each sample being drawn independently."""
        seen = self.see(images)
        values = self.values(seen)
        spread = self._intervals(seen, values)
        return {
            name: Figure(
                value,
                *spread.get(name, (value, value)),  # a correction has no interval of its own
                fmean(self.floor[name]),
                stdev(self.floor[name]),
                self.n,
            )
            for name, value in values.items()
        }

    def _intervals(self, seen: Seen, values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """An interval for each metric that has one: samples, and whole held-out patients, are drawn again."""
        alone = [str(i) for i in range(self.n)]
        own = resampled(alone, RESAMPLES, 0, "samples")
        real = resampled(self.patients, RESAMPLES, 0, "held-out")
        sets = ((own > 0).sum(1) > 1) & ((real > 0).sum(1) > 1)  # of few images a resample may be one image only
        own, real = own[sets], real[sets]
        found: dict[str, tuple[float, float]] = {}

        def again(name: str, of: Callable[[Tensor, Tensor], float]) -> None:
            found[name] = around(values[name], [of(u, v) for u, v in zip(own, real, strict=True)])

        def mean(name: str, of: Tensor, groups: Sequence[str]) -> None:
            interval = bootstrap_mean(of.tolist(), groups)
            found[name] = interval.low, interval.high

        for name, x in seen.features.items():
            y = self.held_out.features[name]
            again(f"{name}/kid", Kernels(x, y).distance)
            if self.n < LEAST:
                continue
            again(f"{name}/frechet", _of_resamples(frechet, x, y))
            near = neighbourhoods(y, x)
            for what, groups in (
                ("precision", alone),
                ("density", alone),
                ("recall", self.patients),
                ("coverage", self.patients),
            ):
                mean(f"{name}/{what}", getattr(near, what), groups)
        rough = [s.along[:, ::ROUGH] for s in (seen, self.held_out)]
        again("sliced_wasserstein", _of_resamples(projected_wasserstein, *rough))
        mean("ms_ssim", ms_ssim_pairs(seen.images), alone[: self.n // 2])
        return found


def _of_resamples(
    distance: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor
) -> Callable[[Tensor, Tensor], float]:
    """The distance of resamples of x (n, d) and y (m, d), given how often each row counts."""
    return lambda u, v: distance(x.repeat_interleave(u, 0), y.repeat_interleave(v, 0))


def draws(total: int, n: int) -> list[Tensor]:
    """`DRAWS` random sets of n of `total` images: samples are independent draws, so what they are compared with is too."""
    return [torch.randperm(total, generator=generator(0, "floor", i))[:n] for i in range(DRAWS)]


def _by_parts(extract: Extract, images: Tensor) -> Tensor:
    return torch.cat([extract(part) for part in images.split(256)])


def _scale(training: Tensor) -> Callable[[Tensor], Tensor]:
    """What gives features mean 0 and standard deviation 1 over the training images, so that no unit outweighs another.

    A feature that hardly varies, as the median of images that are mostly air, counts in hundredths of its mean: in its own
    standard deviations one held-out image a hundred of them away would outweigh everything.
    """
    mean, std = training.mean(0), training.std(0)
    wide = torch.where(std > 1e-9, std.maximum(HARDLY * mean.abs()), 1.0)
    return lambda features: (features - mean) / wide


def _scaled(extract: Extract, scale: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return scale(_by_parts(extract, images))
