import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from meddiff.errors import GeometryError, MetricError
from meddiff.metrics.fidelity import mae, psnr, ssim

HU = (-200.0, 400.0)


def pair(shape, noise=30.0, seed=0):
    rng = np.random.default_rng(seed)
    clean = rng.uniform(*HU, shape)
    return clean + noise * rng.normal(size=shape), clean


def by_hand(x, y, extent):
    """SSIM of two images (I, J), window by window, as Wang et al. 2004 write it."""
    w = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    w = np.outer(w, w) / w.sum() ** 2
    windows = [np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y)]
    mx, my = ((w * v).sum((2, 3)) for v in windows)
    dx, dy = (v - m[..., None, None] for v, m in zip(windows, (mx, my), strict=True))
    vx, vy, cov = ((w * p).sum((2, 3)) for p in (dx * dx, dy * dy, dx * dy))
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    return np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


@pytest.mark.parametrize("offset", [6.0, -60.0])
def test_psnr_of_a_constant_error_is_its_share_of_the_range(offset):
    _, clean = pair((8, 9))
    assert psnr(clean + offset, clean, HU) == pytest.approx(20 * np.log10(600 / abs(offset)))


def test_psnr_is_that_of_the_definition():
    noisy, clean = pair((8, 9, 10))
    expected = 10 * np.log10(600**2 / np.mean((noisy - clean) ** 2))
    assert psnr(torch.from_numpy(noisy), torch.from_numpy(clean), HU) == pytest.approx(expected, rel=1e-12)


def test_psnr_of_identical_images_is_its_cap_and_nothing_exceeds_it():
    _, clean = pair((8, 9))
    assert psnr(clean, clean, HU) == 100
    assert psnr(clean + 1e-6, clean, HU) == 100
    assert psnr(clean + 0.01, clean, HU) == pytest.approx(20 * np.log10(600 / 0.01))


def test_ssim_is_that_of_the_paper():
    noisy, clean = pair((20, 24))
    assert ssim(noisy, clean, HU) == pytest.approx(by_hand(noisy - HU[0], clean - HU[0], 600), rel=1e-10)


@pytest.mark.parametrize("shape", [(20, 24), (14, 12, 13)])
def test_ssim_is_that_of_monai(shape):
    noisy, clean = pair(shape)
    x, y = (torch.from_numpy((v - HU[0]) / 600)[None, None] for v in (noisy, clean))
    n = len(shape)
    expected = compute_ssim_and_cs(x, y, n, [11] * n, [1.5] * n)[0].mean().item()
    assert ssim(noisy, clean, HU) == pytest.approx(expected, rel=1e-4)  # MONAI's is float32


def test_ssim_is_one_for_equals_symmetric_and_falls_with_noise():
    noisy, clean = pair((16, 17, 18))
    assert ssim(clean, clean, HU) == pytest.approx(1, abs=1e-12)
    assert ssim(noisy, clean, HU) == pytest.approx(ssim(clean, noisy, HU), rel=1e-12)
    noisier = pair((16, 17, 18), 90.0)[0]
    assert ssim(noisier, clean, HU) < ssim(noisy, clean, HU) < 1


def test_psnr_and_ssim_do_not_depend_on_the_unit():
    noisy, clean = pair((16, 17))
    unit = (HU[0] * 0.1 + 7, HU[1] * 0.1 + 7)
    for metric in (psnr, ssim):
        assert metric(noisy * 0.1 + 7, clean * 0.1 + 7, unit) == pytest.approx(metric(noisy, clean, HU), rel=1e-9)


def test_the_window_shrinks_to_short_axes():
    noisy, clean = pair((16, 17))
    assert ssim(noisy[..., None], clean[..., None], HU) == pytest.approx(ssim(noisy, clean, HU), rel=1e-12)
    thin_noisy, thin_clean = pair((16, 17, 2))
    slices = [ssim(thin_noisy[..., i], thin_clean[..., i], HU) for i in range(2)]
    assert ssim(thin_noisy, thin_clean, HU) == pytest.approx(np.mean(slices), rel=1e-12)
    small = pair((4, 5))
    assert -1 <= ssim(*small, HU) < 1


def test_error_is_in_the_units_of_the_image_and_inside_the_body():
    clean = np.zeros((6, 6))
    restored = clean + 500
    body = np.zeros((6, 6), bool)
    body[2:4] = True
    restored[body] = -12.0
    assert mae(restored, clean, body) == 12
    with pytest.raises(MetricError, match="body mask is empty"):
        mae(restored, clean, np.zeros((6, 6)))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(metric):
    _, clean = pair((12, 12))
    with pytest.raises(MetricError, match="restored image has 144 of 144"):
        metric(clean * np.nan, clean, HU)
    with pytest.raises(GeometryError, match="one grid"):
        metric(clean[1:], clean, HU)
    with pytest.raises(MetricError, match="low < high"):
        metric(clean, clean, (1.0, 1.0))
