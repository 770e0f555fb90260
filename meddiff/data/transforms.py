"""From a scan to model units and back: the MONAI Compose of a config, and its inverse for geometry *and* intensity.

Model units are -1 to 1. The grid is RAS-ordered along the scanner's own axes (an oblique scan stays oblique).
"""

from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import GaussianFilter
from monai.transforms import Compose, InvertibleTransform, MapTransform, Orientationd, RandAffined, RandFlipd
from monai.utils import TraceKeys

from meddiff.config import DataConfig
from meddiff.data.resample import Resampled
from meddiff.errors import ConfigError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume
from meddiff.intensity_config import Window

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # the RAS axis that a slice is perpendicular to


def spacing_by_axis(data: DataConfig) -> tuple[float, float, float]:
    """`data.spacing_mm` for the three RAS axes; NaN (keep what is there) between slices that name no spacing."""
    if len(data.spacing_mm) == 3:
        return data.spacing_mm[0], data.spacing_mm[1], data.spacing_mm[2]
    spacing = list(data.spacing_mm)
    spacing.insert(AXES[data.axis], float("nan"))
    return spacing[0], spacing[1], spacing[2]


def preprocessing(data: DataConfig) -> Compose:
    """RAS order, low-pass, spacing, intensity of "image"; the low-pass is the one act without an inverse."""
    return Compose([*placing(data).transforms, LinearIntensityd(("image",), data)])


def placing(data: DataConfig, *, label: bool = False) -> Compose:
    """RAS order, low-pass and spacing of "image"; a label map keeps its numbers: the nearest voxel, no low-pass."""
    spacing, keys = spacing_by_axis(data), ("image",)
    return Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=None),
            *([] if label else [LowPassd(keys, spacing)]),
            Resampled(keys, spacing, nearest=label),
        ]
    )


def to_meta(volume: Volume) -> MetaTensor:
    """The volume as MONAI takes it: (1, I, J, K) with its affine in RAS mm."""
    return MetaTensor(_in_rows(volume.array)[None], affine=torch.from_numpy(volume.geometry.affine.copy()))


def _in_rows(array: np.ndarray) -> torch.Tensor:
    """The array with its last axis contiguous; scans come with the first one so, and are turned round plane by plane."""
    if array.flags.f_contiguous and array.ndim == 3:
        i, j, k = array.shape
        planes = torch.from_numpy(array).permute(2, 1, 0).reshape(k, j * i)  # a view
        rows = planes.t().contiguous()  # of two axes torch turns blocks, which takes half the time
        return rows.view(j, i, k).transpose(0, 1).contiguous()
    return torch.from_numpy(np.ascontiguousarray(array))


def to_volume(image: MetaTensor, modality: str, unit: str) -> Volume:
    """The inverse of `to_meta`."""
    array = image.detach().cpu().numpy()[0]
    return Volume(array, Geometry(array.shape, np.asarray(image.affine, dtype=np.float64)), modality, unit)


def undo(compose: Compose, data: dict[str, MetaTensor], key: str, values: torch.Tensor) -> MetaTensor:
    """`values` (1, *preprocessed grid), in model units, on the grid and in the unit of the scan that `data` came from."""
    image = data[key].clone()
    image.copy_(values)
    return compose.inverse({**data, key: image})[key]


def put_back(compose: Compose, image: MetaTensor, values: torch.Tensor) -> MetaTensor:
    """`values` (C, *grid after `placing`) on the grid that the scan of `image` came on."""
    placed_values = MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
    return compose.inverse({"image": placed_values})["image"]


class LowPassd(MapTransform):
    """A Gaussian before coarser sampling, so that fine detail becomes an average and not a false pattern.

    The width takes a voxel's own blur to that of the new spacing: sigma = sqrt(ratio^2 - 1) / 2 voxels.
    """

    def __init__(self, keys: tuple[str, ...], spacing_mm: tuple[float, float, float]) -> None:
        super().__init__(keys)
        self.spacing_mm = np.array(spacing_mm)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            ratio = np.nan_to_num(self.spacing_mm / image.pixdim.numpy(), nan=1.0)
            sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / 2
            if (sigma > 0.25).any():
                padded = [int(4 * s) + 1 for s in sigma]
                widths = [w for p in reversed(padded) for w in (p, p)]
                wide = torch.nn.functional.pad(image.as_tensor()[None], widths, mode="replicate")
                smooth = GaussianFilter(3, [max(float(s), 1e-3) for s in sigma])(wide)[0]
                inside = tuple(slice(p, p + n) for p, n in zip(padded, image.shape[1:], strict=True))
                smooth = smooth[(slice(None), *inside)]
                result[key] = MetaTensor(smooth, meta=image.meta, applied_operations=image.applied_operations)
        return result


