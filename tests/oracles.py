"""Denoisers known in closed form: what a sampler does to them is known without training anything."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def _wide(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))


def gaussian(mean: float = 0.0, std: float = 0.5):
    """The denoiser of independent N(mean, std^2) voxels."""

    def denoise(x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        s = _wide(sigma, x)
        return (std**2 * x + s**2 * mean) / (std**2 + s**2)

    return denoise


def gaussian_flow(x: Tensor, start: float, end: float, mean: float = 0.0, std: float = 0.5) -> Tensor:
    """The exact solution of the probability-flow ODE of `gaussian` from sigma `start` to `end`."""
    return mean + (x - mean) * ((std**2 + end**2) / (std**2 + start**2)) ** 0.5


def field(mean: Tensor, covariance: Tensor):
    """The denoiser of images (C, *spatial) from one Gaussian with this `mean` and `covariance` (n, n) of their n voxels."""
    values, vectors = torch.linalg.eigh(covariance)

    def denoise(x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        v = vectors.to(x)
        gain = values.to(x) / (values.to(x) + sigma.to(x).reshape(-1, 1) ** 2)  # (1 or B, n)
        return mean.to(x) + (((x - mean.to(x)).flatten(1) @ v * gain) @ v.T).reshape(x.shape)

    return denoise


def mixture(means: Sequence[float], std: float):
    """The denoiser of independent voxels from an even mixture of N(m, std^2)."""
    centres = torch.tensor(means, dtype=torch.float64)

    def denoise(x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        s = _wide(sigma, x)[..., None]
        m = centres.to(x)
        total = std**2 + s**2
        weight = (-((x[..., None] - m) ** 2) / (2 * total)).softmax(-1)
        return (weight * (std**2 * x[..., None] + s**2 * m) / total).sum(-1)

    return denoise


def finite(data: Tensor):
    """The denoiser of a uniform draw from the images `data` (N, C, *spatial): a softmax over them."""

    def denoise(x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        points = data.to(x).flatten(1)
        distance = torch.cdist(x.flatten(1), points, compute_mode="donot_use_mm_for_euclid_dist").square()
        weight = (-distance / (2 * sigma.to(x).reshape(-1, 1) ** 2)).softmax(1)
        return (weight @ points).reshape(x.shape)

    return denoise


def categorical(probabilities: Tensor):
    """The denoiser of one-hot labels drawn voxel by voxel with `probabilities` (C,); x is (B, C, *spatial)."""

    def denoise(x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        prior = probabilities.to(x).log().reshape(1, -1, *[1] * (x.ndim - 2))
        return (prior + x / _wide(sigma, x) ** 2).softmax(1)

    return denoise


class Enumerated:
    """Label maps of a few voxels with any prior: Bayes by listing all K^N of them.

    `gaussian` and `discrete` are the exact denoisers of the two processes, x (B, K, M, N): M independent maps in a case.
    """

    def __init__(self, prior: Tensor, classes: int, voxels: int) -> None:  # (K^N,), the last voxel changes fastest
        self.prior, self.classes = prior.double() / prior.sum(), classes
        self.maps = torch.tensor(list(itertools.product(range(classes), repeat=voxels)))  # (K^N, N)
        self.x0 = torch.nn.functional.one_hot(self.maps, classes).mT.double()  # (K^N, K, N)
        self.marginals = self.mean(self.prior)  # (K, N)

    def mean(self, weight: Tensor) -> Tensor:
        """The mean one-hot map under weights (..., K^N); (..., K, N)."""
        return (weight @ self.x0.flatten(1)).unflatten(-1, self.x0.shape[1:])

    def shares(self, maps: Tensor) -> Tensor:
        """How often each label map is found among `maps` (..., N); (K^N,), sum 1."""
        place = (maps * self.classes ** torch.arange(maps.shape[-1] - 1, -1, -1)).sum(-1)
        return place.flatten().bincount(minlength=len(self.prior)) / place.numel()

    def posterior(self, evidence: Tensor) -> Tensor:
        """The weight of every label map, (B, M, K^N), from the log likelihood of every label at every voxel."""
        return (self.prior.log() + evidence.movedim(1, -2).flatten(-2) @ self.x0.flatten(1).T).softmax(-1)

    def gaussian(self, x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        evidence = x.double() / _wide(sigma, x) ** 2  # |x - x0|^2 / (2 sigma^2), without what all labels have in common
        evidence = torch.where(_wide(sigma, x).isinf(), 0.0, evidence)
        return self.mean(self.posterior(evidence)).movedim(-2, 1).to(x)

    def discrete(self, x: Tensor, survival: Tensor, cond=None) -> Tensor:
        a = _wide(survival, x)
        evidence = (a * x.double() + (1 - a) / self.classes).log()  # ln q(x_t | x0 = k), which is symmetric
        return self.mean(self.posterior(evidence)).movedim(-2, 1).to(x)
