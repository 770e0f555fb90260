import pytest
import torch

from meddiff.errors import ConfigError, MetricError
from meddiff.metrics.distances import (
    _enlarged,
    laplacian_pyramid,
    nearest,
    patch_wasserstein,
    sliced_wasserstein,
    spectrum_distance,
)


def images(n, seed=0, shift=0.0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_a_set_is_at_no_distance_from_itself_in_any_order():
    a = images(50)
    assert sliced_wasserstein(a, a.flip(0)) == pytest.approx(0, abs=1e-6)


def test_sets_a_constant_apart_are_that_far_apart():
    a = images(50)
    assert sliced_wasserstein(a, a + 0.3, projections=20_000) == pytest.approx(0.3, rel=0.05)


def test_two_gaussians_are_as_far_apart_as_their_standard_deviations():
    assert sliced_wasserstein(images(4000), 1.5 * images(4000, 1)) == pytest.approx(0.5, rel=0.05)


def test_unequal_numbers_are_compared_by_their_quantiles():
    a = images(40)
    assert sliced_wasserstein(a, a.repeat(3, 1, 1, 1)) == pytest.approx(0, abs=1e-6)


def test_images_of_two_sizes_are_refused():
    with pytest.raises(ConfigError, match="one size"):
        sliced_wasserstein(images(4), torch.zeros(4, 1, 4, 4))


def test_nearest_finds_the_copy():
    a = images(20)
    assert nearest(a[[3, 17]] + 0.01, a).tolist() == [3, 17]


@pytest.mark.parametrize("size", [(16, 16), (8, 12, 10)])
def test_the_spectrum_of_a_scaled_set_is_twenty_decibel_of_its_factor_away(size):
    images = torch.randn(6, 1, *size, generator=torch.Generator().manual_seed(0))
    assert spectrum_distance(images, images) == 0
    assert spectrum_distance(10 * images, images) == pytest.approx(20, abs=1e-3)
    assert spectrum_distance(images, 10 * images) == pytest.approx(20, abs=1e-3)
    assert spectrum_distance(images + 5, images) == pytest.approx(0, abs=1e-2)


def test_a_blurred_set_is_further_away_than_another_draw_of_the_same_texture():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(64, 1, 16, 16, generator=generator) for _ in range(2))
    blurred = torch.nn.functional.avg_pool2d(two, 3, 1, 1)
    assert spectrum_distance(one, two) < 0.5
    assert spectrum_distance(one, blurred) > 5


@pytest.mark.parametrize(("size", "scales"), [((64, 64), (64, 32, 16)), ((35, 48), (35, 18)), ((32, 40, 33), (32, 16))])
def test_a_pyramid_sums_to_its_image(size, scales):
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    levels = laplacian_pyramid(image)
    assert tuple(level.shape[2] for level in levels) == scales
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = level + _enlarged(whole, level)
    torch.testing.assert_close(whole, image, rtol=0, atol=1e-5)


def test_a_constant_image_has_no_detail_at_any_scale():
    *detail, rest = laplacian_pyramid(torch.full((1, 1, 64, 64), 0.7))
    assert max(float(level.abs().max()) for level in detail) < 1e-6
    torch.testing.assert_close(rest, torch.full_like(rest, 0.7))


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_texture_of_half_and_of_half_more_the_amplitude_is_as_far_from_the_reference(factor):
    """Patches times k are |k - 1| standard deviations apart in every direction, on average over directions exactly."""
    a = torch.randn(20, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert patch_wasserstein(a, a) == [0.0, 0.0]
    assert patch_wasserstein(factor * a, a, 2000) == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_blur_is_seen_at_the_finest_level_and_a_shift_at_the_last():
    draw = torch.Generator().manual_seed(0)
    reference, other = torch.randn(2, 40, 1, 32, 32, generator=draw)
    blurred = torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    fine, coarse = patch_wasserstein(blurred, reference)
    assert fine > 0.5
    assert coarse < fine / 2
    fine, coarse = patch_wasserstein(other + 1, reference)
    assert fine < 0.05
    assert coarse > 0.5


def test_images_without_detail_or_smaller_than_a_patch_have_no_texture():
    with pytest.raises(MetricError, match="constant"):
        patch_wasserstein(images(2), torch.zeros(2, 1, 8, 8))
    with pytest.raises(MetricError, match=r"patches of 7 voxels an axis; found \(6, 9\)"):
        patch_wasserstein(torch.zeros(2, 1, 6, 9), torch.zeros(2, 1, 6, 9))
