"""Ensembles of label maps: the posterior they agree on, its entropy, volumes with an interval, when to stop drawing more.

A sampler evaluates D(x, sigma) = E[x0 | x, cond] at every step. Over the x of that sigma, each of these has the same mean,
p(label | cond) (the law of total expectation): at sigma = inf it is D itself, without any spread, near 0 it is the mean of
sampled label maps, with the spread of p (1 - p) / S. So no evaluation is thrown away: the posterior of an ensemble is the
mean over all of them, the first answer among them, whereas volumes and their spread are those of the samples.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import cos, inf, log, pi, sin, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from meddiff.errors import ConfigError


def entropy(posterior: Tensor, dim: int = 0) -> Tensor:
    """Entropy over the labels along `dim`, over its largest value ln K: 0 is certain, 1 has no idea; `dim` is gone.

    >>> entropy(torch.tensor([[1.0, 0.5], [0.0, 0.5]]))
    tensor([0., 1.])
    """
    return torch.special.entr(posterior).sum(dim) / log(posterior.shape[dim])


def volumes_ml(posteriors: Tensor, voxel_ml: float) -> Tensor:
    """Volume of every label in every sample, (S, K) float64 in ml, of posteriors (S, K, *spatial).

    Voxels count by their probability: the volume expected of a sample, without the jumps of a rounded label map.
    """
    return posteriors.flatten(2).sum(2, dtype=torch.float64) * voxel_ml


def interval(values: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Mean and half-width of Student's t interval of the mean of values (S, K) over S; (K,) each.

    A single sample has no spread to go by: its half-width is inf.
    """
    n = len(values)
    mean = values.mean(0)
    if n < 2:
        return mean, torch.full_like(mean, inf)
    return mean, t_quantile((1 + level) / 2, n - 1) * values.std(0) / sqrt(n)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution, `probability` in 0.5..1, by bisection; to 12 digits.

    >>> round(t_quantile(0.975, 9), 3)
    2.262
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ConfigError(
            f"A t quantile needs a probability in 0.5..1 and at least 1 degree of freedom; found {probability:g} and "
            f"{freedom}."
        )
    low, high = 0.0, pi / 2  # of the angle atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return sin(low) / cos(low) * sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle)): Abramowitz and Stegun 1964, 26.7.3 (odd freedom) and 26.7.4 (even)."""
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):  # of the cosine
        total += term
        term *= cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


class Drawn(NamedTuple):
    """A sample, and what was evaluated on the way to it.

    sample     (K, *spatial)  the last D, all but a label map
    posterior  (K, *spatial)  the mean of D over all evaluations, the first answer among them
    """

    sample: Tensor
    posterior: Tensor


class Ways:
    """The mean of D over the evaluations of a sampler, whose `on_step` it is; `first` is the answer before any step."""

    def __init__(self, first: Tensor) -> None:
        self.total, self.evaluations = first.clone(), 1

    def __call__(self, step: int, x: Tensor, d: Tensor) -> None:
        self.total += d
        self.evaluations += 1

    @property
    def mean(self) -> Tensor:
        """Of the shape of `first`."""
        return self.total / self.evaluations


@dataclass(frozen=True)
class Ensemble:
    """What S samples say together about one case.

    posterior   (K, *spatial)     mean over all evaluations of all samples
    volumes_ml  (S, K) float64    of every sample, as in `volumes_ml`
    enough      whether the intervals are within the tolerance; False if the samples ran out before
    """

    posterior: Tensor
    volumes_ml: Tensor
    enough: bool

    @property
    def samples(self) -> int:
        """How many samples it took."""
        return len(self.volumes_ml)

    @property
    def labels(self) -> Tensor:
        """The most probable label, (*spatial) int64."""
        return self.posterior.argmax(0)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the mean posterior in 0..1, (*spatial)."""
        return entropy(self.posterior)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Mean volume of every label in ml and the half-width of its t interval, (K,) each.

        It says how well the mean over samples is known, not how much a patient's volume is in doubt: that is the spread of
        `volumes_ml`.
        """
        return interval(self.volumes_ml, level)


def ensemble(drawn: Iterable[Drawn], voxel_ml: float, samples: int) -> Ensemble:
    """The ensemble of the first `samples` of what is drawn."""
    return _gather(drawn, voxel_ml, samples, lambda volumes: False, enough=True)


def adaptive(
    drawn: Iterable[Drawn],  # of one case; no more are taken than needed
    voxel_ml: float,  # volume of a voxel
    tolerance: float,  # above 0; half-width of the interval over the mean volume
    maximum: int,  # samples
    minimum: int = 8,  # samples; at least 2, and the interval of very few is a matter of luck
) -> Ensemble:
    """The ensemble of as many samples as it takes for every label's 95 % volume interval to be tight enough.

    Tight enough is a half-width of at most `tolerance` times the mean volume, or of at most one voxel, so that a label that
    is all but absent does not ask for samples for ever. An interval that may stop when it is tight covers less than it says:
    of volumes with a spread of 10 %, to a tolerance of 5 %, it held the truth in 94 % of draws with a minimum of 8, 90 % with
    4, 88 % with 2.
    """
    if not tolerance > 0 or not 2 <= minimum <= maximum or not voxel_ml > 0:
        raise ConfigError(
            f"An adaptive ensemble needs a tolerance and a voxel above 0 and 2 <= minimum <= maximum samples; found "
            f"tolerance {tolerance:g}, voxel {voxel_ml:g} ml, minimum {minimum}, maximum {maximum}. For a fixed number of "
            f"samples, use ensemble()."
        )

    def tight(volumes: Tensor) -> bool:
        mean, half = interval(volumes)
        return len(volumes) >= minimum and bool((half <= (tolerance * mean).clamp(min=voxel_ml)).all())

    return _gather(drawn, voxel_ml, maximum, tight, enough=False)


def _gather(
    drawn: Iterable[Drawn], voxel_ml: float, most: int, stop: Callable[[Tensor], bool], enough: bool
) -> Ensemble:
    """At most `most` samples, fewer where `stop` says so of their volumes (S, K); `enough` if it never does."""
    total, volumes = torch.zeros(()), torch.zeros(0)
    for number, one in enumerate(itertools.islice(drawn, most)):
        total = total.to(one.posterior) + one.posterior
        own = volumes_ml(one.sample.unsqueeze(0), voxel_ml)
        volumes = torch.cat([volumes, own]) if number else own
        if stop(volumes):
            enough = True
            break
    if not len(volumes):
        raise ConfigError("An ensemble needs at least one sample; found none. Correct sample.samples.")
    return Ensemble(total / len(volumes), volumes, enough)
