"""A whole scan in front of a model, and the model's maps back on the scan's grid."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor

from meddiff.config import Config, SampleConfig
from meddiff.data.transforms import AXES, LinearIntensityd, placing, put_back, to_meta
from meddiff.diffusion.compose import Empty, windowed
from meddiff.diffusion.denoiser import Denoiser
from meddiff.engines.card import Card
from meddiff.errors import ImageError
from meddiff.imaging.volume import Volume

WHOLE = 1.25  # an axis up to this many times `data.size` is taken whole, a longer one in windows


class Seen:
    """A scan as a model sees it: on the model's grid, in model units, as a batch of slices or as one volume.

    images  (B, 1, *size)  B slices for a 2D model, 1 volume for a 3D one; not clipped, padded to `data.size` with -1
    scale, offset          model = scale * value + offset
    """

    def __init__(self, volume: Volume, config: Config, card: Card) -> None:
        _check(volume, card)
        self.data, self.dims = config.data, config.network.spatial_dims
        self.compose = placing(config.data)
        self.image: MetaTensor = self.compose({"image": to_meta(volume)})["image"]  # (1, I, J, K)
        low, high = LinearIntensityd(("image",), config.data).limits(self.image)
        self.scale, self.offset = 2 / (high - low), -1 - 2 * low / (high - low)
        self.grid = tuple(self.image.shape[1:])
        self.images = self.batch(self.image.as_tensor() * self.scale + self.offset, outside=-1.0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of the model's grid."""
        return float(abs(np.linalg.det(np.asarray(self.image.affine, dtype=np.float64)[:3, :3]))) / 1000

    def batch(self, maps: Tensor, outside: float) -> Tensor:
        """Maps (C, I, J, K) of the model's grid as the model takes them, (B, C, *size)."""
        parts = maps.movedim(1 + AXES[self.data.axis], 0) if self.dims == 2 else maps.unsqueeze(0)
        return F.pad(
            parts, [side for before, after in reversed(self._padding()) for side in (before, after)], value=outside
        )

    def unbatch(self, parts: Tensor) -> Tensor:
        """The inverse of `batch`: (C, I, J, K)."""
        for axis, ((before, _), n) in enumerate(zip(self._padding(), self._size(), strict=True), 2):
            parts = parts.narrow(axis, before, n)
        return parts.movedim(0, 1 + AXES[self.data.axis]) if self.dims == 2 else parts[0]

    def back(self, maps: Tensor) -> np.ndarray:
        """Maps (C, I, J, K) of the model's grid on the scan's own, linearly interpolated."""
        return put_back(self.compose, self.image, maps.float().cpu()).numpy()

    def windowed(self, denoise: Denoiser, sample: SampleConfig, empty: Empty | None = None) -> Denoiser:
        """`denoise` for `images`: as it is, or in windows of `data.size` along the axes that are much longer.

        `sample.batch` windows are seen side by side, and those that are `empty` not at all; without windows, images are those.
        """
        trained, size = self.data.size, self.images.shape[2:]
        patch = [n if n <= WHOLE * p else p for n, p in zip(size, trained, strict=True)]
        if empty is None and all(n == p for n, p in zip(size, patch, strict=True)):
            return denoise
        return windowed(denoise, patch, [min(sample.overlap, p // 2) for p in patch], sample.batch, empty)

    def _size(self) -> Sequence[int]:
        return [n for axis, n in enumerate(self.grid) if self.dims == 3 or axis != AXES[self.data.axis]]

    def _padding(self) -> list[tuple[int, int]]:
        missing = [max(p - n, 0) for n, p in zip(self._size(), self.data.size, strict=True)]
        return [(m // 2, m - m // 2) for m in missing]


def in_batches(total: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `total` items."""
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]


def _check(volume: Volume, card: Card) -> None:
    if not np.isfinite(volume.array).all():
        raise ImageError(
            f"{int((~np.isfinite(volume.array)).sum())} voxels are NaN or infinite; a model needs numbers. Repair the scan."
        )
    learned = (card.space.modality, card.space.unit)
    if "OT" not in (volume.modality, learned[0]) and (volume.modality, volume.unit) != learned:
        raise ImageError(
            f"The scan is {volume.modality} in {volume.unit}, the model learned from {learned[0]} in {learned[1]}. "
            "Give scans of that kind, or a run that was trained on yours."
        )