class LinearIntensityd(MapTransform, InvertibleTransform):
    """model = scale * value + offset, clipped to -1..1; scale and offset are recorded, and undone by `inverse`."""

    def __init__(self, keys: tuple[str, ...], data: DataConfig) -> None:
        super().__init__(keys)
        self.intensity = data.intensity

    def limits(self, image: MetaTensor) -> tuple[float, float]:
        """The values that become -1 and 1."""
        if isinstance(self.intensity, Window):
            return self.intensity.low, self.intensity.high
        low, high = np.percentile(image.numpy(), [self.intensity.low, self.intensity.high])
        if not low < high:
            raise ConfigError(
                f"data.intensity: percentiles {self.intensity.low:g} and {self.intensity.high:g} of this volume are both "
                f"{low:g}; widen them, or remove the case (an empty scan?)."
            )
        return float(low), float(high)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            low, high = self.limits(result[key])
            scale = 2 / (high - low)
            record = {"scale": scale, "offset": -1 - scale * low}
            scaled = result[key] * record["scale"]
            result[key] = cast(MetaTensor, scaled.add_(record["offset"]).clamp_(-1, 1))
            self.push_transform(result[key], extra_info=record)
        return result

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        result = dict(data)
        for key in self.key_iterator(result):
            record = self.pop_transform(result[key])[TraceKeys.EXTRA_INFO]
            result[key] = cast(MetaTensor, (result[key] - record["offset"]) / record["scale"])
        return result


def intensity_record(image: MetaTensor) -> tuple[float, float]:
    """Scale and offset that `preprocessing` used on this image."""
    record = image.applied_operations[-1][TraceKeys.EXTRA_INFO]
    return float(record["scale"]), float(record["offset"])


def augmentation(data: DataConfig, dims: int) -> Compose | None:
    """Random flips, rotations, zooms and shifts of (1, *size) under "image", and alike under "given" and "label" if there.

    None where the config asks for none.
    Parameters are drawn by MONAI from the seed of `set_random_state`; edges are continued, never filled with grey.
    """
    augment, keys = data.augment, ("image", "given", "label")
    acts: list[MapTransform] = []
    if augment.flip:
        if dims == 2 and data.axis == "sagittal":
            raise ConfigError(
                "data.augment.flip is left to right, which a sagittal slice does not have; set it to false."
            )
        acts.append(RandFlipd(keys, prob=0.5, spatial_axis=0, allow_missing_keys=True))
    if augment.rotate_deg or augment.zoom or augment.shift_mm:
        angle = float(np.deg2rad(augment.rotate_deg))
        spacing = [s for i, s in enumerate(spacing_by_axis(data)) if dims == 3 or i != AXES[data.axis]]
        acts.append(
            RandAffined(
                keys,
                prob=1.0,
                rotate_range=[(-angle, angle)] * (3 if dims == 3 else 1),
                scale_range=[(-augment.zoom, augment.zoom)] * dims,
                translate_range=[(-augment.shift_mm / s, augment.shift_mm / s) for s in spacing],
                mode=["bilinear", "bilinear", "nearest"],
                padding_mode="border",
                allow_missing_keys=True,
            )
        )
    return Compose(acts) if acts else None


def placed(array: np.ndarray, spacing_mm: tuple[float, float, float], axis: str, **kind: Any) -> Volume:
    """A generated array (*size) as a volume: RAS, centred on 0; a 2D one is a single slice perpendicular to `axis`."""
    if array.ndim == 2:
        array = np.expand_dims(array, AXES[axis])
    return Volume(array, Geometry.make(array.shape, spacing_mm), **kind)
