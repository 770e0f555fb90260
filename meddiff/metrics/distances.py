"""Distances between two sets of images."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from meddiff.errors import ConfigError, MetricError
from meddiff.seeds import generator

COARSEST = 16  # voxels of the shortest axis; a pyramid ends before it would be shorter
PATCH = 7  # voxels an axis
PATCHES = 128  # of an image, at every level


def sliced_wasserstein(
    a: Tensor,  # (n, C, *spatial)
    b: Tensor,  # (m, C, *spatial)
    projections: int = 2000,
    seed: int = 0,
) -> float:
    """Sliced 2-Wasserstein distance between two sets of images, in image units per voxel.

    The root mean square, over random directions, of the one-dimensional 2-Wasserstein distance between the two
    projected sets (Bonneel et al. 2015, eq. 8). Directions have unit length, so sets that differ by a constant c in every
    voxel are c apart. Two samples of one distribution are apart too, less so the larger they are: compare only equal n.
    """
    _of_one_size(a, b)
    to = directions(a.shape[1:], projections, seed)
    return projected_wasserstein(*(projected(v, to) for v in (a, b)))


def directions(shape: Sequence[int], projections: int, seed: int = 0) -> Tensor:
    """Random directions of unit length in the space of images (C, *spatial); (voxels, projections)."""
    drawn = torch.randn(prod(shape), projections, generator=generator(seed, "projections"))
    return drawn / drawn.norm(dim=0)


def projected(images: Tensor, to: Tensor) -> Tensor:
    """Where images (n, C, *spatial) lie along directions, (n, projections)."""
    return images.flatten(1).float().cpu() @ to


def projected_wasserstein(one: Tensor, other: Tensor) -> float:  # (n, projections), (m, projections)
    """`sliced_wasserstein` of two sets that are projected already."""
    q = (torch.arange(max(len(one), len(other))) + 0.5) / max(len(one), len(other))
    return float((_quantiles(one, q) - _quantiles(other, q)).square().mean().sqrt())


def _quantiles(values: Tensor, q: Tensor) -> Tensor:
    """The empirical quantile function of each column at `q`, (len(q), columns)."""
    ordered = values.sort(dim=0).values
    return ordered[(q * len(ordered)).long().clamp(max=len(ordered) - 1)]


def patch_wasserstein(
    a: Tensor,  # (n, C, *spatial)
    b: Tensor,  # (m, C, *spatial), the reference
    projections: int = 512,
    seed: int = 0,
) -> list[float]:
    """Sliced 2-Wasserstein distance between the textures of two sets of images, at every level of detail, finest first.

    That of Karras et al. 2018, section 5: each image becomes a Laplacian pyramid, of every level 128 patches of 7 voxels an
    axis are taken at random places, and the distance is that of the two sets of patches. Levels are in units of the
    standard deviation of the reference's patches there, for both sets: one that is too smooth is as far away as one that is
    too rough (their program divides each set by its own, and would not see the amount of detail). MetricError where the
    images are smaller than a patch, or the reference is constant.
    """
    _of_one_size(a, b)
    apart = []
    for level, (one, other) in enumerate(zip(laplacian_pyramid(a), laplacian_pyramid(b), strict=True)):
        ours, theirs = (_patches(images, (seed, "patches", level)) for images in (one, other))
        mean, std = theirs.mean(), theirs.std()
        if not std > 0:
            raise MetricError("The reference images hold no detail to compare with: they are constant.")
        apart.append(sliced_wasserstein((ours - mean) / std, (theirs - mean) / std, projections, seed))
    return apart


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """The detail of images (n, C, *spatial) at each scale, finest first, and what is left (Burt and Adelson 1983).

    Each scale has half the voxels an axis of the one before; the last is not below `COARSEST`. To go back, the sum of a
    scale and the next, enlarged by `_enlarged`, is taken from the last on.
    """
    images, levels = images.float().cpu(), []
    while min(images.shape[2:]) >= 2 * COARSEST:
        coarse = _blurred(images)[_every_second(images)]
        levels.append(images - _enlarged(coarse, images))
        images = coarse
    return [*levels, images]


def _blurred(images: Tensor) -> Tensor:
    """Along every axis the mean of five neighbours, weighted 1, 4, 6, 4, 1; images are mirrored past their ends."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    for axis in range(2, images.ndim):
        lines = images.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (2, 2), mode="reflect")
        images = F.conv1d(flat, taps.view(1, 1, 5)).view(lines.shape).movedim(-1, axis)
    return images


