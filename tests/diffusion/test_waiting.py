"""No sampler waits for its device: tensors of the device "meta" hold no values, so that reading one is an error there."""

import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from meddiff.diffusion import categorical
from meddiff.diffusion.answered import AnsweredLabels
from meddiff.diffusion.compose import guided, windowed
from meddiff.diffusion.denoiser import PARAMETERIZATIONS, Condition, Preconditioned, at_level, wide_level
from meddiff.diffusion.inverse import denoise_at, given_noisy
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.diffusion.sigmas import karras
from meddiff.networks.unet import UNet

CASES, LABELS, SIZE = 2, 3, (16, 16)


@pytest.fixture(params=["meta", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(request.param)


@contextmanager
def no_waiting(device):
    """RuntimeError where the CPU waits for a GPU."""
    if device.type == "meta":
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it a prototype, which does not see all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network(device, channels=1, beside=0, **more):
    settings = {"spatial_dims": 2, "channels": (8, 16), "attention": (False, True), "head_channels": 8, "blocks": 1}
    return UNet(in_channels=channels, out_channels=channels, cond_channels=beside, **settings, **more).to(device)


def answered(device, of):
    """A segmentation, and the condition that it samples with."""
    first = UNet(spatial_dims=2, in_channels=1, out_channels=LABELS, channels=(8, 16), blocks=1).to(device)
    own = AnsweredLabels(first, network(device, LABELS, beside=1 + LABELS), 1)
    with torch.no_grad():
        cond = own.answered(Condition(torch.randn(CASES, 1, *SIZE, device=device)))
    return of(own, LABELS), cond


def generators():
    return [torch.Generator().manual_seed(i) for i in range(CASES)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", [*PARAMETERIZATIONS, "answered", "given_noisy", "windowed", "guided"])
def test_a_sampler_never_waits(device, sampler, kind):
    x, cond = torch.randn(CASES, LABELS if kind == "answered" else 1, *SIZE, device=device), None
    if kind == "answered":
        denoise, cond = answered(device, Posterior)
    else:
        classes = 2 if kind == "guided" else 0
        denoise = Preconditioned(network(device, classes=classes), kind if kind in PARAMETERIZATIONS else "edm")
    if kind == "given_noisy":
        denoise = given_noisy(denoise, x, 0.5)
    if kind == "windowed":
        denoise = windowed(denoise, (8, 16), (4, 0), 2)
    if kind == "guided":
        denoise, cond = guided(denoise, 2.0), Condition(label=torch.ones(CASES, dtype=torch.long, device=device))
    act = partial(SAMPLERS[sampler], denoise, x, karras(6, 0.1, 80.0), cond, generators=generators())
    act()  # the first time libraries are loaded
    with no_waiting(device):
        found = act()
    assert found.shape == x.shape


def test_the_discrete_sampler_never_waits(device):
    denoise, cond = answered(device, LabelPosterior)
    x = torch.ones(CASES, LABELS, *SIZE, device=device)
    act = partial(categorical.sample, denoise, x, categorical.grid(5), cond, generators())
    act()
    with no_waiting(device):
        found = act()
    assert found.shape == x.shape


def test_a_scan_of_known_noise_is_restored_without_waiting(device):
    y = torch.randn(CASES, 1, *SIZE, device=device)
    denoise = Preconditioned(network(device))
    denoise_at(denoise, y, 0.3)
    with no_waiting(device):
        assert denoise_at(denoise, y, 0.3).shape == y.shape


def test_one_level_for_all_stays_where_it_can_be_read():
    x = torch.empty(CASES, 1, 4, 4, dtype=torch.float64, device="meta")
    one, each = torch.tensor(2.0), torch.ones(CASES)
    assert at_level(one, x).device.type == wide_level(one, x).device.type == "cpu"
    assert at_level(one, x).dtype == at_level(each, x).dtype == torch.float64
    assert at_level(each, x).device == x.device
    assert wide_level(one, x).shape == ()
    assert wide_level(each, x).shape == (CASES, 1, 1, 1)
