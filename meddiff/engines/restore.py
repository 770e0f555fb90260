"""Clean images of whole scans, by a model of a degradation or by an unconditional one at the scan's own noise level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from meddiff.config import Config
from meddiff.degradation_config import Gaussian, Mask, Rician
from meddiff.diffusion.answered import Restored
from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.inverse import denoise_at, given_noisy
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.engines.card import Card
from meddiff.engines.predict import sigma_grid
from meddiff.engines.trainer import autocast
from meddiff.engines.volumes import Seen, in_batches
from meddiff.errors import ConfigError, ImageError, RunError
from meddiff.imaging.noise_level import white_noise_sigma
from meddiff.imaging.volume import Volume
from meddiff.seeds import generator
from meddiff.tasks.restoration import LEVEL

Estimate = Literal["mean", "sample"]
Ways = Sequence[
    tuple[Generator, Generator]
]  # of one sample: for every image what starts it, and what it meets on its way


@dataclass(frozen=True)
class Clean:
    """What a model makes of one scan, on the scan's grid and in its unit."""

    image: Volume
    std: Volume | None  # of the samples; None where fewer than two were drawn
    sigma: float | None  # noise level that was assumed, in the scan's unit; None where the degradation has none


def restore(
    model: nn.Module,
    config: Config,
    card: Card,
    volume: Volume,
    name: str,  # of the case: its noise follows from seed and name
    seed: int,
    *,
    estimate: Estimate = "mean",
    sigma: float | None = None,  # noise level in the scan's unit; None: measured in the scan
) -> Clean:
    """The posterior mean of the clean scan, or one sample of it; with several samples also their standard deviation.

    ImageError where the scan is not for this model, or no noise level can be told from it.
    """
    if isinstance(config.data.degradation, Mask):
        raise ConfigError(
            "This run fills in masked regions, and a scan does not say which of its voxels were not measured. "
            "Use meddiff evaluate, or engines.restore.estimates with the mask beside the image."
        )
    seen = Seen(volume, config, card)
    level, told = _level(config, volume, seen, sigma)
    samples = 0 if config.diffusion.process == "direct" or config.sample.steps == 1 else config.sample.samples
    if estimate == "sample" and not samples:
        raise ConfigError("This run gives the first answer only, which no sample differs from; use --estimate mean.")
    with torch.no_grad():
        mean, drawn = estimates(model, config, seen.images, level, [name], seed, samples, seen)
    best = mean if estimate == "mean" else drawn[0]
    image = (seen.back(seen.unbatch(best))[0] - seen.offset) / seen.scale
    std = None
    if samples > 1:
        spread = np.abs(seen.back(seen.unbatch(drawn.std(0)))[0]) / seen.scale
        std = Volume(spread.astype(np.float32), volume.geometry, volume.modality, volume.unit)
    clean = Volume(image.astype(np.float32), volume.geometry, volume.modality, volume.unit)
    return Clean(clean, std, told)


def estimates(
    model: nn.Module,
    config: Config,
    images: Tensor,  # (B, 1, *size) degraded, model units; with the mask beside it where the task has one
    level: float,  # model units
    names: list[str],  # of the cases: of every image, or one of all
    seed: int,
    samples: int,
    seen: Seen | None = None,  # says where windows are needed
) -> tuple[Tensor, Tensor]:
    """The posterior mean (B, 1, *size) and `samples` samples (S, B, 1, *size), on the CPU."""
    sample, device = config.sample, next(model.parameters()).device

    def windows(denoise: Denoiser) -> Denoiser:
        return seen.windowed(denoise, sample.overlap) if seen else denoise

    keys = [(names[i], i) if len(names) > 1 else (names[0], i) for i in range(len(images))]
    means, drawn = [], []
    for part in in_batches(len(images), sample.batch):
        y = images[part].to(device, torch.float32)
        ways = [
            [(generator(seed, "start", *key, s), generator(seed, "way", *key, s)) for key in keys[part]]
            for s in range(samples)
        ]
        one = _conditional if isinstance(model, Restored) else _zero_shot
        mean, some = one(model, config, y, level, ways, windows)
        means.append(mean.cpu())
        drawn.append(torch.stack(some).cpu() if some else torch.empty(0, *mean.shape))
    return torch.cat(means), torch.cat(drawn, dim=1)


def _conditional(
    model: nn.Module,
    config: Config,
    y: Tensor,
    level: float,
    ways: Sequence[Ways],
    windows: Callable[[Denoiser], Denoiser],
) -> tuple[Tensor, list[Tensor]]:
    """Mean and samples of a model of the degradation."""
    assert isinstance(model, Restored)
    sample, device = config.sample, y.device

    def first(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model.first(x, sigma, cond)

    def second(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model(x, sigma, cond)

    known = y[:, model.channels :] if y.shape[1] > model.channels else None
    y = y[:, : model.channels]
    levels = y.new_full((len(y),), level)
    m = windows(first)(y, levels, Condition(known))
    s = model.first.row(levels, y).c_out.abs()
    parts = [y, m, *([] if known is None else [known])]
    given = Condition(torch.cat(parts, dim=1), covariates=levels.log().unsqueeze(1))
    samples = []
    for way in ways:
        sigmas = sigma_grid(sample)
        z = sigmas[0] * draw("gaussian", y.shape[1:], [start for start, _ in way]).to(device)
        z = SAMPLERS[sample.sampler](windows(second), z, sigmas.to(device), given, [g for _, g in way])
        samples.append(m + s * z)
    return m, samples


def _zero_shot(
    model: nn.Module,
    config: Config,
    y: Tensor,
    level: float,
    ways: Sequence[Ways],
    windows: Callable[[Denoiser], Denoiser],
) -> tuple[Tensor, list[Tensor]]:
    """Mean and samples of an unconditional model: D(y, level), and draws from p(x0 | y)."""
    assert isinstance(model, Preconditioned)
    if config.data.paired or config.condition.mask or config.condition.image:
        raise RunError(
            "A run of synthesis restores if it draws images from nothing; this one has label maps or images beside."
        )
    sample, device = config.sample, y.device

    def shown(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model(x, sigma, cond)

    denoise = windows(shown)
    mean = denoise_at(denoise, y, level)
    samples = []
    for way in ways:
        sigmas = sigma_grid(sample)
        x = sigmas[0] * draw("gaussian", y.shape[1:], [start for start, _ in way]).to(device)
        draws = SAMPLERS[sample.sampler](
            given_noisy(denoise, y, level), x + mean, sigmas.to(device), None, [g for _, g in way]
        )
        samples.append(draws)
    return mean, samples


def _level(config: Config, volume: Volume, seen: Seen, sigma: float | None) -> tuple[float, float | None]:
    """How far the scan is from the clean one in model units, and the noise level in its own unit."""
    undone = config.data.degradation
    if not (undone is None or isinstance(undone, Gaussian | Rician)):
        if sigma is not None:
            raise ConfigError(
                f"--sigma is for noise; this run undoes {undone.kind}, which has no such level. Leave it out."
            )
        return LEVEL, None
    model_sigma = white_noise_sigma(seen.image.numpy()[0]) * seen.scale if sigma is None else sigma * seen.scale
    if not model_sigma > 0:
        raise ImageError("No noise was found in the scan; give its level with --sigma.")
    return model_sigma, model_sigma / seen.scale
