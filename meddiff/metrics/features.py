"""Distances between two sets of feature vectors. All of them depend on n; `frechet` and its bias most."""

import torch
from torch import Tensor

from meddiff.errors import MetricError
from meddiff.seeds import generator

HALVES = 10  # random halves that the bias of the Frechet distance is measured on


class Kernels:
    """The kernel distance of two sets (n, d) and (m, d), prepared to be computed for many resamples of them.

    The squared maximum mean discrepancy under the kernel (x . y / d + 1)^3, without bias: KID of Binkowski et al. 2018,
    section 3.1, on features of your own. 0 on average for two sets of one distribution, at every n, and then below 0 as often
    as above it.
    """

    def __init__(self, one: Tensor, other: Tensor) -> None:
        a, b = _checked(one, other)
        self.aa, self.ab, self.bb = (_kernel(x, y) for x, y in ((a, a), (a, b), (b, b)))

    def distance(self, one: Tensor | None = None, other: Tensor | None = None) -> float:
        """The distance; `one` (n,) and `other` (m,) say how often each vector counts, once unless given.

        A vector that counts twice is not a pair with itself: a resample has no bias either.
        """
        u, v = (
            torch.ones(len(k), dtype=k.dtype) if w is None else w.to(k) for k, w in ((self.aa, one), (self.bb, other))
        )
        return _within(self.aa, u) + _within(self.bb, v) - 2 * float(u @ self.ab @ v / (u.sum() * v.sum()))


def kid(one: Tensor, other: Tensor) -> float:  # (n, d), (m, d)
    """The kernel distance of two sets of features; see `Kernels`."""
    return Kernels(one, other).distance()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(kernel: Tensor, weights: Tensor) -> float:
    """The mean of a kernel over pairs of different vectors, each weighted."""
    squares = weights.square()
    pairs = weights @ kernel @ weights - squares @ kernel.diagonal()
    return float(pairs / (weights.sum() ** 2 - squares.sum()))


def frechet(one: Tensor, other: Tensor) -> float:  # (n, d), (m, d)
    """The squared Frechet distance of two Gaussians with the sets' means and covariances (Dowson and Landau 1982).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2): what FID is on Inception's features (Heusel et al. 2017). Of finite
    sets it is too large, see `frechet_bias`.
    """
    a, b = _checked(one, other)
    root = _root(torch.cov(a.T).view(a.shape[1], -1))
    other_covariance = torch.cov(b.T).view(a.shape[1], -1)
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    spread = root.square().sum() + other_covariance.trace() - 2 * cross
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread))  # rounding may go below 0


def frechet_bias(one: Tensor, other: Tensor, seed: int = 0) -> float:
    """How much of `frechet` is owed to the finite number of vectors, about.

    The bias falls as 1/n (Chong and Forsyth 2020), so half of the vectors have twice of it: the difference between the mean
    distance of random halves and the distance itself is the bias. Less so where n is not well above d.
    """
    a, b = _checked(one, other)
    if min(len(a), len(b)) < 4:
        raise MetricError(f"The bias is measured on halves of 2 vectors at least; found sets of {len(a)} and {len(b)}.")
    total = 0.0
    for i in range(HALVES):
        halves = (
            x[torch.randperm(len(x), generator=generator(seed, "half", i, k))[: len(x) // 2]]
            for k, x in enumerate((a, b))
        )
        total += frechet(*halves)
    return total / HALVES - frechet(a, b)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _checked(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64; MetricError unless each has two finite vectors at least, all of one length."""
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise MetricError(
            f"Two sets of features are compared as (n, d) and (m, d) with at least 2 vectors each; found {tuple(one.shape)} "
            f"and {tuple(other.shape)}."
        )
    a, b = one.double().cpu(), other.double().cpu()
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise MetricError("The features hold NaN or infinite values; look at the images that they were computed from.")
    return a, b
