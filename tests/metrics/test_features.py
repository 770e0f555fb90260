import pytest
import torch
from monai.metrics.fid import compute_frechet_distance

from meddiff.errors import MetricError
from meddiff.metrics.features import Kernels, frechet, frechet_bias, kid


def normal(n, d=4, seed=0, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kid_is_the_mean_over_pairs_of_different_vectors_written_out():
    x, y = normal(7), normal(5, seed=1, mean=0.5)

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    same_x = [k(x[i], x[j]) for i in range(7) for j in range(7) if i != j]
    same_y = [k(y[i], y[j]) for i in range(5) for j in range(5) if i != j]
    both = [k(a, b) for a in x for b in y]
    expected = torch.stack(same_x).mean() + torch.stack(same_y).mean() - 2 * torch.stack(both).mean()
    assert kid(x, y) == pytest.approx(float(expected), rel=1e-12)


def test_kid_of_two_gaussians_is_that_of_their_moments():
    # in one dimension (xy + 1)^3 has the features x^3, sqrt 3 x^2, sqrt 3 x, 1: squared differences of the moments
    drawn = [kid(normal(300, 1, seed=i), normal(300, 1, seed=100 + i, mean=0.5)) for i in range(50)]
    assert sum(drawn) / 50 == pytest.approx(3 * 0.5**2 + 3 * 0.25**2 + (3 * 0.5 + 0.5**3) ** 2, rel=0.1)


def test_kid_of_one_distribution_is_0_on_average_at_a_small_n():
    drawn = torch.tensor([kid(normal(10, seed=i), normal(10, seed=1000 + i)) for i in range(400)])
    assert abs(drawn.mean()) < 3 * drawn.std() / 20
    assert (drawn < 0).any()


def test_counting_a_vector_twice_is_not_a_pair_with_itself():
    x, y = normal(6), normal(6, seed=1)
    kernels, once = Kernels(x, y), torch.ones(6)
    assert kernels.distance(2 * once, 3 * once) == pytest.approx(kernels.distance(), rel=1e-12)
    some = torch.tensor([0, 1, 1, 1, 0, 1])
    assert kernels.distance(some) == pytest.approx(kid(x[some > 0], y), rel=1e-12)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    # of independent coordinates: the sum of (m1 - m2)^2 + (s1 - s2)^2
    one, other = normal(40_000, mean=1.0, std=2.0), normal(40_000, seed=1, mean=0.5, std=0.5)
    assert frechet(one, other) == pytest.approx(4 * (0.5**2 + 1.5**2), rel=0.02)


def test_frechet_distance_of_correlated_features_is_monai_s():
    mix = normal(5, 5, seed=3)
    x, y = normal(60, 5) @ mix, normal(50, 5, seed=1, mean=0.3)
    expected = compute_frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))
    assert frechet(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_a_set_has_no_distance_from_itself_and_a_moved_one_that_of_its_move():
    x = normal(30)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x + torch.tensor([3.0, 0, 0, 4.0])) == pytest.approx(25, rel=1e-9)


def test_frechet_distance_works_with_fewer_vectors_than_features():
    assert frechet(normal(6, 20), normal(6, 20, seed=1)) > 0


def test_the_bias_of_the_frechet_distance_is_about_what_finite_sets_add():
    sets = [(normal(200, 8, seed=i), normal(200, 8, seed=100 + i, mean=0.2)) for i in range(10)]
    found = torch.tensor([frechet(x, y) for x, y in sets]).mean()
    bias = torch.tensor([frechet_bias(x, y) for x, y in sets]).mean()
    true = 8 * 0.2**2
    assert found > true + 0.1
    assert abs(found - bias - true) < 0.25 * (found - true)


@pytest.mark.parametrize("distance", [kid, frechet])
def test_sets_that_do_not_compare_are_refused(distance):
    with pytest.raises(MetricError, match="at least 2 vectors"):
        distance(normal(1), normal(4))
    with pytest.raises(MetricError, match="at least 2 vectors"):
        distance(normal(4, 3), normal(4, 2))
    with pytest.raises(MetricError, match="NaN"):
        distance(normal(4), normal(4) * torch.nan)
    with pytest.raises(MetricError, match="halves"):
        frechet_bias(normal(3), normal(8))
