import pytest
import torch
from oracles import gaussian
from torch import nn

from meddiff.diffusion.denoiser import PARAMETERIZATIONS, Condition, Preconditioned
from meddiff.diffusion.losses import denoising_loss
from meddiff.diffusion.sigmas import Timesteps
from meddiff.errors import ConfigError

SIGMAS = torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)


class Says(nn.Module):
    """A network that says `answer` whatever it is shown, and keeps what it was shown."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise, cond=None):
        self.shown = x, c_noise
        return self.answer


def example(seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randn(5, 2, 6, 4, generator=g, dtype=dtype)
    eps = torch.randn(5, 2, 6, 4, generator=g, dtype=dtype)
    return x0, eps, x0 + SIGMAS.to(dtype).view(-1, 1, 1, 1) * eps


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_network_that_says_the_target_denoises_exactly(name):
    x0, _, x = example()
    model = Preconditioned(Says(None), name)
    model.network.answer = model.target(x0, x, SIGMAS)
    assert (model(x, SIGMAS) - x0).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("eps", lambda x0, eps, s: eps),
        ("v", lambda x0, eps, s: (eps - s * x0) / (1 + s**2).sqrt()),
        ("x0", lambda x0, eps, s: x0),
        ("flow", lambda x0, eps, s: eps - x0),
        ("monai_rflow", lambda x0, eps, s: x0 - eps),
    ],
)
def test_the_target_of_a_row_is_what_its_name_says(name, meaning):
    x0, eps, x = example()
    target = Preconditioned(Says(None), name).target(x0, x, SIGMAS)
    assert (target - meaning(x0, eps, SIGMAS.view(-1, 1, 1, 1))).abs().max() < 1e-10


def test_edm_target_and_input_have_unit_variance_at_every_sigma():
    g = torch.Generator().manual_seed(1)
    x0 = 0.5 * torch.randn(5, 1, 200, 200, generator=g, dtype=torch.float64)
    x = x0 + SIGMAS.view(-1, 1, 1, 1) * torch.randn(x0.shape, generator=g, dtype=torch.float64)
    model = Preconditioned(Says(x0), "edm", sigma_data=0.5)
    model(x, SIGMAS)
    torch.testing.assert_close(model.network.shown[0].flatten(1).std(1), torch.ones(5).double(), rtol=0.02, atol=0)
    torch.testing.assert_close(model.target(x0, x, SIGMAS).flatten(1).std(1), torch.ones(5).double(), rtol=0.02, atol=0)


def test_variance_preserving_rows_show_the_network_the_timestep_of_sigma():
    table = Timesteps.ddpm_linear()
    model = Preconditioned(Says(torch.zeros(1)), "eps", timesteps=table)
    model(torch.zeros(3, 1, 4, 4), table.log_sigmas.exp()[[0, 500, 999]])
    assert model.network.shown[1].tolist() == [0, 500, 999]


def test_the_timestep_table_travels_with_the_weights():
    state = Preconditioned(Says(None), "eps").state_dict()
    assert state["timesteps.log_sigmas"].shape == (1000,)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_one_sigma_for_all_cases_equals_the_same_sigma_for_each(name):
    _, _, x = example()
    model = Preconditioned(Says(torch.ones_like(x)), name)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(model(x, sigma), model(x, sigma.expand(5)), rtol=0, atol=1e-12)


def test_unknown_parameterization_names_the_known_ones():
    with pytest.raises(ConfigError, match="'epsilon' is unknown; choose one of edm, eps, v"):
        Preconditioned(Says(None), "epsilon")


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_is_zero_for_the_target_and_one_per_case(name):
    x0, eps, x = example(dtype=torch.float32)
    model = Preconditioned(Says(None), name)
    model.network.answer = model.target(x0, x, SIGMAS) + torch.arange(5).view(-1, 1, 1, 1)
    loss = denoising_loss(model, x0, eps, SIGMAS)
    torch.testing.assert_close(loss, torch.arange(5.0) ** 2, rtol=1e-3, atol=1e-3)  # float32 at sigma 80


def test_the_smallest_loss_belongs_to_the_posterior_mean():
    g = torch.Generator().manual_seed(2)
    x0 = 0.5 * torch.randn(64, 1, 32, 32, generator=g)
    eps = torch.randn(x0.shape, generator=g)
    sigma = torch.full((64,), 0.8)
    model = Preconditioned(Says(None), "edm")
    x = x0 + 0.8 * eps
    best = model.target(gaussian(std=0.5)(x, sigma), x, sigma)
    losses = []
    for shift in (-0.1, 0.0, 0.1):
        model.network.answer = best * (1 + shift) + shift
        losses.append(denoising_loss(model, x0, eps, sigma).mean().item())
    assert losses[1] < min(losses[0], losses[2])


def test_condition_maps_only_what_is_there():
    cond = Condition(image=torch.zeros(2, 1, 4, 4), label=torch.tensor([1, 2]))
    doubled = cond.map(lambda v: torch.cat([v, v]))
    assert doubled.image.shape == (4, 1, 4, 4)
    assert doubled.label.tolist() == [1, 2, 1, 2]
    assert doubled.covariates is None
    assert cond.map_image(lambda v: v[..., :2, :2]).label is cond.label
