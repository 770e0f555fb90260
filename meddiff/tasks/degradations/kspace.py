"""Degradations of MR raw data: the image's k-space is changed, and the magnitude of what comes back is taken.

The signal is x + 1, so that -1 is none. Phase errors of a real scan are not modelled.
"""

import math

import torch
from torch import Generator, Tensor

from meddiff.degradation_config import Gibbs, Motion
from meddiff.errors import ConfigError
from meddiff.tasks.degradations.measured import Measured, Parameters, Units, everywhere, uniform, whole


def _frequencies(x: Tensor, axis: int) -> Tensor:
    """Cycles a voxel along one spatial axis, shaped to multiply k-space."""
    n = x.shape[1 + axis]
    return torch.fft.fftfreq(n, device=x.device, dtype=x.dtype).view(-1, *[1] * (x.ndim - 2 - axis))


def _transformed(x: Tensor) -> Tensor:
    return torch.fft.fftn(x + 1, dim=tuple(range(1, x.ndim)))


def _magnitude(k: Tensor) -> Tensor:
    return torch.fft.ifftn(k, dim=tuple(range(1, k.ndim))).abs() - 1


def draw_gibbs(settings: Gibbs, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`keep`, the share of lines that were measured, per spatial axis."""
    axes = range(dims) if settings.axes is None else settings.axes
    if max(axes, default=0) >= dims:
        raise ConfigError(f"gibbs: axes {list(axes)} name an axis that images of {dims} axes do not have.")
    return {"keep": [uniform(*settings.keep, generator) if a in axes else 1.0 for a in range(dims)]}


def gibbs(x: Tensor, parameters: Parameters) -> Measured:
    """The image of the central `keep` of k-space lines, per axis; every line for a share of 1."""
    k = _transformed(x)
    for axis, keep in enumerate(parameters["keep"]):
        k = k * (_frequencies(x, axis).abs() <= keep / 2)
    return everywhere(_magnitude(k))


def draw_motion(settings: Motion, dims: int, units: Units | None, generator: Generator) -> Parameters:
    """`axis` of phase encoding; `times` of the moves, as shares of the scan; `shifts` in voxels, one more than moves.

    The shifts are relative to where the patient lay when the centre of k-space was measured.
    """
    if settings.axis is not None and settings.axis >= dims:
        raise ConfigError(f"motion: axis {settings.axis} does not exist in images of {dims} axes; use 0 to {dims - 1}.")
    axis = whole(0, dims - 1, generator) if settings.axis is None else settings.axis
    times = sorted(uniform(0, 1, generator) for _ in range(whole(*settings.moves, generator)))
    size = uniform(*settings.shift, generator)
    shifts = size * torch.randn(len(times) + 1, dims, generator=generator, dtype=torch.float64)
    shifts[sum(t <= 0.5 for t in times)] = 0
    return {"axis": axis, "times": times, "shifts": shifts.tolist()}


def motion(x: Tensor, parameters: Parameters) -> Measured:
    """Lines are measured in order of their frequency; those after a move carry the phase of the shifted image."""
    frequency = _frequencies(x, parameters["axis"])
    times = torch.tensor(parameters["times"], device=x.device, dtype=x.dtype)
    position = torch.bucketize(frequency + 0.5, times, right=True)  # which shift each line was measured at
    shifts = torch.tensor(parameters["shifts"], device=x.device, dtype=x.dtype)
    turns = torch.zeros_like(x[:1])
    for axis in range(x.ndim - 1):
        turns = turns + _frequencies(x, axis) * shifts[position, axis]
    return everywhere(_magnitude(_transformed(x) * torch.exp(-2j * math.pi * turns)))
