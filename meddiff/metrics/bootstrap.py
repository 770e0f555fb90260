"""How sure a mean over cases is, when cases of one patient are alike."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
import torch

from meddiff.errors import MetricError
from meddiff.metrics.arrays import finite
from meddiff.seeds import generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interval:
    """A mean over cases with the interval it lies in, and how many cases and patients it rests on."""

    mean: float
    low: float
    high: float
    cases: int
    patients: int


def bootstrap_mean(
    values: Sequence[float],  # one a case
    patients: Sequence[str],  # whose each case is
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean over cases with its percentile bootstrap interval over patients (Efron & Tibshirani 1993, ch. 13).

    Each resample draws as many patients as there are, with replacement, each with all of its cases; its mean is over the
    cases drawn. The result depends on the seed, not on the order of the cases. Of one patient no spread can be learnt:
    low and high are the mean, and a warning says so. MetricError for no values, or one that is not finite.
    """
    if not len(values) or len(values) != len(patients):
        raise MetricError(
            f"A mean over cases needs a value and a patient of each; found {len(values)} values and {len(patients)} patients."
        )
    finite(np.asarray(values), "list of values")
    of: dict[str, list[float]] = defaultdict(list)
    for patient, value in zip(patients, values, strict=True):
        of[patient].append(float(value))
    names = sorted(of)
    if len(names) == 1:
        log.warning("All %d cases are of one patient: the interval of their mean has no width.", len(values))
    sums, counts = (np.array([measure(of[n]) for n in names], dtype=np.float64) for measure in (fsum, len))
    drawn = torch.randint(len(names), (resamples, len(names)), generator=generator(seed, "bootstrap")).numpy()
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(fsum(values) / len(values), float(low), float(high), len(values), len(names))


def resampled(groups: Sequence[str], count: int, seed: int, purpose: str) -> torch.Tensor:
    """How often each item is drawn, (count, items) int64: whole groups, for instance the slices of a patient, at a time.

    Each of `count` resamples draws as many groups as there are, with replacement.
    """
    names = {name: i for i, name in enumerate(sorted(set(groups)))}
    own = torch.tensor([names[group] for group in groups])
    drawn = torch.randint(len(names), (count, len(names)), generator=generator(seed, "resampled", purpose))
    often = torch.zeros(count, len(names), dtype=torch.long).scatter_add_(1, drawn, torch.ones_like(drawn))
    return often[:, own]


def around(value: float, drawn: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval around a statistic that its resamples spread over, their own mean being moved to the value.

    A resample repeats items, which moves statistics with a bias of their own, such as a Frechet distance: what is taken from
    the resamples is how far another set of the same size would be off, not where they lie.
    """
    finite(np.asarray(drawn), "list of resamples")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) - np.mean(drawn)
    return float(value + low), float(value + high)
