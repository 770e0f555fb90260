"""How near a restored image is to the clean one, one case at a time."""

import numpy as np
from scipy.ndimage import gaussian_filter

from meddiff.errors import MetricError
from meddiff.metrics.arrays import Array, as_mask, finite, on_one_grid

PSNR_CAP = 100.0  # dB: an error of 1e-5 of the range, less than what float16 or 12 bits can hold
WINDOW = 11  # voxels; with sigma 1.5 as in Wang et al. 2004
WINDOW_SIGMA = 1.5
K1, K2 = 0.01, 0.03


def psnr(restored: Array, reference: Array, value_range: tuple[float, float]) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10((high - low)^2 / mean squared error), over all voxels (*spatial).

    `value_range` is (low, high) of the units, fixed for all cases of a table: a range taken from each image would reward
    the brighter ones. Identical images give `PSNR_CAP`, 100 dB, and nothing gives more.
    """
    a, b = _pair(restored, reference)
    mean_square = float(np.square(a - b).mean())
    peak = _extent(value_range)
    lowest = peak**2 * 10 ** (-PSNR_CAP / 10)
    return float(10 * np.log10(peak**2 / max(mean_square, lowest)))


def ssim(restored: Array, reference: Array, value_range: tuple[float, float]) -> float:
    """Mean structural similarity of two images (*spatial), 2D or 3D; 1 for identical ones (Wang et al. 2004, eq. 13).

    Gaussian window of 11 voxels an axis with sigma 1.5, K1 = 0.01, K2 = 0.03, averaged where the whole window lies in the
    image. Intensities are counted from `low` of `value_range`, since the luminance term is meant for values from 0 up.
    On an axis shorter than 11 the window has the largest odd number of voxels that fits: a slice (I, J, 1) is 2D.
    """
    low, extent = value_range[0], _extent(value_range)
    x, y = ((v - low) / extent for v in _pair(restored, reference))
    radius = [min(WINDOW // 2, (n - 1) // 2) for n in x.shape]
    whole = tuple(slice(r, n - r) for r, n in zip(radius, x.shape, strict=True))

    def local(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, WINDOW_SIGMA, radius=radius)[whole]

    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    return float((luminance * (2 * cov + K2**2) / (var_x + var_y + K2**2)).mean())


def mae(restored: Array, reference: Array, body: Array) -> float:
    """Mean absolute error over the voxels of a mask `body` (*spatial), in the units of the images, for instance HU.

    Air around the patient is easy and would make any error small; MetricError where the mask is empty.
    """
    a, b = _pair(restored, reference)
    inside = as_mask(on_one_grid(body, a, "body mask and image")[0])
    if not inside.any():
        raise MetricError("The body mask is empty: there is no voxel to measure. Give one that covers the patient.")
    return float(np.abs(a - b)[inside].mean())


def _pair(restored: Array, reference: Array) -> tuple[np.ndarray, np.ndarray]:
    a, b = on_one_grid(restored, reference, "restored image and reference")
    return finite(a, "restored image"), finite(b, "reference")


def _extent(value_range: tuple[float, float]) -> float:
    low, high = value_range
    if not low < high or not np.isfinite([low, high]).all():
        raise MetricError(f"A range of values is (low, high) with low < high; found {value_range}.")
    return high - low
