"""The repairs that a user may ask for: slices made up between their neighbours, and a gantry tilt undone."""

import numpy as np
from scipy.ndimage import shift

from meddiff.imaging.dicom_pixels import FILL
from meddiff.imaging.dicom_stack import Stack, reach


def repaired(stack: Stack, planes: np.ndarray) -> np.ndarray:
    """The planes (slices, rows, columns) on the grid of the stack, (K, J, I) float32; as they are where nothing is to repair.

    A tilt is undone by moving each plane within itself, linear between its pixels; where no pixel is, there is FILL. A missing
    slice is the mean of its neighbours, weighted by their distance.
    """
    if not stack.repairs:
        return planes
    columns, rows, slices = stack.geometry.shape
    fill = FILL.get(stack.slices[0].unit, 0.0)
    whole = np.full((slices, rows, columns), fill, dtype=np.float32)
    low, _ = reach(stack.shift, slices - 1)
    for k, plane in zip(stack.index.tolist(), planes, strict=True):
        room = np.full((rows, columns), fill, dtype=np.float32)
        room[: plane.shape[0], : plane.shape[1]] = plane
        moved = stack.shift * k - low
        whole[k] = shift(room, moved, order=1, mode="constant", cval=fill) if moved.any() else room
    for below, above in zip(stack.index[:-1].tolist(), stack.index[1:].tolist(), strict=True):
        for k in range(below + 1, above):
            weight = (k - below) / (above - below)
            whole[k] = (1 - weight) * whole[below] + weight * whole[above]
    return whole
