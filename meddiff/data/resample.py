"""Another spacing, one axis after the other.

What `monai.transforms.Spacingd` computes, to rounding. It samples at every voxel's three coordinates; where a volume's axes
are at right angles to each other, however oblique in the patient, interpolating each axis once is the same and much less
work. A sheared volume (a tilted gantry) is left to MONAI, which straightens it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Spacingd
from monai.utils import TraceKeys
from torch import Tensor

SAME = 1e-3  # voxels; positions that differ by less are taken for equal
RIGHT_ANGLE = 1e-4  # cosine between two axes up to which they count as being at right angles


class Resampled(MapTransform, InvertibleTransform):
    """MetaTensors (C, I, J, K) at `spacing_mm`, the first voxel staying in place; NaN keeps an axis.

    Positions beyond the last voxel take its value. `inverse` goes back to the grid that a volume came on.
    """

    def __init__(self, keys: tuple[str, ...], spacing_mm: Sequence[float], *, nearest: bool = False) -> None:
        super().__init__(keys)
        self.spacing_mm, self.nearest = np.array(spacing_mm), nearest
        mode = "nearest" if nearest else "bilinear"
        self.of_sheared = Spacingd(keys, pixdim=spacing_mm, mode=mode, padding_mode="border")

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            shape, affine = tuple(image.shape[1:]), np.asarray(image.affine, dtype=np.float64)
            own = np.linalg.norm(affine[:3, :3], axis=0)
            cosines = (affine[:3, :3] / own).T @ (affine[:3, :3] / own) - np.eye(3)
            if np.abs(cosines).max() > RIGHT_ANGLE:
                result[key] = cast(MetaTensor, self.of_sheared({key: image})[key])
                continue
            # voxels of the old grid from one new voxel to the next
            steps = np.nan_to_num(self.spacing_mm / own, nan=1.0)
            size = [round((n - 1) / step) + 1 for n, step in zip(shape, steps, strict=True)]
            moved = _on_grid(image, size, steps, affine @ np.diag([*steps, 1]), self.nearest)
            self.push_transform(moved, extra_info={"shape": shape, "affine": affine.tolist(), "steps": steps.tolist()})
            result[key] = moved
        return result

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            if result[key].applied_operations[-1][TraceKeys.CLASS_NAME] != type(self).__name__:
                result[key] = cast(MetaTensor, self.of_sheared.inverse({key: result[key]})[key])
                continue
            record = self.pop_transform(result[key])[TraceKeys.EXTRA_INFO]
            steps = 1 / np.array(record["steps"])
            result[key] = _on_grid(result[key], record["shape"], steps, np.array(record["affine"]), self.nearest)
        return result


def _on_grid(
    image: MetaTensor, size: Sequence[int], steps: np.ndarray, affine: np.ndarray, nearest: bool
) -> MetaTensor:
    values = image.as_tensor()
    for axis in np.argsort(-steps):  # what shrinks most first
        values = interpolated(values, int(axis) + 1, size[axis], float(steps[axis]), nearest=nearest)
    meta = {name: value for name, value in image.meta.items() if name != "affine"}  # MONAI warns of two affines
    where = torch.from_numpy(affine)
    return MetaTensor(values, affine=where, meta=meta, applied_operations=image.applied_operations)


def interpolated(values: Tensor, axis: int, size: int, step: float, *, nearest: bool = False) -> Tensor:
    """`values` at the positions 0, step, 2 step, ... of an axis, `size` of them, linearly or the nearest."""
    last = values.shape[axis] - 1
    if size == last + 1 and abs(step - 1) * last < SAME:
        return values
    at = (torch.arange(size, dtype=torch.float64) * step).clamp(max=last)
    if nearest:
        return values.index_select(axis, at.round().long())
    below = at.floor().long().clamp(max=max(last - 1, 0))
    above = (below + 1).clamp(max=last)
    weight = (at - below).to(values.dtype)
    if axis == values.ndim - 1:
        # no rows to move as a whole here; taking voxel by voxel is 9 times slower than a product
        rows = torch.arange(size)
        matrix = values.new_zeros(size, last + 1).index_put((rows, below), 1 - weight)
        return values @ matrix.index_put((rows, above), weight, accumulate=True).T
    weight = weight.view(-1, *[1] * (values.ndim - 1 - axis))
    return torch.lerp(values.index_select(axis, below), values.index_select(axis, above), weight)
