"""Pictures of a set of synthetic cases: samples as PNG, and the grid of a set in whatever format it was written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.transforms import Orientation
from torch import Tensor

from meddiff.data.transforms import to_meta
from meddiff.engines.sets import Write, Written
from meddiff.imaging.dicom import read_series
from meddiff.imaging.dicom_label import read_label
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.volume import Volume
from meddiff.report.figures import save_grey, tiled, view
from meddiff.tasks.task import Space


def write_png(space: Space) -> Write:
    """A writer of `stem.png`, 8 bits over the intensities that the model was trained on, and `stem_label.png`."""

    def write(stem: Path, image: Volume, label: Volume | None, names: Mapping[str, int]) -> Written:
        path, label_path = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}_label.png")
        save_grey(path, _grey(image, space))
        if label is not None:
            save_grey(label_path, _levels(label, names))
        return Written((path,), None if label is None else label_path)

    return write


def save_grid(path: Path, cases: Sequence[Written], space: Space, names: Mapping[str, int], columns: int) -> None:
    """A PNG of written cases, the label map right of its image."""
    save_grey(path, tiled([_picture(case, space, names) for case in cases], columns), zoom=2)


def _picture(case: Written, space: Space, names: Mapping[str, int]) -> np.ndarray:
    if case.picture:
        shown = [2 * plt.imread(p)[..., 0] - 1 for p in (*case.image, *([case.label] if case.label else []))]
        return np.concatenate(shown, axis=1)
    image = read_series(case.image) if case.series else read_nifti(case.image[0], modality=space.modality)
    shown = [_grey(image, space)]
    if case.label:
        read = read_label(case.label, image.geometry)[0] if case.series else read_nifti(case.label, label=True)
        shown.append(_levels(read, names))
    return np.concatenate(shown, axis=1)


def _grey(image: Volume, space: Space) -> np.ndarray:
    return view(_upright(image) * space.scale + space.offset)


def _levels(label: Volume, names: Mapping[str, int]) -> np.ndarray:
    """Labels as grey levels, background black."""
    return view(_upright(label) / max(1, *names.values()) * 2 - 1)


def _upright(volume: Volume) -> Tensor:
    """The voxels (1, *size) in RAS order, a lone slice without its third axis."""
    turned = np.asarray(Orientation(axcodes="RAS", labels=None)(to_meta(volume)), np.float32)
    return torch.from_numpy(turned).squeeze()[None]
