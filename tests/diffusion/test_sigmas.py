import pytest
import torch

from meddiff.diffusion.sigmas import GRIDS, TRAINING, Timesteps, logit_normal, lognormal, stratified, uniform_t
from meddiff.errors import ConfigError


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_grid_starts_at_sigma_max_falls_strictly_and_ends_at_zero(name, n):
    grid = GRIDS[name](n, 0.02, 80.0)
    assert grid.shape == (n + 1,)
    assert (grid.diff() < 0).all()
    assert grid[-1] == 0
    torch.testing.assert_close(grid[0].item(), 80.0, rtol=1e-5, atol=0)
    if n > 1:
        torch.testing.assert_close(grid[-2].item(), 0.02, rtol=1e-5, atol=0)


def test_karras_grid_is_equation_5():
    n, rho, low, high = 18, 7, 0.002, 80.0
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    torch.testing.assert_close(GRIDS["karras"](n, low, high)[:-1], torch.tensor(expected))


def test_flow_grid_is_even_in_the_time_of_the_flow():
    t = (s := GRIDS["flow"](9, 0.01, 100.0)[:-1]) / (1 + s)
    torch.testing.assert_close(t.diff(), t.diff()[0].expand(8), rtol=1e-4, atol=1e-6)


def test_ddpm_grid_at_full_length_is_the_table():
    table = Timesteps.ddpm_linear()
    grid = GRIDS["ddpm_linear"](1000, *table.range)
    torch.testing.assert_close(grid[:-1].flip(0), table.log_sigmas.exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("n", "low", "high"), [(0, 0.1, 1), (3, 0, 1), (3, 2, 1), (3, 1, 1)])
def test_impossible_grid_is_refused(n, low, high):
    with pytest.raises(ConfigError, match=r"0 < sigma_min < sigma_max"):
        GRIDS["karras"](n, low, high)


def test_ddpm_grid_beyond_its_table_is_refused_with_its_range():
    with pytest.raises(ConfigError, match=r"from 0\.01 to 157"):
        GRIDS["ddpm_linear"](10, 0.02, 300.0)


def test_timestep_and_sigma_are_inverse_and_whole_on_the_table():
    table = Timesteps.ddpm_linear()
    t = torch.arange(1000)
    assert (table.of_sigma(table.log_sigmas.exp()) == t).all()
    between = torch.tensor([0.25, 17.5, 998.75], dtype=torch.float64)
    torch.testing.assert_close(table.of_sigma(table.sigma_of(between)), between, rtol=0, atol=2e-3)


def test_log_normal_sigmas_have_the_moments_asked_for():
    u = stratified(100_000, torch.Generator().manual_seed(0))
    log = lognormal(u, -0.4, 1.1).log()
    assert abs(log.mean() + 0.4) < 1e-3
    assert abs(log.std() - 1.1) < 1e-3


def test_uniform_in_t_is_even_in_the_angle():
    u = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    angle = uniform_t(u).atan()
    torch.testing.assert_close(angle.diff(), angle.diff()[0].expand(49), rtol=1e-6, atol=0)


def test_logit_normal_time_is_log_normal_sigma():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    sigma = logit_normal(u, 0.3, 0.8)
    torch.testing.assert_close((sigma / (1 + sigma)).logit(), 0.3 + 0.8 * torch.special.ndtri(u))


def test_stratified_draws_fall_one_in_each_stratum():
    u = stratified(64, torch.Generator().manual_seed(3))
    assert sorted((u * 64).long().tolist()) == list(range(64))


@pytest.mark.parametrize("name", TRAINING)
def test_training_distribution_rises_with_its_quantile(name):
    assert (TRAINING[name](torch.linspace(1e-7, 1 - 1e-7, 1000, dtype=torch.float64)).diff() > 0).all()
