"""How far the surfaces of two masks are apart, in millimetres, one case at a time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from meddiff.metrics.arrays import Array, as_mask, on_one_grid, spacing_of


class SurfaceDistances(NamedTuple):
    """Both in millimetres; see `surface_distances`."""

    hd95_mm: float
    assd_mm: float


def surface_distances(prediction: Array, reference: Array, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """HD95 and average symmetric surface distance of two masks (*spatial), 2D or 3D, `spacing_mm` one number an axis.

    A surface is the centres of the voxels of a mask with a neighbour across a face outside it or outside the image.
    HD95 is the larger of the two directed 95th percentiles of the distance to the other surface (as in MONAI); the
    average is over all points of both surfaces together (Heimann et al. 2009, as in MONAI). An axis of one voxel is no
    axis: a slice of shape (I, J, 1) is 2D.

    Both empty: 0 and 0. Exactly one empty: both are the diagonal of the image in mm, from corner to corner of the outer
    voxels, which no distance can exceed: a structure that was missed is the worst that can be, and stays in the mean.
    """
    a, b = map(as_mask, on_one_grid(prediction, reference))
    spacing = spacing_of(spacing_mm, a.shape)
    if np.array_equal(a, b):
        return SurfaceDistances(0.0, 0.0)
    if not (a.any() and b.any()):
        far = float(np.linalg.norm(spacing * a.shape))
        return SurfaceDistances(far, far)
    axes = np.array(a.shape) > 1
    one, other = (_surface(m.squeeze(), spacing[axes]) for m in (a, b))
    to_other, to_one = KDTree(other).query(one)[0], KDTree(one).query(other)[0]
    hd95 = max(np.percentile(to_other, 95), np.percentile(to_one, 95))
    return SurfaceDistances(float(hd95), float(np.concatenate([to_other, to_one]).mean()))


def surface_per_label(
    prediction: Array, reference: Array, labels: Mapping[str, int], spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Distances of each of `labels` (name -> number) in two label maps, as `{"hd95_mm/NAME": ..., "assd_mm/NAME": ...}`."""
    a, b = on_one_grid(prediction, reference)
    found = {name: surface_distances(a == number, b == number, spacing_mm) for name, number in labels.items()}
    return {f"{key}/{name}": value for name, one in found.items() for key, value in one._asdict().items()}


def _surface(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The points of a mask's surface, (n, axes) in mm from the first voxel."""
    return np.argwhere(mask & ~binary_erosion(mask)) * spacing
