"""What a degraded image is, and what its parameters may be."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

Parameters: TypeAlias = dict[str, Any]  # plain numbers, words and lists: survives JSON


@dataclass(frozen=True)
class Units:
    """What a degradation in physical units must know of the images."""

    limits_hu: tuple[float, float]  # the values that are -1 and 1 in model units
    spacing_mm: tuple[float, ...]  # per spatial axis


@dataclass(frozen=True, eq=False)
class Measured:
    """A degraded image and what may be known about it."""

    image: Tensor  # (C, *spatial), model units, not clipped
    sigma: float  # noise standard deviation, model units; of each part of a Rician signal; NaN where there is no such number
    mask: Tensor  # (1, *spatial), 1 where measured, 0 where not


def everywhere(image: Tensor, sigma: float = float("nan")) -> Measured:
    """Measured at every voxel."""
    return Measured(image, sigma, torch.ones_like(image[:1]))


def uniform(low: float, high: float, generator: Generator) -> float:
    """One even draw between two limits."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def log_uniform(low: float, high: float, generator: Generator) -> float:
    """One draw that is even in its logarithm."""
    return low * (high / low) ** uniform(0, 1, generator)


def whole(low: int, high: int, generator: Generator) -> int:
    """One even draw of the whole numbers from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def seed(generator: Generator) -> int:
    """A seed that JSON readers with double precision keep exactly."""
    return whole(0, 2**53 - 1, generator)


def noise(x: Tensor, seed: int) -> Tensor:
    """Unit white noise of the shape, dtype and device of x; drawn on the CPU, so the same on every device."""
    return torch.randn(x.shape, generator=Generator().manual_seed(seed)).to(x)
