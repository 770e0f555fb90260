"""Unit-variance noise for the forward process, one random generator per case.

The theory of samplers (the score, the posterior mean as its equivalent) is that of Gaussian noise. Uniform and simplex
noise train and sample with the same code, but their samples carry no such guarantee.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import gamma, pi, sqrt

import torch
from torch import Generator, Tensor


def gaussian(shape: Sequence[int], generator: Generator) -> Tensor:
    """Independent N(0, 1)."""
    return torch.randn(tuple(shape), generator=generator)


def uniform(shape: Sequence[int], generator: Generator) -> Tensor:
    """Independent, uniform in (-sqrt 3, sqrt 3): mean 0, variance 1."""
    return (torch.rand(tuple(shape), generator=generator) * 2 - 1) * sqrt(3)


def simplex(
    shape: Sequence[int],  # (C, *spatial)
    generator: Generator,
    wavelength: float = 64.0,  # voxels, of the first octave
    octaves: int = 6,
    persistence: float = 0.8,  # amplitude of an octave over that of the one before
) -> Tensor:
    """Simplex noise in octaves, as used for anomaly detection by Wyatt et al. 2022 (AnoDDPM), with their defaults.

    Smooth over many voxels. Mean 0 and variance 1 at every voxel over draws; one image may be lighter or darker.
    """
    channels, *spatial = shape
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in spatial), indexing="ij"), -1)
    total = torch.zeros(channels, *spatial)
    for k in range(octaves):
        for c in range(channels):
            total[c] += persistence**k * _simplex_octave(grid * 2**k / wavelength, generator)
    return total / sqrt(sum(persistence ** (2 * k) for k in range(octaves)))


def _simplex_octave(points: Tensor, generator: Generator) -> Tensor:
    """Simplex noise (Perlin 2001; Gustavson 2005) at `points` (*spatial, d), unit variance over draws; (*spatial)."""
    d = points.shape[-1]
    skew, unskew = (sqrt(d + 1) - 1) / d, (1 - 1 / sqrt(d + 1)) / d
    table = torch.randperm(256, generator=generator)
    gradients = torch.nn.functional.normalize(torch.randn(256, d, generator=generator), dim=1)
    points = points + 256 * torch.rand(d, generator=generator)  # a random place makes every voxel alike over draws
    skewed = points + skew * points.sum(-1, keepdim=True)
    base = skewed.floor()
    rank = (skewed - base).argsort(-1).argsort(-1)  # the simplex a point lies in: its axes by size
    total = torch.zeros(points.shape[:-1])
    for corner in range(d + 1):
        vertex = base + (rank >= d - corner)
        offset = points - (vertex - unskew * vertex.sum(-1, keepdim=True))
        index = torch.zeros(points.shape[:-1], dtype=torch.long)
        for axis in range(d):
            index = table[(index + vertex[..., axis].long()) % 256]
        kernel = (0.5 - offset.square().sum(-1)).clamp(min=0) ** 4
        total += kernel * (gradients[index] * offset).sum(-1)
    return total / _simplex_std(d)


@cache
def _simplex_std(d: int) -> float:
    """Standard deviation of the sum above: lattice density sqrt(d + 1) times the integral of kernel^2 |offset|^2 / d."""
    sphere = 2 * pi ** (d / 2) / gamma(d / 2)
    beta = gamma(d / 2 + 1) * gamma(9) / gamma(d / 2 + 10)
    return sqrt(sqrt(d + 1) * sphere / d * beta / 2 * 0.5 ** (d / 2 + 9))


NOISES: dict[str, Callable[[Sequence[int], Generator], Tensor]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "simplex": simplex,
}


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device. A GPU fetches them when it gets there, and nobody waits for it: they lie in pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def draw(kind: str, shape: Sequence[int], generators: Sequence[Generator], like: Tensor | None = None) -> Tensor:
    """Noise of unit variance, one case a generator: (len(generators), *shape), on the device and in the dtype of `like`.

    Drawn on the CPU, so that a case has the same noise on every device and in every batch.
    """
    noise = torch.stack([NOISES[kind](shape, g) for g in generators])
    return noise if like is None else sent(noise.to(like.dtype), like.device)
