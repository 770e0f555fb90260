"""Distances between two sets of images."""

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
    directions = torch.randn(a[0].numel(), projections, generator=generator(seed, "projections"))
    directions /= directions.norm(dim=0)
    q = (torch.arange(max(len(a), len(b))) + 0.5) / max(len(a), len(b))
    one, other = (_quantiles(v.flatten(1).float().cpu() @ directions, q) for v in (a, b))
    return float((one - other).square().mean().sqrt())


def _quantiles(values: Tensor, q: Tensor) -> Tensor:
    """The empirical quantile function of each column at `q`, (len(q), columns)."""
    ordered = values.sort(dim=0).values
    return ordered[(q * len(ordered)).long().clamp(max=len(ordered) - 1)]


def nearest(images: Tensor, among: Tensor) -> Tensor:
    """For each of `images` (n, C, *spatial), the index of the image in `among` with the smallest squared distance."""
    return torch.cdist(images.flatten(1).float(), among.flatten(1).float()).argmin(1)
