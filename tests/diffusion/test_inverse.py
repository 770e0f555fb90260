import pytest
import torch
from oracles import field, finite, gaussian, gaussian_flow, mixture

from meddiff.diffusion.inverse import (
    BlockAverage,
    Identity,
    Masked,
    conjugate_gradients,
    denoise_at,
    given,
    given_noisy,
    sample_from,
)
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS, ancestral, dpmpp_2m, euler
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError

SHAPE = (1, 4, 6)
N = 24


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed * 100_000 + i) for i in range(n)]


def noise(n, shape=SHAPE, seed=0):
    return draw("gaussian", shape, generators(n, seed)).double()


def prior():
    """Mean (1, 4, 6) and covariance (24, 24): neighbours alike, along the rows over three times the distance."""
    i, j = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    place = torch.stack([i.flatten(), j.flatten() / 3], 1).double()
    covariance = 0.5**2 * (-torch.cdist(place, place).square() / 2).exp() + 0.02 * torch.eye(N, dtype=torch.double)
    return torch.linspace(-0.5, 0.5, N, dtype=torch.double).view(SHAPE), covariance


def known_half():
    mask = torch.zeros(1, *SHAPE)
    mask[..., :2, :] = 1
    mask[..., 3, 4] = 1
    return Masked(mask)


OPERATORS = {
    "identity": Identity(),
    "mask": known_half(),
    "blocks": BlockAverage((2, 3)),
    "thick slices": BlockAverage((4, 1)),
}


def exact(operator, y, sigma_n):
    """Mean (1, 4, 6) and covariance (24, 24) of p(x0 | y), by the formula of conditioning a Gaussian."""
    mean, covariance = prior()
    a = operator.forward(torch.eye(N, dtype=torch.double).view(N, *SHAPE)).flatten(1).T  # (m, 24)
    a, y = a[a.abs().sum(1) > 0], y.flatten()[a.abs().sum(1) > 0]
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + sigma_n**2 * torch.eye(len(a)))
    return mean + (gain @ (y - a @ mean.flatten())).view(SHAPE), covariance - gain @ a @ covariance


def scan(operator, sigma_n):
    """One image of the prior, and what is measured of it."""
    mean, covariance = prior()
    x0 = mean + (torch.linalg.cholesky(covariance) @ noise(1, seed=7).flatten()).view(1, *SHAPE)
    clean = operator.forward(x0)
    return x0, clean + sigma_n * operator.forward(noise(1, seed=8)) * (N / clean.numel()) ** 0.5


@pytest.mark.parametrize(
    ("operator", "shape", "measured"),
    [
        (Identity(), (2, 1, 4, 6), (2, 1, 4, 6)),
        (known_half(), (2, 1, 4, 6), (2, 1, 4, 6)),
        (BlockAverage((2, 3)), (2, 1, 4, 6), (2, 1, 2, 2)),
        (BlockAverage((1, 2, 4)), (2, 3, 3, 4, 8), (2, 3, 3, 2, 2)),
    ],
)
def test_the_adjoint_is_the_adjoint(operator, shape, measured):
    x, y = noise(2, shape[1:]), noise(2, measured[1:], seed=1)
    assert operator.forward(x).shape == measured
    assert operator.adjoint(y).shape == shape
    torch.testing.assert_close((operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum())


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"axes divide by them; found \(4, 6\)"):
        BlockAverage((3, 2)).forward(noise(1))
    with pytest.raises(ConfigError, match=r"whose 3 axes divide"):
        BlockAverage((2, 2, 2)).forward(noise(1))


def test_conjugate_gradients_solve_each_case_whatever_stands_beside_it():
    root = noise(3, (8, 8))
    matrices = root @ root.mT + torch.eye(8)
    b = noise(3, (8,), seed=2)
    b[1] = 0
    solution = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], b, 20)
    torch.testing.assert_close(solution, torch.linalg.solve(matrices, b), rtol=0, atol=1e-5)
    alone = conjugate_gradients(lambda v: (matrices[:1] @ v[..., None])[..., 0], b[:1], 20)
    torch.testing.assert_close(solution[:1], alone)


