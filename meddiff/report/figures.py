"""Pictures of what a model does, as PNG: grids of images, the forward and the reverse process, sets side by side."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

METADATA = {"Software": "meddiff"}  # without it matplotlib writes its own version, and the bytes change with it


def view(image: Tensor) -> np.ndarray:
    """One channel of an image (C, *spatial) as a picture: a slice upright, or the three middle planes of a volume.

    Model axes are RAS: the picture shows the patient's left on its left, front and head on top.
    """
    array = image[0].float().cpu().numpy()
    if array.ndim == 2:
        return array.T[::-1]
    planes = [array.take(n // 2, axis=i).T[::-1] for i, n in enumerate(array.shape)]
    height = max(p.shape[0] for p in planes)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 0)), constant_values=-1) for p in planes]
    return np.concatenate(padded, axis=1)


def mosaic(images: Tensor, columns: int) -> np.ndarray:
    """The pictures of images (n, C, *spatial) in rows of `columns`, a line between them; values -1 to 1."""
    return tiled([view(image) for image in images], columns)


def tiled(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in rows of `columns`, a line between them; values -1 to 1."""
    framed = [np.pad(picture, 1, constant_values=-1) for picture in pictures]
    framed += [np.full_like(framed[0], -1)] * (-len(framed) % columns)
    rows = [np.concatenate(framed[i : i + columns], axis=1) for i in range(0, len(framed), columns)]
    return np.concatenate(rows)


def save_mosaic(path: Path, images: Tensor, columns: int, zoom: int = 2) -> None:
    """A PNG of a mosaic, -1 black and 1 white, each voxel `zoom` pixels wide."""
    save_grey(path, mosaic(images, columns), zoom)


def save_grey(path: Path, picture: np.ndarray, zoom: int = 1) -> None:
    """A PNG of a picture, -1 black and 1 white, each value `zoom` pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.imsave(path, picture.repeat(zoom, 0).repeat(zoom, 1), cmap="gray", vmin=-1, vmax=1, metadata=METADATA)


def save_panels(path: Path, panels: Sequence[tuple[str, Tensor]], columns: int) -> None:
    """Titled mosaics side by side, for instance samples, held-out images and nearest training images."""
    pictures = [(title, mosaic(images, columns)) for title, images in panels]
    height, width = pictures[0][1].shape
    size = 5.0
    figure, axes = plt.subplots(
        1, len(pictures), figsize=(size * len(pictures), size * height / width + 0.4), squeeze=False
    )
    for axis, (title, picture) in zip(axes[0], pictures, strict=True):
        axis.imshow(picture, cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    figure.tight_layout()
    save_figure(figure, path)


def save_process(path: Path, title: str, rows: Sequence[tuple[str, Sequence[Tensor]]], labels: Sequence[str]) -> None:
    """One row of pictures a stage list, a column a noise level: how an image becomes noise, or noise an image."""
    count = len(labels)
    figure, axes = plt.subplots(len(rows), count, figsize=(1.5 * count, 1.6 * len(rows) + 0.5), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        for axis, image in zip(line, images, strict=True):
            picture = view(image)
            spread = max(1.0, float(np.abs(picture).max()) * 0.6)
            axis.imshow(picture, cmap="gray", vmin=-spread, vmax=spread)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def save_figure(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure, and close it; its folder is made when it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata=METADATA)
    plt.close(figure)
