"""From a trained model to samples. A case's noise comes from (seed, case), never from its batch."""

from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter, methodcaller

import torch
from torch import Tensor, nn

from meddiff.baselines.gan import GAN
from meddiff.baselines.vae import VAE
from meddiff.config import Config, SampleConfig
from meddiff.diffusion.compose import Latent, guided, windowed
from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.distil import student_sigmas
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


def teacher_grid(config: Config) -> Tensor:
    """The sigmas on which a run of `train.distil` follows its teacher."""
    distil, sample = config.train.distil, config.sample
    assert distil is not None
    return GRIDS[sample.grid](distil.evaluations * distil.substeps, sample.sigma_min, sample.sigma_max)


def sampling_sigmas(config: Config) -> Tensor:
    """The sigmas that samples of a run walk over: `sigma_grid`, or those few that a distilled run knows."""
    distil = config.train.distil
    return sigma_grid(config.sample) if distil is None else student_sigmas(teacher_grid(config), distil.evaluations)


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
    if isinstance(model, VAE | GAN):
        if size and tuple(size) != tuple(config.data.size):
            raise RunError(
                f"A {type(model).__name__} draws {list(config.data.size)} voxels, no other size; asked for {tuple(size)}."
            )
        yield from _draw_from(model, names, seed, sample.batch)
        return
    latents = model if isinstance(model, Latent) else None
    factor = latents.factor if latents else 1  # from here on sizes count latents, where the model is one of them
    size = tuple(-(-n // factor) for n in size or config.data.size)
    patch = [n // factor for n in config.data.size]
    denoising = latents.denoise if latents else model
    assert isinstance(denoising, Preconditioned)
    network, device = denoising.network, next(model.parameters()).device
    assert isinstance(network, UNet)
    whole: Denoiser = denoising
    if any(n > p for n, p in zip(size, patch, strict=True)):
        whole = windowed(denoising, patch, [min(sample.overlap // factor, p // 2) for p in patch], sample.batch)
    sampler = SAMPLERS[sample.sampler]
    if sample.sampler == "ancestral":
        sampler = partial(sampler, noise=config.diffusion.noise)
    sigmas = sampling_sigmas(config)
    for part in in_batches(len(names), sample.batch):
        batch = names[part]
        given = None if cond is None else cond.map(itemgetter(part)).map(methodcaller("to", device))
        denoise = bounded(whole, config, device, given)
        starts = [generator(seed, "start", name) for name in batch]
        eps = draw(config.diffusion.noise, (network.in_channels, *size), starts)
        x = sigmas[0].item() * eps.to(device)
        if config.train.distil is None:  # at sigma_max D is the mean of the data: noise around it, not around 0
            with torch.no_grad():
                x = x + denoise(x, sigmas[0], given)
        way = [generator(seed, "way", name) for name in batch]
        drawn = sampler(denoise, x, sigmas, given, generators=way, on_step=on_step)
        yield from (_decoded(latents, drawn) if latents else drawn).cpu()


@torch.no_grad()
def _decoded(latents: Latent, drawn: Tensor) -> Tensor:
    """The images of latents (B, C, *latents), one at a time, so that none depends on the others."""
    return torch.cat([latents.decode(z[None]) for z in drawn])


def bounded(denoise: Denoiser, config: Config, device: torch.device, cond: Condition | None) -> Denoiser:
    """`denoise` as samplers use it: in the precision of the config, with its guidance towards `cond`, within -1..1 if it is a
    mean of images."""
    sample, free = config.sample, config.diffusion.latent is not None or config.train.distil is not None
    steered = denoise if cond is None else guided(denoise, sample.guidance, dropped(cond))

    def denoiser(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            d = steered(x, sigma, cond)
        return d if free else d.clamp(-1, 1)  # the mean of images within -1..1 lies within -1..1

    return denoiser


def _draw_from(model: VAE | GAN, names: Sequence[str], seed: int, size: int) -> Iterator[Tensor]:
    """One sample of a baseline for each name."""
    for part in in_batches(len(names), size):
        generators = [generator(seed, "start", name) for name in names[part]]
        with torch.no_grad():
            yield from model.sample(generators).cpu()


def evaluations(sample: SampleConfig, guided: bool) -> int:
    """Network evaluations that one sample costs; guidance takes two for one."""
    n = grid_steps(sample.sampler, sample.steps - 1)
    return (1 + guided) * (1 + (2 * n - 1 if sample.sampler == "heun" else n))


def check_voxels(config: Config) -> None:
    """RunError where the model is no denoiser of voxels at any noise level."""
    if config.train.distil is not None:
        raise RunError(
            "This run was distilled (train.distil): it draws samples, and knows too few noise levels for anything else. Give its "
            "teacher."
        )
    if config.baseline is not None:
        raise RunError(
            f"This takes a model of diffusion; this run is a {config.baseline.kind}, which draws images of nothing."
        )
    if config.diffusion.latent is not None:
        raise RunError(
            "This takes a model of images; this run is one of latents (diffusion.latent), in which no scan has a place."
        )


def check_task(config: Config) -> None:
    """RunError where the task is another one."""
    if config.task != "synthesis":
        raise RunError(
            f"Samples of nobody need a run of synthesis; this one is of {config.task}. Use meddiff segment or restore."
        )
