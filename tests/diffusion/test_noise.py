import pytest
import torch

from meddiff.diffusion.noise import NOISES, draw


def generators(n, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("shape", [(1, 12, 12), (1, 6, 6, 6)])
def test_noise_has_mean_zero_and_unit_variance_at_a_voxel(kind, shape):
    noise = draw(kind, shape, generators(1500))[:, 0].flatten(1)[:, ::17]  # voxels far apart, many draws
    assert abs(noise.mean().item()) < 0.1
    assert abs(noise.var().item() - 1) < 0.1


def test_uniform_noise_stays_within_the_square_root_of_three():
    assert draw("uniform", (1, 64, 64), generators(2)).abs().max() <= 3**0.5


def test_simplex_noise_is_smooth_and_differs_between_channels():
    noise = draw("simplex", (2, 64, 64), generators(4))
    step = noise.diff(dim=-1).std() / noise.std()
    assert step < 0.6  # Gaussian noise: 1.41
    assert not torch.equal(noise[:, 0], noise[:, 1])


@pytest.mark.parametrize("kind", NOISES)
def test_a_case_has_the_same_noise_in_every_batch(kind):
    together = draw(kind, (1, 8, 8), generators(3))
    torch.testing.assert_close(draw(kind, (1, 8, 8), generators(3)[2:])[0], together[2], rtol=0, atol=0)