def test_conjugate_gradients_stop_where_the_operator_is_not_positive():
    weights = torch.tensor([[2.0, -3.0], [2.0, 1.0]])
    solution = conjugate_gradients(lambda v: weights * v, torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 5)
    torch.testing.assert_close(solution, torch.tensor([[0.0, 0.0], [0.5, 1.0]]))


@pytest.mark.parametrize("sigma", [0.05, 0.5, 20.0])
@pytest.mark.parametrize("sigma_n", [0.0, 0.2])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_guided_denoiser_is_the_exact_posterior_mean_of_a_gaussian(name, sigma_n, sigma):
    """x is one more measurement, of every voxel at level sigma: condition on both at once."""
    operator, (mean, covariance) = OPERATORS[name], prior()
    _, y = scan(operator, sigma_n)
    x = mean + noise(3, seed=4)
    found = given(field(mean, covariance), operator, y, sigma_n, iterations=60)(x, torch.tensor(sigma))
    by_y, spread = exact(operator, y, sigma_n)
    gain = spread @ torch.linalg.inv(spread + sigma**2 * torch.eye(N))
    expected = by_y + ((x - by_y).flatten(1) @ gain.T).view_as(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "sigma_n"), [("mask", 0.2), ("mask", 0.0), ("blocks", 0.1), ("thick slices", 0.0)])
def test_guided_samples_have_the_mean_and_covariance_of_the_posterior(name, sigma_n):
    """For Gaussian data a sample is an affine map of the noise it starts from: follow 0 and each unit vector, no draws."""
    operator, (mean, covariance) = OPERATORS[name], prior()
    _, y = scan(operator, sigma_n)
    denoise = given(field(mean, covariance), operator, y, sigma_n, iterations=10)
    start = denoise(torch.zeros(1, *SHAPE).double(), torch.tensor(20.0))
    start = start + torch.cat([torch.zeros(1, N), 20 * torch.eye(N)]).double().view(-1, *SHAPE)
    centre, *ends = dpmpp_2m(denoise, start, karras(40, 0.005, 20.0))
    found = (torch.stack(ends) - centre).flatten(1)  # (24, 24), a row for each unit vector
    by_y, spread = exact(operator, y, sigma_n)
    # what remains is the error of 40 steps, and of a start at 20 instead of infinity
    torch.testing.assert_close(centre, by_y, rtol=0, atol=0.005)
    torch.testing.assert_close(
        (found.T @ found).diag().sqrt(), spread.diag().clamp(min=0).sqrt(), rtol=0.01, atol=0.005
    )
    torch.testing.assert_close(found.T @ found, spread, rtol=0, atol=0.005)


@pytest.mark.parametrize("name", ["mask", "blocks", "thick slices"])
def test_a_noiseless_measurement_is_met_by_every_sample(name):
    operator, (mean, covariance) = OPERATORS[name], prior()
    _, y = scan(operator, 0.0)
    x = 20 * noise(8, seed=1)
    samples = euler(given(field(mean, covariance), operator, y, 0.0, iterations=24), x, karras(10, 0.01, 20.0))
    torch.testing.assert_close(operator.forward(samples), y.expand_as(operator.forward(samples)), rtol=0, atol=1e-4)


def test_one_evaluation_at_the_noise_of_the_scan_is_the_posterior_mean():
    mean, covariance = prior()
    _, y = scan(Identity(), 0.3)
    torch.testing.assert_close(denoise_at(field(mean, covariance), y, 0.3)[0], exact(Identity(), y, 0.3)[0])


