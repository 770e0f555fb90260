import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, RFlowScheduler
from redrawn import redrawn

from meddiff.diffusion.samplers import euler
from meddiff.errors import NetworkError
from meddiff.networks.monai import from_monai

KINDS = ["epsilon", "v_prediction", "sample"]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    net = DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 16), attention_levels=(False, True), num_res_blocks=1,
        norm_num_groups=8, num_head_channels=8,
    )  # fmt: skip
    return redrawn(net).eval()


def noised(scheduler, t, seed=0):
    """(x in MONAI's scale, x in ours, sigma) at timestep t."""
    a = scheduler.alphas_cumprod[t]
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return x, x / a.sqrt(), ((1 - a) / a).sqrt()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [3, 400, 950])
def test_the_denoised_image_is_that_of_monai(unet, kind, t):
    scheduler = DDIMScheduler(num_train_timesteps=1000, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    x, ours, sigma = noised(scheduler, t)
    with torch.no_grad():
        _, expected = scheduler.step(unet(x, torch.full((2,), t)), t, x)
        found = from_monai(unet, scheduler)(ours, sigma)
    # MONAI divides by sqrt(a), 0.01 at t = 950: its float32 rounding grows by as much
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(sigma)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_euler_step_is_monais_ddim_update_where_its_grid_and_step_agree(unet, kind):
    """With T steps of T, DDIMScheduler's grid and step agree: t to t - 1."""
    scheduler = DDIMScheduler(num_train_timesteps=1000, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(1000)
    t = 500
    x, ours, sigma = noised(scheduler, t)
    a_next = scheduler.alphas_cumprod[t - 1]
    with torch.no_grad():
        expected, _ = scheduler.step(unet(x, torch.full((2,), t)), t, x)
    sigmas = torch.stack([sigma, ((1 - a_next) / a_next).sqrt()])
    found = euler(from_monai(unet, scheduler), ours, sigmas) * a_next.sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rectified_flow_gives_monais_denoised_image(unet):
    scheduler = RFlowScheduler(num_train_timesteps=1000)
    t, x0 = 0.3, torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    x = (1 - t) * x0 + t * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = x + t * unet(x, torch.full((2,), 1000 * t))  # the network says x0 - eps
        found = from_monai(unet, scheduler)(x / (1 - t), torch.tensor(t / (1 - t)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_unknown_prediction_is_refused(unet):
    scheduler = DDIMScheduler(num_train_timesteps=10)
    scheduler.prediction_type = "score"
    with pytest.raises(NetworkError, match="predicts 'score'; known are epsilon"):
        from_monai(unet, scheduler)
