"""Pictures of results: three planes of a scan with what was found in it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from meddiff.config import DataConfig
from meddiff.data.transforms import AXES
from meddiff.engines.restore import Clean
from meddiff.engines.segment import Segmented
from meddiff.imaging.volume import Volume
from meddiff.report.cases import Picture, save_cases
from meddiff.report.figures import view

SHOWN = 3  # slices


def save_segmented(path: Path, volume: Volume, result: Segmented, data: DataConfig) -> None:
    """Rows of slices: the scan, the label map over it, the entropy."""
    labels = {name: k for k, name in enumerate(result.names, 1)}
    channel = result.probability.argmax(0)
    axis, limits = data.axis, _limits(volume.array, data)
    rows = []
    for name, at in _slices(volume, axis, (channel > 0).astype(float)):
        image, label, entropy = (plane(a, at, volume, axis) for a in (volume.array, channel, result.entropy))
        rows.append(
            (
                name,
                [
                    Picture("scan", image, limits),
                    Picture("label", image, limits, label=label),
                    Picture("entropy", entropy, (0, 1), "magma"),
                ],
            )
        )
    save_cases(path, rows, labels)


def case_pictures(volume: Volume, reference: Volume, result: Segmented, data: DataConfig) -> list[Picture]:
    """The slice with most labels: scan, reference, prediction, entropy."""
    axis, limits = data.axis, _limits(volume.array, data)
    along = _orientation(volume)[0][AXES[axis]]
    at = int((reference.array > 0).sum(tuple(a for a in range(3) if a != along)).argmax())
    maps = (volume.array, reference.array, result.probability.argmax(0), result.entropy)
    image, truth, label, entropy = (plane(a, at, volume, axis) for a in maps)
    return [
        Picture("scan", image, limits),
        Picture("reference", image, limits, label=truth),
        Picture("prediction", image, limits, label=label),
        Picture("entropy", entropy, (0, 1), "magma"),
    ]


def restored_pictures(clean: Tensor, degraded: Tensor, results: Mapping[str, Tensor]) -> list[Picture]:
    """The image in the middle of a case, in model units: clean, degraded, and the results of the models."""
    at = len(clean) // 2
    shown = {"clean": clean, "degraded": degraded[:, :1], **{n: r for n, r in results.items() if n != "degraded"}}
    return [Picture(name.replace(", ", "\n"), view(images[at]), (-1, 1)) for name, images in shown.items()]


def reconstructed_pictures(image: Tensor, decoded: Tensor) -> list[Picture]:
    """The slice in the middle of a case (B, 1, *spatial), in model units: image, reconstruction, and their difference."""
    at = len(image) // 2
    a, b = view(image[at]), view(decoded[at])
    return [
        Picture("image", a, (-1, 1)),
        Picture("reconstruction", b, (-1, 1)),
        Picture("difference", b - a, (-0.2, 0.2), "coolwarm"),
    ]


def save_restored(path: Path, volume: Volume, result: Clean, data: DataConfig) -> None:
    """Rows of slices: the scan, the restored one, what was taken away, the standard deviation of the samples."""
    axis, limits = data.axis, _limits(result.image.array, data)
    taken = volume.array - result.image.array
    reach = float(np.percentile(np.abs(taken), 99.5)) or 1.0
    rows = []
    for name, at in _slices(volume, axis, volume.array.clip(*limits) - limits[0]):
        pictures = [
            Picture("scan", plane(volume.array, at, volume, axis), limits),
            Picture("restored", plane(result.image.array, at, volume, axis), limits),
            Picture("residual", plane(taken, at, volume, axis), (-reach, reach), "coolwarm"),
        ]
        if result.std is not None:
            most = float(np.percentile(result.std.array, 99.5)) or 1.0
            pictures.append(Picture("std", plane(result.std.array, at, volume, axis), (0, most), "magma"))
        rows.append((name, pictures))
    save_cases(path, rows, {})


def plane(array: np.ndarray, at: int, volume: Volume, axis: str) -> np.ndarray:
    """Slice `at` along the scan's own axis nearest to `axis`, anterior or superior up, patient's right on the left."""
    order, signs = _orientation(volume)
    along = order[AXES[axis]]
    picture = np.take(array, at, axis=along)
    rest = [a for i, a in enumerate(order) if i != AXES[axis]]
    if rest[0] > rest[1]:
        picture = picture.T
    picture = np.flip(picture, tuple(i for i, a in enumerate(rest) if signs[a] < 0))
    return np.flip(picture.T, 0)


def _orientation(volume: Volume) -> tuple[list[int], np.ndarray]:
    """For R, A and S the array axis that runs nearest to it, and for every array axis its sign."""
    direction = volume.geometry.affine[:3, :3] / np.array(volume.geometry.spacing_mm)
    order: list[int] = []
    for row in np.abs(direction):
        order.append(int(np.argmax([-1 if a in order else v for a, v in enumerate(row)])))
    signs = np.empty(3)
    for i, a in enumerate(order):
        signs[a] = np.sign(direction[i, a])
    return order, signs


def _slices(volume: Volume, axis: str, weight: np.ndarray) -> list[tuple[str, int]]:
    """Slices spread over where `weight` is, at most `SHOWN`."""
    along = _orientation(volume)[0][AXES[axis]]
    mass = weight.sum(tuple(a for a in range(3) if a != along))
    cumulative = np.cumsum(mass) / max(float(mass.sum()), 1e-12)
    count = min(SHOWN, len(mass))
    at = sorted({int(np.searchsorted(cumulative, (i + 0.5) / count).clip(0, len(mass) - 1)) for i in range(count)})
    return [(f"slice {k}", k) for k in at]


def _limits(array: np.ndarray, data: DataConfig) -> tuple[float, float]:
    """What is shown as black and as white: the window that the model sees, where it is fixed."""
    if data.intensity.kind == "window":
        return data.intensity.low, data.intensity.high
    low, high = np.percentile(array, [1, 99.5])
    return float(low), float(high if high > low else low + 1)
