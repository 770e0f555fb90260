"""From a trained model to samples. A case's noise comes from (seed, case), never from its batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter, methodcaller

import torch
from torch import Tensor, nn

from meddiff.config import Config, SampleConfig
from meddiff.diffusion.compose import guided, windowed
from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS, OnStep, grid_steps
from meddiff.diffusion.sigmas import GRIDS
from meddiff.engines.trainer import autocast
from meddiff.engines.volumes import in_batches
from meddiff.errors import RunError
from meddiff.networks.unet import UNet
from meddiff.seeds import generator
from meddiff.tasks.synthesis import dropped


def sigma_grid(sample: SampleConfig) -> Tensor:
    """The sigmas of a sampling setting; `sample.steps` counts network evaluations, one of which finds the start."""
    return GRIDS[sample.grid](grid_steps(sample.sampler, sample.steps - 1), sample.sigma_min, sample.sigma_max)


def draw_samples(
    model: nn.Module,
    config: Config,
    names: Sequence[str],  # of the cases; a case's noise follows from its name
    seed: int,
    *,
    cond: Condition | None = None,  # what each of them is asked for, a row a name
    size: Sequence[int] | None = None,  # voxels; larger than data.size is sampled in windows
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """One sample (C, *size) in model units for each name, in order, `sample.batch` of them side by side."""
    check_task(config)
    sample = config.sample
    size = tuple(size or config.data.size)
    assert isinstance(model, Preconditioned)
    network, device = model.network, next(model.parameters()).device
    assert isinstance(network, UNet)
    whole: Denoiser = model
    if any(n > p for n, p in zip(size, config.data.size, strict=True)):
        patch = config.data.size
        whole = windowed(model, patch, [min(sample.overlap, p // 2) for p in patch])
    sampler = SAMPLERS[sample.sampler]
    if sample.sampler == "ancestral":
        sampler = partial(sampler, noise=config.diffusion.noise)
    sigmas = sigma_grid(sample)
    for part in in_batches(len(names), sample.batch):
        batch = names[part]
        given = None if cond is None else cond.map(itemgetter(part)).map(methodcaller("to", device))
        denoise = bounded(whole, config, device, given)
        starts = [generator(seed, "start", name) for name in batch]
        eps = draw(config.diffusion.noise, (network.in_channels, *size), starts)
        x = sigmas[0].item() * eps.to(device)
        with torch.no_grad():  # at sigma_max D is the mean of the data: noise around it, not around 0
            x = x + denoise(x, sigmas[0].to(device), given)
        way = [generator(seed, "way", name) for name in batch]
        yield from sampler(denoise, x, sigmas, given, generators=way, on_step=on_step).cpu()


def bounded(denoise: Denoiser, config: Config, device: torch.device, cond: Condition | None) -> Denoiser:
    """`denoise` as samplers use it: in the precision of the config, with its guidance towards `cond`, within -1..1."""
    sample = config.sample
    steered = denoise if cond is None else guided(denoise, sample.guidance, dropped(cond))

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        # the mean of images within -1..1 lies within -1..1
        with autocast(device, sample.precision):
            return steered(x, sigma, cond).clamp(-1, 1)

    return denoiser


def evaluations(sample: SampleConfig, guided: bool) -> int:
    """Network evaluations that one sample costs; guidance takes two for one."""
    n = grid_steps(sample.sampler, sample.steps - 1)
    return (1 + guided) * (1 + (2 * n - 1 if sample.sampler == "heun" else n))


def check_task(config: Config) -> None:
    """RunError where the task is another one."""
    if config.task != "synthesis":
        raise RunError(
            f"Samples of nobody need a run of synthesis; this one is of {config.task}. Use meddiff segment or restore."
        )