def _enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    """Every second voxel of an image of the size of `like` holds one of `coarse`; those between are filled in."""
    fine = torch.zeros_like(like)
    fine[_every_second(like)] = coarse
    return _blurred(fine) * 2 ** (like.ndim - 2)


def _every_second(images: Tensor) -> tuple[slice, ...]:
    """The index of every second voxel an axis."""
    return (slice(None), slice(None), *[slice(None, None, 2)] * (images.ndim - 2))


def _patches(images: Tensor, purpose: tuple[int, str, int]) -> Tensor:
    """`PATCHES` patches of every image (n, C, *spatial) at places that follow from `purpose`, (n * PATCHES, C, PATCH, ...)."""
    spatial = images.shape[2:]
    if min(spatial) < PATCH:
        raise MetricError(
            f"The texture of images is told from patches of {PATCH} voxels an axis; found {tuple(spatial)}."
        )
    draw = generator(*purpose)
    starts = [torch.randint(n - PATCH + 1, (len(images), PATCHES), generator=draw) for n in spatial]
    for axis in range(2, images.ndim):
        images = images.unfold(axis, PATCH, 1)  # (n, C, *places, *patch), without a copy
    chosen = images.movedim(1, len(spatial) + 1)[(torch.arange(len(images))[:, None], *starts)]
    return chosen.flatten(0, 1)  # (n * PATCHES, C, *patch)


def spectrum_distance(a: Tensor, b: Tensor) -> float:  # (n, C, *spatial), (m, C, *spatial)
    """How far the texture of two sets of images is apart, in dB: 0 is the same power at every scale.

    The root mean square, over spatial frequencies up to Nyquist's, of the ratio of the sets' mean power spectra, averaged
    over directions (radially) and in decibel. A blurred set has too little at high frequencies, a noisy one too much.
    """
    _of_one_size(a, b)
    one, other = (_radial_power(v.float().cpu()) for v in (a, b))
    return float((10 * (one / other).log10()).square().mean().sqrt())


def _radial_power(images: Tensor) -> Tensor:
    """Mean power in rings of frequency, without the mean of the image; as many rings as half the shortest axis."""
    axes = tuple(range(2, images.ndim))
    power = torch.fft.fftn(images, dim=axes).abs().square().mean((0, 1))
    grids = torch.meshgrid(*(torch.fft.fftfreq(n) for n in images.shape[2:]), indexing="ij")
    radius = sum(g.square() for g in grids) ** 0.5  # cycles per voxel; 0.5 is Nyquist's
    rings = min(images.shape[2:]) // 2
    ring = (radius * 2 * rings).round().long()
    inside = (ring >= 1) & (ring <= rings)
    total = torch.zeros(rings).index_add_(0, ring[inside] - 1, power[inside])
    return total / torch.bincount(ring[inside] - 1, minlength=rings) + torch.finfo(torch.float32).tiny


def _of_one_size(a: Tensor, b: Tensor) -> None:
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(f"Two sets of images need one size; found {tuple(a.shape[1:])} and {tuple(b.shape[1:])}.")


def nearest(images: Tensor, among: Tensor) -> Tensor:
    """For each of `images` (n, C, *spatial), the index of the image in `among` with the smallest squared distance."""
    return torch.cdist(images.flatten(1).float(), among.flatten(1).float()).argmin(1)
