import pytest
import torch

from meddiff.errors import ConfigError
from meddiff.metrics.distances import nearest, sliced_wasserstein


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
