"""Intensities by tissue: does bone have the Hounsfield units of bone?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from meddiff.errors import MetricError
from meddiff.metrics.arrays import Array, finite, on_one_grid
from meddiff.metrics.bootstrap import around, resampled

RESAMPLES = 2000


@dataclass(frozen=True)
class Tissue:
    """What the voxels of one tissue in a set of images add up to, image by image; all (n,)."""

    voxels: np.ndarray
    total: np.ndarray  # of the intensities, in their unit
    squares: np.ndarray  # of the intensities

    def mean(self, often: np.ndarray) -> np.ndarray:
        """The mean intensity where image i counts often[..., i] times; NaN where nothing is drawn."""
        voxels = often @ self.voxels
        return np.divide(often @ self.total, voxels, out=np.full(voxels.shape, nan), where=voxels > 0)

    def std(self) -> float:
        """The standard deviation of the intensities."""
        every = np.ones(len(self.voxels))
        mean = float(self.mean(every))
        return float(np.sqrt(max(0.0, every @ self.squares / (every @ self.voxels) - mean**2)))


@dataclass(frozen=True)
class Difference:
    """One tissue in real and in synthetic images, in the unit of the images."""

    real: float  # mean intensity over all voxels
    synthetic: float
    difference: float  # synthetic less real
    low: float  # of the difference
    high: float
    real_std: float
    synthetic_std: float
    real_share: float  # of all voxels
    synthetic_share: float
    real_images: int  # that hold the tissue
    synthetic_images: int


def gather(images: Sequence[Array], labels: Sequence[Array], number: int) -> Tissue:
    """The voxels of one label in a set of images and label maps, each (*spatial)."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        values, numbers = on_one_grid(image, label, "image and label map")
        inside = finite(values, "image")[numbers == number]
        rows.append((inside.size, inside.sum(), np.square(inside).sum()))
    if not rows:
        raise MetricError("There is no image to measure a tissue in.")
    voxels, total, squares = np.array(rows, dtype=np.float64).T
    return Tissue(voxels, total, squares)


def compare_tissue(
    real: Tissue,
    synthetic: Tissue,
    voxels: tuple[int, int],  # of all real and of all synthetic images together
    groups: tuple[Sequence[str], Sequence[str]],  # whose each image is: patients, and samples
    seed: int = 0,
) -> Difference:
    """Mean intensities of a tissue, and their difference with a 95 % interval by resampling whole patients.

    MetricError where one of the sets has no voxel of it.
    """
    for name, tissue in (("real", real), ("synthetic", synthetic)):
        if not tissue.voxels.sum():
            raise MetricError(f"No {name} image holds a voxel of this tissue. Compare sets that have the same labels.")
    means = [float(t.mean(np.ones(len(t.voxels)))) for t in (real, synthetic)]
    drawn = [
        t.mean(resampled(own, RESAMPLES, seed, name).numpy().astype(np.float64))
        for name, t, own in zip(("real", "synthetic"), (real, synthetic), groups, strict=True)
    ]
    apart = drawn[1] - drawn[0]
    low, high = around(means[1] - means[0], apart[np.isfinite(apart)].tolist())
    return Difference(
        real=means[0],
        synthetic=means[1],
        difference=means[1] - means[0],
        low=low,
        high=high,
        real_std=real.std(),
        synthetic_std=synthetic.std(),
        real_share=float(real.voxels.sum() / voxels[0]),
        synthetic_share=float(synthetic.voxels.sum() / voxels[1]),
        real_images=int((real.voxels > 0).sum()),
        synthetic_images=int((synthetic.voxels > 0).sum()),
    )
