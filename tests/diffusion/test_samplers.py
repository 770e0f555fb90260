import itertools
from functools import partial

import pytest
import torch
from oracles import categorical, finite, gaussian, gaussian_flow, mixture

from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS, ancestral, dpmpp_2m, euler, grid_steps, heun
from meddiff.diffusion.sigmas import cosine, flow, karras
from meddiff.errors import ConfigError


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed * 10_000 + i) for i in range(n)]


def noise(n, shape, sigma, seed=0):
    return sigma * draw("gaussian", shape, generators(n, seed)).double()


def error(sampler, n, start=5.0, end=0.05):
    """Distance to the exact probability flow of a Gaussian, from `start` to `end`, over n steps."""
    x = torch.tensor([[[-3.0, 0.5, 7.0]]], dtype=torch.float64)
    sigmas = karras(n + 1, end, start)[:-1]
    sigmas = sigmas.double()
    return (sampler(gaussian(0.3, 0.5), x, sigmas) - gaussian_flow(x, start, end, 0.3, 0.5)).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_error_falls_with_the_declared_order(sampler, order):
    errors = [error(sampler, n) for n in (80, 160, 320)]
    slopes = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(errors)]
    assert all(abs(s - order) < 0.15 for s in slopes), slopes


@pytest.mark.parametrize("grid", [karras, cosine, flow])
@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_standard_deviation_of_a_gaussian_are_recovered(name, grid):
    x = noise(64, (1, 32, 32), 80.0)
    sigmas = grid(400, 0.005, 80.0)
    samples = SAMPLERS[name](gaussian(0.3, 0.5), x, sigmas, generators=generators(64, 1))
    # 65,536 voxels: the standard error of the mean is 0.002, of the standard deviation 0.0014
    assert abs(samples.mean().item() - 0.3) < 0.01
    assert abs(samples.std().item() - 0.5) < 0.012


def test_strided_ddpm_stays_near_the_right_spread_where_monai_leaves_the_noise_in():
    x = noise(16, (1, 32, 32), 80.0)
    samples = ancestral(gaussian(0.0, 0.5), x, karras(100, 0.005, 80.0), generators=generators(16, 1))
    assert abs(samples.std().item() - 0.5) < 0.05  # MONAI's DDPMScheduler with 100 of 1000 steps: 0.883


@pytest.mark.parametrize("name", SAMPLERS)
def test_both_modes_of_a_mixture_are_found_in_even_shares(name):
    x = noise(32, (1, 16, 16), 40.0)
    samples = SAMPLERS[name](mixture((-1.0, 1.0), 0.1), x, karras(64, 0.005, 40.0), generators=generators(32, 1))
    assert abs((samples > 0).double().mean().item() - 0.5) < 0.03
    torch.testing.assert_close(samples.abs().mean().item(), 1.0, rtol=0.03, atol=0)
    assert abs((samples.abs() - 1).std().item() - 0.1) < 0.03


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_finite_data_set_are_its_images(name):
    data = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(4)).double()
    samples = SAMPLERS[name](
        finite(data), noise(40, (1, 4, 4), 40.0), karras(48, 0.002, 40.0), generators=generators(40, 1)
    )
    nearest = torch.cdist(samples.flatten(1), data.flatten(1)).min(1)
    assert nearest.values.max() < 1e-2
    assert len(nearest.indices.unique()) == 6


def test_samples_of_a_categorical_are_labels_in_the_right_shares():
    p = torch.tensor([0.6, 0.3, 0.1])
    x = noise(8, (3, 32, 32), 40.0)
    samples = ancestral(categorical(p), x, karras(100, 0.005, 40.0), generators=generators(8, 1))
    assert (samples.max(1).values > 0.99).double().mean() > 0.999
    shares = samples.argmax(1).flatten().bincount(minlength=3) / samples[:, 0].numel()
    torch.testing.assert_close(shares, p, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_case_does_not_depend_on_its_batch(name):
    oracle, sigmas = mixture((-1.0, 1.0), 0.2), karras(8, 0.01, 10.0)
    together = SAMPLERS[name](oracle, noise(4, (1, 5, 5), 10.0), sigmas, generators=generators(4))
    for i in range(4):
        alone = SAMPLERS[name](
            oracle, noise(4, (1, 5, 5), 10.0)[i : i + 1], sigmas, generators=generators(4)[i : i + 1]
        )
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)


def test_heun_and_euler_spend_the_evaluations_they_declare():
    for name, evaluations in (("euler", 16), ("dpmpp_2m", 16), ("ancestral", 16), ("heun", 15)):
        calls = []

        def counted(x, sigma, cond=None, calls=calls):
            calls.append(float(sigma))
            return gaussian()(x, sigma)

        n = grid_steps(name, evaluations)
        SAMPLERS[name](counted, noise(1, (1, 2, 2), 5.0), karras(n, 0.1, 5.0), generators=generators(1))
        assert len(calls) == evaluations


def test_steps_are_reported_with_the_state_and_the_denoised_image():
    seen = []
    last = euler(
        gaussian(), noise(1, (1, 2, 2), 5.0), karras(4, 0.1, 5.0), on_step=lambda i, x, d: seen.append((i, x, d))
    )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert seen[-1][1] is last
    torch.testing.assert_close(seen[-1][2], last)  # the step to 0 takes the denoised image


def test_sigmas_that_rise_are_refused():
    with pytest.raises(ConfigError, match="strictly decreasing"):
        euler(gaussian(), torch.zeros(1, 1, 2), torch.tensor([1.0, 2.0, 0.0]))


def test_ancestral_needs_a_generator_for_every_case():
    with pytest.raises(ConfigError, match="one generator per case; found 1 for 2"):
        ancestral(gaussian(), torch.zeros(2, 1, 2), torch.tensor([1.0, 0.0]), generators=generators(1))


def test_uniform_noise_reaches_the_right_mean_and_spread():
    """Not a guarantee of the theory, but the mean is exact: the oracle is linear."""
    x = 40.0 * draw("uniform", (1, 32, 32), generators(32)).double()
    sample = partial(ancestral, noise="uniform")
    samples = sample(gaussian(0.3, 0.5), x, karras(200, 0.005, 40.0), generators=generators(32, 1))
    assert abs(samples.mean().item() - 0.3) < 0.02
    assert abs(samples.std().item() - 0.5) < 0.02
