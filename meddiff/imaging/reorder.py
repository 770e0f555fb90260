"""One grid of voxels in two index orders: from the axes that a computation liked to those of a file."""

import numpy as np

from meddiff.errors import GeometryError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume


def reordered(
    volume: Volume,
    grid: Geometry,
    tolerance_mm: float = 0.01,  # how far a voxel's centre may lie from the one it becomes
    *,
    part: bool = False,  # whether the volume may cover a part of the grid; the rest is 0
) -> np.ndarray:
    """The volume's voxels in the index order of the grid, (*grid.shape); nothing is interpolated.

    GeometryError where the voxels are not the grid's: another spacing, place, direction or size.
    """
    own = volume.geometry
    turn = np.rint(np.linalg.solve(grid.affine, own.affine))[:3, :3].astype(int)
    if not np.array_equal(turn @ turn.T, np.eye(3)):
        raise _other(own, grid, "their axes or voxel sizes differ")
    last = np.array(np.meshgrid(*[(0, n - 1) for n in own.shape], indexing="ij")).reshape(3, -1)  # (3, 8) corners
    mm = own.affine[:3, :3] @ last + own.affine[:3, 3:]
    index = np.rint(np.linalg.solve(grid.affine, np.vstack([mm, np.ones(8)])))
    off = float(np.linalg.norm((grid.affine @ index)[:3] - mm, axis=0).max())
    if off > tolerance_mm:
        raise _other(own, grid, f"voxels lie {off:.3g} mm beside each other, {tolerance_mm:g} mm is allowed")
    axes = [int(axis) for axis in np.abs(turn).argmax(1)]
    array = volume.array.transpose(axes)
    array = np.flip(array, tuple(g for g in range(3) if turn[g, axes[g]] < 0))
    start, stop = index[:3].min(1).astype(int), index[:3].max(1).astype(int) + 1
    if tuple(stop - start) != array.shape:
        raise _other(own, grid, "their spacings differ")
    if tuple(start) == (0, 0, 0) and array.shape == grid.shape:
        return array
    if not part or start.min() < 0 or (stop > grid.shape).any():
        raise _other(own, grid, f"it covers {start.tolist()} to {(stop - 1).tolist()} of the grid's indices")
    whole = np.zeros(grid.shape, array.dtype)
    whole[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = array
    return whole


def _other(own: Geometry, grid: Geometry, why: str) -> GeometryError:
    return GeometryError(
        f"{own!r} is not on the grid {grid!r}: {why}. Bring the volume back to the grid of its source, or give its own."
    )
