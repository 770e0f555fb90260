import math

import pytest
import scipy.stats
import torch
from oracles import categorical

from meddiff.diffusion.ensemble import (
    Drawn,
    Ensemble,
    Ways,
    adaptive,
    ensemble,
    entropy,
    interval,
    t_quantile,
    volumes_ml,
)
from meddiff.diffusion.samplers import dpmpp_2m
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError


def each(posteriors):
    """Samples that are all there is to say of the posterior."""
    return (Drawn(p, p) for p in posteriors)


def share(p):
    """A posterior of two labels on 100 voxels, of which label 1 has the share `p`."""
    return torch.stack([torch.full((10, 10), 1 - p), torch.full((10, 10), p)]).double()


def test_entropy_is_0_when_certain_1_when_even_and_half_for_two_of_four():
    posterior = torch.tensor([[1.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0], [0.0, 0.25, 0.0]])
    torch.testing.assert_close(entropy(posterior), torch.tensor([0.0, 1.0, 0.5]))


def test_volume_is_the_sum_of_the_probabilities_times_the_voxel():
    volumes = volumes_ml(torch.stack([share(0.25), share(0.5)]), voxel_ml=0.002)
    torch.testing.assert_close(volumes, torch.tensor([[0.15, 0.05], [0.1, 0.1]]).double())


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 127])
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.9995])
def test_t_quantiles_are_those_of_scipy(freedom, probability):
    expected = scipy.stats.t.ppf(probability, freedom)
    assert math.isclose(t_quantile(probability, freedom), expected, rel_tol=1e-9, abs_tol=1e-9)


def test_impossible_quantile_is_refused():
    with pytest.raises(ConfigError, match=r"at least 1 degree of freedom; found 0\.9 and 0"):
        t_quantile(0.9, 0)


def test_interval_of_three_values_by_hand():
    mean, half = interval(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
    assert mean.item() == 2
    assert abs(half.item() - 4.302653 / math.sqrt(3)) < 1e-6  # t of 2 degrees of freedom, standard deviation 1


def test_one_sample_has_an_endless_interval():
    assert interval(torch.tensor([[1.0, 2.0]]))[1].tolist() == [math.inf, math.inf]


def test_ninety_five_of_a_hundred_intervals_hold_the_mean():
    values = torch.randn(5, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, half = interval(values)
    assert abs((mean.abs() <= half).double().mean().item() - 0.95) < 0.006  # four standard errors


def test_identical_samples_are_enough_at_the_minimum():
    result = adaptive(each([share(0.3)] * 16), 0.001, tolerance=0.05, maximum=16)
    assert (result.samples, result.enough) == (8, True)
    torch.testing.assert_close(result.posterior, share(0.3))


def test_it_stops_at_the_first_sample_that_makes_the_interval_tight():
    """Volumes 40, 60, 40, ... of 100: half-width t(n - 1) s / sqrt(n), 10 % of the mean of 50 or less."""
    shares = [0.4, 0.6] * 20
    expected = next(
        n
        for n in range(8, 41)
        if interval(100 * torch.tensor(shares[:n], dtype=torch.float64)[:, None])[1] <= 0.1 * 100 * sum(shares[:n]) / n
    )
    result = adaptive(each(map(share, shares)), 1.0, tolerance=0.1, maximum=40)
    assert result.samples == expected == 19
    assert result.enough
    _, half = result.interval()
    assert half[1] <= 0.1 * result.volumes_ml[:, 1].mean()


def test_no_sample_is_drawn_that_is_not_needed():
    asked = []

    def drawn():
        for i in range(20):
            asked.append(i)
            yield Drawn(share(0.5), share(0.5))

    adaptive(drawn(), 0.001, tolerance=0.05, maximum=20)
    assert asked == list(range(8))
    assert ensemble(drawn(), 0.001, samples=3).samples == 3
    assert len(asked) == 11


def test_the_maximum_is_kept_and_said_not_to_be_enough():
    result = adaptive(each(map(share, [0.1, 0.9] * 20)), 1.0, tolerance=0.01, maximum=10)
    assert (result.samples, result.enough) == (10, False)
    torch.testing.assert_close(result.posterior, share(0.5))


def test_a_label_known_to_within_a_voxel_asks_for_no_more_samples():
    samples = each(map(share, [1e-6, 3e-6] * 10))  # the share of label 1 is uncertain by its half
    assert adaptive(samples, 1.0, tolerance=0.01, maximum=20).samples == 8


def test_volumes_are_of_the_samples_and_the_posterior_is_of_all_evaluations():
    result = ensemble([Drawn(share(0.2), share(0.3)), Drawn(share(0.4), share(0.5))], 0.5, samples=2)
    torch.testing.assert_close(result.volumes_ml[:, 1], torch.tensor([10.0, 20.0]).double())
    torch.testing.assert_close(result.posterior, share(0.4))
    assert result.enough


def test_all_evaluations_are_nearer_to_the_posterior_than_the_samples_alone():
    """Exact denoisers of labels with known probabilities: both means are right on average, one has less noise."""
    p = torch.tensor([0.6, 0.3, 0.1])
    truth, sigmas, noise = p.view(3, 1).expand(3, 4000), karras(5, 0.2, 80.0), torch.Generator().manual_seed(2)
    drawn = []
    for _ in range(8):
        ways = Ways(truth[None])
        x = truth[None] + 80.0 * torch.randn(1, 3, 4000, generator=noise)
        drawn.append(Drawn(dpmpp_2m(categorical(p), x, sigmas, on_step=ways)[0], ways.mean[0]))
    both, samples = ensemble(drawn, 1.0, 8).posterior, torch.stack([one.sample for one in drawn]).mean(0)
    assert (samples - truth).square().mean() > 4 * (both - truth).square().mean()
    torch.testing.assert_close(both.mean(1), p, rtol=0, atol=0.02)


def test_an_ensemble_says_its_labels_and_entropy():
    posterior = torch.tensor([[0.2, 0.5], [0.8, 0.5]])
    result = Ensemble(posterior, torch.zeros(1, 2), enough=False)
    assert result.labels.tolist() == [1, 0]
    torch.testing.assert_close(result.entropy, torch.tensor([0.72192809, 1.0]))  # bits, for two labels


@pytest.mark.parametrize("settings", [(0.0, 8, 4), (0.1, 3, 4), (0.1, 8, 1)])
def test_impossible_ensembles_are_refused(settings):
    tolerance, maximum, minimum = settings
    with pytest.raises(ConfigError, match="2 <= minimum <= maximum"):
        adaptive(each([share(0.5)]), 1.0, tolerance, maximum, minimum)


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one sample; found none"):
        adaptive([], 1.0, 0.1, 8)
