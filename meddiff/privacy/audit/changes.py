"""The changes under which a copy must still be found: drawn parameters, and an act that follows from them.

Lengths scale with the image: 4 voxels of 64 are a sixteenth. Strength 1 is the strongest change that is planted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, prod

import torch
from torch import Generator, Tensor
from torch.nn import functional

NOISE = 0.1  # standard deviation, model units; 5 % of the range
GAMMA, GAIN, OFFSET = 0.4, 0.2, 0.05  # of intensities on 0 to 1: 2 ** +-GAMMA as exponent, 1 +- GAIN as factor
BLUR = 1 / 64  # standard deviation, of the axis
SHIFT = 1 / 16  # of the axis, each way
ROTATION_DEG = 10.0
ZOOM = 0.08
SLICE_OFFSET = 1 / 24  # of the axis that slices are counted along, each way


@dataclass(frozen=True)
class Placement:
    """Where each image goes."""

    shift: Tensor  # (n, dims), shares of the axes
    rotation_deg: Tensor  # (n, 1) in the plane, (n, 3) about each axis
    zoom: Tensor  # (n,)
    flip: Tensor  # (n,) bool, of the first axis: left to right


def changes(dims: int, slice_axis: int) -> dict[str, Callable[[Tensor, Generator], Tensor]]:
    """The planted changes by name, each a function of images (n, 1, *size) and a generator.

    In 3D a copy may also lie some slices off along `slice_axis`.
    """
    named = {
        "exact": lambda x, g: x,
        "noise": lambda x, g: noisy(x, torch.ones(len(x)), g),
        "intensity": lambda x, g: regraded(x, torch.ones(len(x)), g),
        "blur": lambda x, g: blurred(x, torch.full((len(x),), BLUR)),
        "shift": lambda x, g: placed_at(x, _still(x, shift=_uniform(g, len(x), dims) * SHIFT)),
        "rotation": lambda x, g: placed_at(x, _still(x, rotation_deg=_angles(g, len(x), dims) * ROTATION_DEG)),
        "flip": lambda x, g: x.flip(2),
        "zoom": lambda x, g: placed_at(x, _still(x, zoom=1 + _uniform(g, len(x), 1)[:, 0] * ZOOM)),
        "combined": lambda x, g: combined(x, torch.ones(len(x)), g),
    }
    if dims == 3:

        def offset(x: Tensor, g: Generator) -> Tensor:
            shift = torch.zeros(len(x), 3)
            shift[:, slice_axis] = _uniform(g, len(x), 1)[:, 0] * SLICE_OFFSET
            return placed_at(x, _still(x, shift=shift))

        named["slice offset"] = offset
    return named


def combined(images: Tensor, strength: Tensor, g: Generator) -> Tensor:
    """All changes at once, each image (n, 1, *size) with its own draws, scaled by its own strength (n,); half are flipped."""
    n, dims = len(images), images.ndim - 2
    wide = strength[:, None]
    placement = Placement(
        shift=_uniform(g, n, dims) * SHIFT * wide,
        rotation_deg=_angles(g, n, dims) * ROTATION_DEG * wide,
        zoom=1 + _uniform(g, n, 1)[:, 0] * ZOOM * strength,
        flip=torch.rand(n, generator=g) < 0.5,
    )
    moved = placed_at(images, placement)
    graded = regraded(blurred(moved, BLUR * strength * torch.rand(n, generator=g)), strength, g)
    return noisy(graded, strength * torch.rand(n, generator=g), g)


def noisy(images: Tensor, strength: Tensor, g: Generator) -> Tensor:
    """White noise."""
    return images + NOISE * _wide(strength, images) * torch.randn(images.shape, generator=g)


def regraded(images: Tensor, strength: Tensor, g: Generator) -> Tensor:
    """Another gamma, gain and offset, clipped to the range."""
    gamma, gain, offset = (_wide(u * strength, images) for u in _uniform(g, 3, len(images)))
    unit = ((images.clamp(-1, 1) + 1) / 2) ** (2 ** (GAMMA * gamma))
    return ((unit * (1 + GAIN * gain) + OFFSET * offset).clamp(0, 1)) * 2 - 1


def blurred(images: Tensor, width: Tensor) -> Tensor:
    """A Gaussian of standard deviation `width` (n,), a share of the axis; the edges wrap around."""
    size = images.shape[2:]
    axes = tuple(range(2, images.ndim))
    spectrum = torch.fft.rfftn(images, dim=axes)
    square: Tensor | float = 0.0
    for i, n in enumerate(size):
        frequency = torch.fft.rfftfreq(n) if i == len(size) - 1 else torch.fft.fftfreq(n)
        square = square + (n * frequency).square().view(-1, *[1] * (len(size) - 1 - i))  # of waves an axis
    return torch.fft.irfftn(spectrum * torch.exp(-2 * pi**2 * _wide(width, images) ** 2 * square), s=size, dim=axes)


def placed_at(images: Tensor, placement: Placement) -> Tensor:
    """The images moved about their centre, linearly interpolated, the edges continued."""
    n, dims, size = len(images), images.ndim - 2, images.shape[2:]
    turn = torch.zeros(n, dims, dims)
    upper = torch.triu_indices(dims, dims, 1)
    turn[:, upper[0], upper[1]] = torch.deg2rad(placement.rotation_deg)
    matrix = torch.linalg.matrix_exp(turn - turn.mT) / placement.zoom.view(n, 1, 1)
    matrix[placement.flip, :, 0] *= -1
    half = torch.tensor(size, dtype=torch.float32)
    matrix = matrix * half / half[:, None]  # from shares of the axes to voxels and back
    theta = torch.cat([matrix, -2 * placement.shift[..., None]], dim=2)
    backwards = torch.arange(dims - 1, -1, -1)  # torch counts axes of a grid from the last one
    theta = theta[:, backwards][:, :, [*backwards.tolist(), dims]]
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def reduced(images: Tensor, most: int) -> Tensor:
    """The images with at most `most` voxels an axis, averaged over what becomes one voxel."""
    size = [min(n, most) for n in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    parts = images.split(max(1, 2**26 // prod(images.shape[2:])))
    return torch.cat([functional.interpolate(part, size=size, mode="area") for part in parts])


def _still(images: Tensor, **moves: Tensor) -> Placement:
    n, dims = len(images), images.ndim - 2
    nothing = {
        "shift": torch.zeros(n, dims),
        "rotation_deg": torch.zeros(n, dims * (dims - 1) // 2),
        "zoom": torch.ones(n),
        "flip": torch.zeros(n, dtype=torch.bool),
    }
    return Placement(**{**nothing, **moves})


def _angles(g: Generator, n: int, dims: int) -> Tensor:
    """(n, 1) or (n, 3), so that the whole angle is at most 1."""
    planes = dims * (dims - 1) // 2
    return _uniform(g, n, planes) / planes**0.5


def _uniform(g: Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=g) - 1


def _wide(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.ndim - 1))
