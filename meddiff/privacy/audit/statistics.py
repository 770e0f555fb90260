"""The statistics of the audit: what was counted, and how far it may be from the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import betabinom, binomtest, rankdata
from torch import Tensor

from meddiff.seeds import generator

LEVEL = 0.95
RESAMPLES = 2000
PERMUTATIONS = 9999


def owners(patients: Sequence[str]) -> Tensor:
    """The number of each image's patient, (n,), counted in the order of the patients' names."""
    number = {name: i for i, name in enumerate(sorted(set(patients)))}
    return torch.tensor([number[name] for name in patients])


@dataclass(frozen=True)
class Rate:
    """A share with its exact interval."""

    count: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.count / self.of

    @classmethod
    def counted(cls, count: int, of: int) -> "Rate":
        """With the 95 % interval of Clopper and Pearson (1934).

        >>> round(Rate.counted(0, 1000).high, 5)
        0.00368
        """
        interval = binomtest(count, of).proportion_ci(LEVEL, method="exact")
        return cls(count, of, float(interval.low), float(interval.high))


def excess_p(count: int, of: int, rank: int, calibrating: int) -> float:
    """Probability that at least `count` of `of` images of nobody are below the `rank`-th smallest of `calibrating` patients.

    The threshold is itself a draw: the share of everybody who is below it follows a Beta(rank, calibrating - rank + 1) law whatever
    the distribution, so that the count is beta-binomial. A binomial test would take the threshold for exact, and find an
    excess in 10 % of clean sets at a level of 1 % (1000 images, the third smallest of 300).
    """
    return float(betabinom.sf(count - 1, of, rank, calibrating - rank + 1))


def permutation_p(nearest: Sequence[int], training: Sequence[bool], seed: int = 0) -> tuple[float, float]:
    """Share of synthetic images whose nearest patient was trained on, and how often chance gives as large a share.

    nearest   of each synthetic image, the number of the patient nearest to it, among all patients
    training  of each patient, whether the model was trained on it

    The labels are dealt out anew among the patients, not the images: both real sets are fixed, and a test that takes the
    synthetic images for independent finds significance in clean data.
    """
    counts = np.bincount(nearest, minlength=len(training)).astype(np.int64)
    labels = np.asarray(training)
    observed = int(counts[labels].sum())
    k = int(labels.sum())
    g = generator(seed, "permutation")
    dealt = torch.stack([torch.randperm(len(labels), generator=g)[:k] for _ in range(PERMUTATIONS)]).numpy()
    as_large = int((counts[dealt].sum(1) >= observed).sum())
    return observed / len(nearest), (1 + as_large) / (1 + PERMUTATIONS)


@dataclass(frozen=True)
class Attack:
    """How well a score tells patients that were trained on from others; each figure with its 95 % interval."""

    auc: float
    auc_low: float
    auc_high: float
    tpr: float  # at no more than the allowed false positives
    tpr_low: float
    tpr_high: float
    members: int
    others: int


def attack(
    members: Tensor,  # (patients,) scores, smaller where a patient looks trained on
    others: Tensor,
    false_positives: float,
    seed: int = 0,
) -> Attack:
    """Area under the curve, and the true-positive rate at the false-positive rate.

    The intervals are of a bootstrap over patients, of both groups. Where all or none are found a bootstrap has no width, so
    that the interval of the rate holds Clopper and Pearson's too.
    """
    a, b = members.double().numpy(), others.double().numpy()
    g = generator(seed, "attack")
    x, y = (v[torch.randint(len(v), (RESAMPLES, len(v)), generator=g).numpy()] for v in (a, b))
    tail = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    areas = np.quantile(_auc(x, y), tail)
    rates = np.quantile(_found(x, y, false_positives) / len(a), tail)
    exact = Rate.counted(int(_found(a, b, false_positives)), len(a))
    return Attack(
        auc=float(_auc(a, b)),
        auc_low=float(areas[0]),
        auc_high=float(areas[1]),
        tpr=exact.value,
        tpr_low=min(float(rates[0]), exact.low),
        tpr_high=max(float(rates[1]), exact.high),
        members=len(a),
        others=len(b),
    )


def _auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Probability that a member's score is below another's, over the last axis; ties count half."""
    n = others.shape[-1]
    ranks = rankdata(np.concatenate([others, members], axis=-1), axis=-1)[..., :n]
    return (ranks.sum(-1) - n * (n + 1) / 2) / (n * members.shape[-1])


def _found(members: np.ndarray, others: np.ndarray, false_positives: float) -> np.ndarray:
    """Members below the threshold that the false-positive rate allows, learnt as in `scores.Threshold`; over the last axis."""
    k = int(false_positives * (others.shape[-1] + 1) + 1e-9)
    if k == 0:
        return np.zeros(members.shape[:-1], dtype=np.int64)
    return (members < np.partition(others, k - 1)[..., k - 1 : k]).sum(-1)
