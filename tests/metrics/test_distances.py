import pytest
import torch

from meddiff.errors import ConfigError
from meddiff.metrics.distances import nearest, sliced_wasserstein, spectrum_distance


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
