"""MedMNIST: one .npz with train/val/test images (uint8, 2D or 3D) and labels; its own splits are kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meddiff.data import medmnist
from meddiff.data.layouts.found import Channel, Found, refuse
from meddiff.data.manifest import SPLITS
from meddiff.errors import ImageError
from meddiff.imaging.dicom import Refusal


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folder itself, where there is an .npz in it."""
    return [folder] if any(_is_npz(path) for path in files) else []


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """One case, and one patient, per row: MedMNIST does not say which rows are one patient's."""
    found: list[Found] = []
    refused: list[Refusal] = []
    for path in filter(_is_npz, files):
        try:
            found += _rows(path)
        except ImageError as error:
            refused += refuse([path], "colour" if "colour" in str(error) else "not-medmnist", str(error))
    return found, refused


def _rows(path: Path) -> list[Found]:
    shapes = medmnist.image_shapes(path)
    found = []
    for split in SPLITS:
        if split in shapes:
            geometry = medmnist.row_geometry(shapes[split])
            labels = medmnist.labels(path, split, shapes[split][0])
            found += [
                Found(
                    "medmnist",
                    f"{path.stem}/{split}/{row}",
                    (Channel("OT", (path,), array=f"{split}_images", index=row),),
                    classes=_classes(labels[row]),
                    split=split,
                    geometry=geometry,
                )
                for row in range(shapes[split][0])
            ]
    return found


def _classes(row: np.ndarray) -> dict[str, str]:
    """(L,) integers -> {"label": "3"}, or one entry per finding where a row has several."""
    names = ["label"] if len(row) == 1 else [f"label_{n}" for n in range(len(row))]
    return {name: str(value) for name, value in zip(names, row.tolist(), strict=True)}


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"
