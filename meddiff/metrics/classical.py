"""The denoisers that everybody has: what a learned one has to beat. They come from scikit-image, extra `compare`."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np


def available() -> bool:
    """Whether scikit-image and PyWavelets are installed: `pip install 'meddiff[compare]'`."""
    return find_spec("skimage") is not None and find_spec("pywt") is not None


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means (Buades et al. 2005) of white noise `sigma`, in `image`'s unit; any number of axes, float32."""
    from skimage.restoration import denoise_nl_means

    clean = denoise_nl_means(image, patch_size=3, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True)
    return clean.astype(np.float32)


def wavelet(image: np.ndarray, sigma: float) -> np.ndarray:
    """Wavelet shrinkage by BayesShrink (Chang et al. 2000) of white noise `sigma`, in `image`'s unit; float32."""
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(image, sigma=sigma, method="BayesShrink", rescale_sigma=False).astype(np.float32)


DENOISERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "non-local means": non_local_means,
    "wavelet": wavelet,
}
