import pytest
import torch

from meddiff.errors import MetricError
from meddiff.metrics.manifold import neighbourhoods


def normal(n, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def means(real, samples):
    return {name: float(v.mean()) for name, v in neighbourhoods(real, samples)._asdict().items()}


def by_loops(real, samples, k_wide, k):
    """Precision, recall, density and coverage as their papers write them."""

    def radius(points, i, k):
        return sorted(float((points[i] - p).norm()) for j, p in enumerate(points) if j != i)[k - 1]

    def count(points, k, x, strict):
        within = [(float((x - p).norm()), radius(points, i, k)) for i, p in enumerate(points)]
        return sum(a < r if strict else a <= r for a, r in within)

    n, m = len(real), len(samples)
    return {
        "precision": sum(count(real, k, y, False) > 0 for y in samples) / m,
        "recall": sum(count(samples, k, x, False) > 0 for x in real) / n,
        "density": sum(count(real, k_wide, y, True) for y in samples) / (k_wide * m),
        "coverage": sum(
            any(float((x - y).norm()) < radius(real, i, k_wide) for y in samples) for i, x in enumerate(real)
        )
        / n,
    }


def test_the_metrics_are_those_of_their_papers_written_out():
    real, samples = normal(14).double(), (0.7 * normal(11, seed=1) + 0.3).double()
    assert means(real, samples) == pytest.approx(by_loops(real, samples, 5, 3))


def test_the_same_set_has_everything():
    x = normal(40)
    assert means(x, x) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_sets_that_lie_apart_share_nothing():
    assert means(normal(40), normal(40, seed=1) + 100) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_two_draws_of_one_distribution_have_density_1_and_the_coverage_of_the_formula():
    n, k = 100, 5
    found = [means(normal(n, seed=i), normal(n, seed=500 + i)) for i in range(40)]
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (2 * n - i)
    assert sum(f["density"] for f in found) / 40 == pytest.approx(1, abs=0.03)
    assert sum(f["coverage"] for f in found) / 40 == pytest.approx(1 - missed, abs=0.01)


def test_samples_of_one_mode_of_two_are_real_and_do_not_cover():
    mode, samples = normal(50), normal(100, seed=2)
    found, within = means(torch.cat([mode, normal(50, seed=1) + 100]), samples), means(mode, samples)
    assert found["precision"] == within["precision"]  # the other mode changes nothing for what lies in this one
    assert found["recall"] == within["recall"] / 2
    assert 0.4 < found["coverage"] <= 0.5


def test_a_real_outlier_makes_precision_good_and_density_not():
    real = torch.cat([normal(50), torch.full((1, 4), 30.0)])
    found = means(real, normal(50, seed=1) + 20)
    assert found["precision"] == 1
    assert found["density"] < 0.25


def test_one_image_repeated_covers_its_own_place_only():
    real = normal(60)
    found = means(real, real[:1].repeat(60, 1))
    assert found["precision"] == 1
    assert found["coverage"] < 0.3


def test_too_few_images_have_no_neighbours():
    with pytest.raises(MetricError, match="at least 6 images"):
        neighbourhoods(normal(5), normal(9))
