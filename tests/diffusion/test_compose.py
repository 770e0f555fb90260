import pytest
import torch
from oracles import gaussian
from torch.testing import assert_close

from meddiff.diffusion.compose import Empty, averaged, guided, latent, slicewise, windowed
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.samplers import dpmpp_2m
from meddiff.diffusion.sigmas import karras
from meddiff.errors import ConfigError

SIGMA = torch.tensor(0.7)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blur(radius):
    """A denoiser that sees `radius` voxels around each: a local mean, with the edge repeated."""

    def denoise(x, sigma, cond=None):
        dims, size = x.ndim - 2, 2 * radius + 1
        mode = torch.nn.functional.pad(x, [radius] * (2 * dims), mode="replicate")
        pool = (torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d)[dims - 2]
        return pool(mode, size, stride=1)

    return denoise


def class_mean(x, sigma, cond=None):
    value = torch.zeros(len(x)) if cond is None else cond.label.float()
    return value.view(-1, *[1] * (x.ndim - 1)).expand_as(x)


@pytest.mark.parametrize(("weight", "value"), [(0.0, 0.0), (1.0, 2.0), (3.0, 6.0)])
def test_guidance_moves_from_without_to_with_and_beyond(weight, value):
    cond = Condition(label=torch.tensor([2]))
    out = guided(class_mean, weight)(torch.zeros(1, 1, 4, 4), SIGMA, cond)
    torch.testing.assert_close(out, torch.full((1, 1, 4, 4), value))


def test_guidance_away_from_another_class():
    out = guided(class_mean, 2.0, without=Condition(label=torch.tensor([3])))(
        torch.zeros(1, 1, 2, 2), SIGMA, Condition(label=torch.tensor([4]))
    )
    torch.testing.assert_close(out, torch.full((1, 1, 2, 2), 5.0))


def test_average_of_denoisers():
    x = noise(2, 1, 4, 4)
    mean = averaged([gaussian(0.0), gaussian(1.0)])(x, SIGMA)
    torch.testing.assert_close(mean, gaussian(0.5)(x, SIGMA))
    with pytest.raises(ConfigError, match="at least one denoiser"):
        averaged([])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.3, 0.9])])
def test_slicewise_equals_a_loop_over_slices(axis, sigma):
    x, image = noise(2, 1, 5, 6, 7), noise(2, 1, 5, 6, 7, seed=1)
    cond = Condition(image=image, label=torch.tensor([1, 4]), covariates=torch.tensor([[0.5], [2.0]]))

    def denoise(x, sigma, cond):
        wide = (-1, 1, 1, 1)
        return x * sigma.reshape(wide) + cond.image + cond.label.view(wide) + cond.covariates.view(wide)

    out = slicewise(denoise, axis)(x, sigma, cond)
    for k in range(x.shape[2 + axis]):
        here = cond.map_image(lambda v, k=k: v.select(2 + axis, k))
        torch.testing.assert_close(out.select(2 + axis, k), denoise(x.select(2 + axis, k), sigma, here))


@pytest.mark.parametrize(
    ("size", "patch", "overlap"),
    [((40, 33), (16, 16), (8, 8)), ((50, 10), (16, 16), (12, 4)), ((33, 20, 41), (16, 32, 16), (8, 8, 8))],
)
def test_windows_equal_the_whole_for_a_denoiser_that_sees_a_quarter_of_the_overlap(size, patch, overlap):
    x = noise(2, 1, *size)
    radius = min(o for n, p, o in zip(size, patch, overlap, strict=True) if n > p) // 4
    denoise = blur(radius)
    torch.testing.assert_close(windowed(denoise, patch, overlap)(x, SIGMA), denoise(x, SIGMA), rtol=0, atol=1e-6)


def test_windows_inside_the_sampler_leave_no_seam():
    x, sigmas = 5 * noise(1, 1, 48, 48), karras(6, 0.05, 5.0)
    whole = dpmpp_2m(blur(2), x, sigmas)
    torch.testing.assert_close(dpmpp_2m(windowed(blur(2), (24, 24), (8, 8)), x, sigmas), whole, rtol=0, atol=1e-5)


def test_windows_show_each_place_its_own_condition():
    image = noise(1, 1, 30, 30)
    out = windowed(lambda x, s, c: c.image, (16, 16), (4, 4))(torch.zeros(1, 1, 30, 30), SIGMA, Condition(image=image))
    torch.testing.assert_close(out, image)


