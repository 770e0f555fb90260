"""Hand-made features of whole images, as radiomics defines them: intensities, grey-level co-occurrence, detail by scale.

Definitions of the Image Biomarker Standardisation Initiative (Zwanenburg et al. 2020), computed for many images at once over
the fixed range of model units, -1 to 1. The whole image is the region of interest: air counts, since its share is anatomy.
"""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from meddiff.errors import MetricError

LEVELS = 32  # grey levels, of fixed width
DISTANCES = (1, 4)  # voxels, of co-occurrence
SCALES = (1, 2, 4)  # voxels, of detail
BODY = -0.9  # model units; above it is body, below air
FIRST_ORDER = ("mean", "std", "skewness", "kurtosis", "p10", "p50", "p90", "entropy", "body")
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "joint_entropy")
NAMES = (
    *FIRST_ORDER,
    *(f"{name}_{d}" for d in DISTANCES for name in TEXTURE),
    *(f"detail_{s}" for s in SCALES),
)


def radiomics(images: Tensor) -> Tensor:  # (n, 1, *spatial), model units, 8 voxels an axis at least
    """The features `NAMES` of each image, (n, 24) float64. MetricError for images that are too small, or have NaN."""
    if images.shape[1] != 1 or min(images.shape[2:]) < 2 * max(SCALES):
        raise MetricError(
            f"Radiomic features take images of one channel and at least {2 * max(SCALES)} voxels an axis; found the shape "
            f"{tuple(images.shape[1:])}."
        )
    values = images.double().cpu()
    if not torch.isfinite(values).all():
        raise MetricError("The images hold NaN or infinite values; look for where they arose.")
    levels = ((values.clamp(-1, 1) + 1) / 2 * LEVELS).long().clamp(max=LEVELS - 1)[:, 0]  # (n, *spatial)
    parts = [_first_order(values, levels)]
    parts += [_texture(_cooccurrence(levels, d)) for d in DISTANCES]
    return torch.cat([*parts, _detail(values)], dim=1)


def _first_order(values: Tensor, levels: Tensor) -> Tensor:
    """Statistics of the intensities alone, (n, 9); skewness and kurtosis of a constant image are 0."""
    v = values.flatten(1)
    mean, std = v.mean(1), v.std(1, correction=0)
    z = (v - mean[:, None]) / std.clamp(min=1e-9)[:, None]
    kurtosis = (z**4).mean(1) - 3 * (std > 1e-9)  # excess: 0 for a Gaussian
    quantiles = v.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=v.dtype), dim=1)
    ones = torch.ones_like(v) / v.shape[1]
    histogram = torch.zeros(len(v), LEVELS, dtype=v.dtype).scatter_add_(1, levels.flatten(1), ones)
    return torch.stack(
        [mean, std, (z**3).mean(1), kurtosis, *quantiles, _entropy(histogram), (v > BODY).double().mean(1)], dim=1
    )


def _entropy(p: Tensor) -> Tensor:
    """In bits, of probabilities (n, k)."""
    return -torch.special.xlogy(p, p).sum(1) / torch.log(torch.tensor(2.0))


def _cooccurrence(levels: Tensor, distance: int) -> Tensor:
    """Symmetric co-occurrence matrices (n, LEVELS, LEVELS) of grey levels (n, *spatial), over all directions together.

    Haralick et al. 1973: how often two levels are `distance` voxels apart, along every axis and diagonal.
    """
    n, dims = len(levels), levels.ndim - 1
    counts = torch.zeros(n, LEVELS * LEVELS, dtype=torch.float64)
    for step in product((-1, 0, 1), repeat=dims):
        if step <= (0,) * dims:
            continue  # its opposite is there
        one, other = (_moved(levels, [sign * s * distance for s in step]) for sign in (-1, 1))
        pairs = (one * LEVELS + other).flatten(1)
        counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=torch.float64))
    matrix = counts.view(n, LEVELS, LEVELS)
    matrix = matrix + matrix.mT
    return matrix / matrix.sum((1, 2), keepdim=True)


def _moved(levels: Tensor, by: Sequence[int]) -> Tensor:
    """What of an image is still inside after a move, (n, *smaller)."""
    inside: tuple = tuple(slice(max(0, b), n + min(0, b)) for b, n in zip(by, levels.shape[1:], strict=True))
    return levels[(slice(None), *inside)]


def _texture(p: Tensor) -> Tensor:
    """What `TEXTURE` names of co-occurrence matrices (n, LEVELS, LEVELS); the correlation of a constant image is 1."""
    i = torch.arange(LEVELS, dtype=torch.float64)
    apart = i[:, None] - i
    mean = (p.sum(2) @ i)[:, None]  # (n, 1); the matrix is symmetric
    variance = (p.sum(2) * (i - mean) ** 2).sum(1)
    covariance = (p * (i[:, None] - mean[..., None]) * (i - mean[..., None])).sum((1, 2))
    correlation = torch.where(variance > 1e-12, covariance / variance.clamp(min=1e-12), 1.0)
    sums = [(p * weight).sum((1, 2)) for weight in (apart**2, apart.abs(), 1 / (1 + apart**2), p)]
    return torch.stack([*sums, correlation, _entropy(p.flatten(1))], dim=1)


def _detail(values: Tensor) -> Tensor:
    """The root mean square of what is lost by averaging 2 voxels an axis, at each of `SCALES`: Haar wavelets, (n, 3)."""
    found = []
    pool = F.avg_pool2d if values.ndim == 4 else F.avg_pool3d
    for _ in SCALES:
        even: tuple = (..., *(slice(m // 2 * 2) for m in values.shape[2:]))
        coarse = pool(values[even], 2)
        lost = values[even] - F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        found.append(lost.flatten(1).square().mean(1).sqrt())
        values = coarse
    return torch.stack(found, dim=1)