def test_two_noisy_images_are_one_with_less_noise():
    """Exact for any prior; for a Gaussian the general method must say the same."""
    mean, covariance = prior()
    _, y = scan(Identity(), 0.3)
    x, level = noise(3, seed=4), torch.tensor([0.1, 0.6, 9.0])
    general = given(field(mean, covariance), Identity(), y, 0.3, iterations=60)(x, level)
    torch.testing.assert_close(given_noisy(field(mean, covariance), y, 0.3)(x, level), general, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_given_a_noisy_scan_of_a_mixture_find_its_modes_in_the_right_shares(name):
    y, sigma_n, std = torch.full((1, 1, 48, 48), 0.2, dtype=torch.double), 0.6, 0.1
    denoise = given_noisy(mixture((-1.0, 1.0), std), y, sigma_n)
    x = denoise_at(mixture((-1.0, 1.0), std), y, sigma_n) + 10 * noise(4, (1, 48, 48))
    samples = SAMPLERS[name](denoise, x, karras(64, 0.005, 10.0), generators=generators(4, 1))
    share = torch.sigmoid(torch.tensor(2 * 0.2 / (std**2 + sigma_n**2))).item()  # of the mode at 1
    assert abs((samples > 0).double().mean().item() - share) < 0.03  # 9,216 voxels: standard error 0.005
    pull = std**2 / (std**2 + sigma_n**2)
    upper = samples[samples > 0]
    assert abs(upper.mean().item() - (1 + pull * (0.2 - 1))) < 0.02
    assert abs(upper.std().item() - std * (1 - pull) ** 0.5) < 0.02


def test_ancestral_from_the_scan_draws_from_the_posterior():
    y = torch.full((64, 1, 12, 12), 1.1, dtype=torch.double)
    samples = sample_from(gaussian(0.3, 0.5), ancestral, y, 0.4, karras(300, 0.005, 0.4), generators(64))
    pull = 0.5**2 / (0.5**2 + 0.4**2)
    assert abs(samples.mean().item() - (0.3 + pull * (1.1 - 0.3))) < 0.01
    assert abs(samples.std().item() - 0.4 * pull**0.5) < 0.02


def test_a_deterministic_sampler_from_the_scan_follows_the_probability_flow():
    y = 0.3 + (0.5**2 + 0.6**2) ** 0.5 * noise(2, (1, 8, 8))
    samples = sample_from(gaussian(0.3, 0.5), dpmpp_2m, y, 0.6, karras(100, 0.005, 80.0))
    torch.testing.assert_close(samples, gaussian_flow(y, 0.6, 0.0, 0.3, 0.5), rtol=0, atol=0.02)


def test_inpainting_with_a_finite_prior_finds_the_image_that_fits():
    """Not Gaussian at all: eight images; the known voxels belong to one of them."""
    data = 0.5 * noise(8, (1, 6, 6), seed=3)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :2] = 1
    denoise = given(finite(data), Masked(mask), data[:1] * mask, 0.0)
    samples = dpmpp_2m(denoise, 20 * noise(32, (1, 6, 6), seed=5), karras(40, 0.01, 20.0))
    torch.testing.assert_close(samples, data[:1].expand_as(samples), rtol=0, atol=0.02)


def test_impossible_noise_levels_are_refused():
    y = noise(1)
    with pytest.raises(ConfigError, match="above 0; found 0"):
        denoise_at(gaussian(), y, 0.0)
    with pytest.raises(ConfigError, match="above 0; found -1"):
        given_noisy(gaussian(), y, -1.0)
    with pytest.raises(ConfigError, match="0 or above; found -1"):
        given(gaussian(), Identity(), y, -1.0)
    with pytest.raises(ConfigError, match="at least 1 iteration"):
        given(gaussian(), Identity(), y, 0.1, iterations=0)
    with pytest.raises(ConfigError, match=r"No level of the grid lies below the noise level 0\.01"):
        sample_from(gaussian(), euler, y, 0.01, torch.tensor([1.0, 0.1, 0.05]))
