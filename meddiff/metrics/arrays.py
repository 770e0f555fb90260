"""What every metric does first: numpy arrays from any device, on one grid, with values that can be compared."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from meddiff.errors import GeometryError, MetricError

Array = np.ndarray | Tensor


def as_array(values: Array) -> np.ndarray:
    """The values in numpy; floating-point tensors become float64, which numpy can always hold."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def on_one_grid(one: Array, other: Array, names: str = "prediction and reference") -> tuple[np.ndarray, np.ndarray]:
    """Both in numpy; GeometryError if their shapes differ or they hold no voxel."""
    a, b = as_array(one), as_array(other)
    if a.shape != b.shape or a.size == 0:
        raise GeometryError(
            f"{names} have the shapes {a.shape} and {b.shape}; a metric compares voxel by voxel. Bring both to one grid."
        )
    return a, b


def as_mask(values: np.ndarray) -> np.ndarray:
    """A boolean array; MetricError if there is anything but 0 and 1 in it, such as a probability or several labels."""
    if values.dtype == bool:
        return values
    inside = values == 1
    if not (inside | (values == 0)).all():
        raise MetricError(
            f"A mask holds 0 and 1; found values from {values.min()} to {values.max()}. "
            "Compare a label map with one number, or a probability with a threshold, first."
        )
    return inside


def finite(values: np.ndarray, name: str) -> np.ndarray:
    """The values as float64; MetricError if one is NaN or infinite."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise MetricError(
            f"The {name} has {count} of {values.size} values that are NaN or infinite. Look for where they arose; "
            "no metric may leave them out."
        )
    return values


def spacing_of(spacing_mm: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """The voxel sizes as float64, one an axis; GeometryError unless there are as many as axes, all positive."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (len(shape),) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise GeometryError(
            f"An image of shape {tuple(shape)} needs {len(shape)} positive voxel sizes in mm; "
            f"found {tuple(spacing_mm)}."
        )
    return spacing