@pytest.mark.parametrize("batch", [2, 5, 100])
@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.3, 0.9])])
def test_windows_side_by_side_are_those_one_after_another(batch, sigma):
    x = noise(2, 1, 40, 33)
    cond = Condition(noise(2, 1, 40, 33, seed=1), torch.tensor([1, 4]), torch.tensor([[0.5], [2.0]]))
    calls = []

    def denoise(x, sigma, cond):
        calls.append(len(x))
        wide = (-1, 1, 1, 1)
        return x * sigma.reshape(wide) + cond.image + cond.label.view(wide) + cond.covariates.view(wide)

    one = windowed(denoise, (16, 16), (8, 8))(x, sigma, cond)
    alone, calls[:] = len(calls), []
    torch.testing.assert_close(windowed(denoise, (16, 16), (8, 8), batch)(x, sigma, cond), one, rtol=0, atol=0)
    assert max(calls) <= max(batch, len(x))
    assert sum(calls) == alone * len(x)
    assert len(calls) == -(-alone // max(1, batch // len(x)))


@pytest.mark.parametrize("sigma", [SIGMA, torch.tensor([0.3, 0.9])])
def test_empty_windows_are_answered_without_being_looked_at(sigma):
    """A denoiser that says of empty windows what is taken for granted: left out, they change nothing, to the last bit."""
    image = torch.zeros(2, 1, 48, 16)
    image[0, :, 20:24] = 1.0  # in a window of the first case, in none of the second
    answer = torch.tensor([1.0, 0.0])
    seen = []

    def denoise(x, sigma, cond):
        seen.append(len(x))
        empty = (cond.image == 0).flatten(1).all(1).view(-1, 1, 1, 1)
        return torch.where(empty, answer.view(1, 2, 1, 1), x * sigma.reshape(-1, 1, 1, 1))

    x, cond = noise(2, 2, 48, 16), Condition(image)
    whole = windowed(denoise, (16, 16), (0, 0), 4)(x, sigma, cond)
    assert sum(seen) == 6
    seen.clear()
    empty = Empty(lambda cond: (cond.image == 0).flatten(1).all(1), answer)
    torch.testing.assert_close(windowed(denoise, (16, 16), (0, 0), 4, empty)(x, sigma, cond), whole, rtol=0, atol=0)
    assert sum(seen) == 1


def test_impossible_windows_are_refused():
    with pytest.raises(ConfigError, match=r"0 <= overlap < patch"):
        windowed(gaussian(), (8, 8), (8, 2))
    with pytest.raises(ConfigError, match="patch of 2 axes, the image has 3"):
        windowed(gaussian(), (8, 8), (2, 2))(torch.zeros(1, 1, 9, 9, 9), SIGMA)


class Halved:
    """An exact autoencoder of two voxels in one: their scaled sum and difference."""

    factor = 2

    def encode(self, x):
        pairs = x.unflatten(2, (-1, 2))
        z = torch.cat([pairs.sum(3), pairs.diff(dim=3)[..., 0]], dim=1) / 2**0.5
        return 3 * z + 5, torch.ones_like(z)

    def decode(self, z):
        total, apart = ((z - 5) / 3).chunk(2, dim=1)
        return torch.stack([total - apart, total + apart], dim=3).flatten(2, 3) / 2**0.5


def test_latents_of_gaussian_images_are_denoised_as_the_images_are():
    """The autoencoder turns images and adds nothing: white noise stays white, and the best denoiser is a Gaussian's."""
    best = gaussian()
    model = latent(best, Halved(), mean=[5.0, 5.0], std=[3.0, 3.0])
    assert (model.channels, model.factor) == (2, 2)
    x, sigma = torch.randn(3, 1, 8), torch.tensor([0.1, 1.0, 10.0])
    z, deviation = model.encode(x)
    assert_close(deviation, torch.full_like(z, 1 / 3))
    assert_close(model.decode(z), x)
    assert_close(model.decode(model(z, sigma)), best(x, sigma))


@pytest.mark.parametrize(("mean", "std"), [([], []), ([0.0], [1.0, 1.0]), ([0.0], [0.0])])
def test_latents_without_units_are_refused(mean, std):
    with pytest.raises(ConfigError, match="a mean and a deviation above 0 per channel"):
        latent(gaussian(), Halved(), mean, std)
