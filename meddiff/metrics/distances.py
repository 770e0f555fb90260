"""Distances between two sets of images."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from meddiff.errors import ConfigError
from meddiff.seeds import generator


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
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(f"Two sets of images need one size; found {tuple(a.shape[1:])} and {tuple(b.shape[1:])}.")
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


def spectrum_distance(a: Tensor, b: Tensor) -> float:  # (n, C, *spatial), (m, C, *spatial)
    """How far the texture of two sets of images is apart, in dB: 0 is the same power at every scale.

    The root mean square, over spatial frequencies up to Nyquist's, of the ratio of the sets' mean power spectra, averaged
    over directions (radially) and in decibel. A blurred set has too little at high frequencies, a noisy one too much.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(f"Two sets of images need one size; found {tuple(a.shape[1:])} and {tuple(b.shape[1:])}.")
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


def nearest(images: Tensor, among: Tensor) -> Tensor:
    """For each of `images` (n, C, *spatial), the index of the image in `among` with the smallest squared distance."""
    return torch.cdist(images.flatten(1).float(), among.flatten(1).float()).argmin(1)
