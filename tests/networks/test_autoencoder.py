"""The autoencoder: sizes, windows, draws, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from meddiff.diffusion.losses import kl_divergence
from meddiff.errors import NetworkError
from meddiff.networks.autoencoder import Autoencoder, lowest


def small(dims=2, **settings):
    torch.manual_seed(0)
    tiny = {"latent_channels": 3, "channels": (8, 8, 16), "norm_groups": 4}
    return Autoencoder(spatial_dims=dims, **{**tiny, **settings}).eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(16, 16), (15, 17), (4, 30)])
def test_an_image_of_any_size_comes_back_in_its_size(size):
    model = small()
    x = torch.randn(2, 1, *size)
    mean, deviation = model.encode(x)
    assert mean.shape == deviation.shape == (2, *model.latent_shape(size)) == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    assert model.decode(mean, size).shape == x.shape


def test_the_padding_repeats_the_last_voxels():
    model = small()
    x = torch.randn(1, 1, 15, 16)
    longer = torch.cat([x, x[:, :, -1:]], dim=2)
    assert_close(model.encode(x)[0], model.encode(longer)[0], rtol=0, atol=0)


def test_a_volume_is_encoded_in_windows_where_it_is_larger_than_one():
    whole, tiled = small(3, patch=2, channels=(8, 8)), small(3, patch=2, channels=(8, 8), window=(8, 8, 8))
    x = torch.randn(1, 1, 8, 20, 8)
    mean, _ = tiled.encode(x)
    assert mean.shape == whole.encode(x)[0].shape == (1, 3, 2, 5, 2)
    assert_close(mean[..., :1, :], whole.encode(x[..., :8, :])[0][..., :1, :])  # the first window alone sees it
    image = tiled.decode(mean)
    assert image.shape == x.shape
    assert_close(image[..., :3, :], whole.decode(mean[..., :2, :])[..., :3, :])


def test_forward_decodes_the_mean_moved_by_the_noise():
    model = small()
    x = torch.randn(1, 1, 15, 16)
    eps = torch.randn(1, *model.latent_shape((15, 16)))
    image, mean, deviation = model(x, eps)
    assert_close((mean, deviation), model.encode(x))
    assert_close(image, model.decode(mean + deviation * eps, (15, 16)))


@pytest.mark.parametrize(("dims", "channels"), [(2, 16), (3, 64)])
def test_an_untrained_one_keeps_all_frequencies_that_have_a_latent(dims, channels):
    model = small(dims, latent_channels=channels)
    x = torch.randn(1, 1, *[8] * dims)
    assert_close(model.decode(model.encode(x)[0]), x)
    few = small(dims, latent_channels=1)
    mean, _ = few.encode(x)
    pool = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    assert_close(mean, pool(x, 4))


def test_the_lowest_frequencies_are_orthonormal():
    basis = lowest(10, 4, 3)
    assert basis.shape == (10, 64)
    assert_close(basis @ basis.T, torch.eye(10))


def test_patches_lower_the_resolution_as_a_level_does():
    assert small(patch=2, channels=(8, 8)).factor == small(channels=(8, 8, 8)).factor == 4


def test_the_divergence_of_a_normal_is_that_of_torch():
    mean, deviation = torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.1
    normal = torch.distributions.Normal
    other = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0))
    assert_close(kl_divergence(mean, deviation), other.flatten(1).sum(1))


def test_what_cannot_be_built_or_taken_is_told():
    with pytest.raises(NetworkError, match="multiples of 8"):
        small(window=(12, 16))
    with pytest.raises(NetworkError, match="No autoencoder can be built"):
        small(norm_groups=3)
    with pytest.raises(NetworkError, match=r"found shape \(1, 2, 8, 8\)"):
        small().encode(torch.zeros(1, 2, 8, 8))
