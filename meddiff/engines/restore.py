"""Clean images of whole scans, by a model of a degradation or by an unconditional one at the scan's own noise level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn

from meddiff.config import Config, SampleConfig
from meddiff.data.transforms import placing, to_meta
from meddiff.degradation_config import Gaussian, Mask, Rician
from meddiff.diffusion.answered import Restored
from meddiff.diffusion.denoiser import Condition, Denoiser, Preconditioned
from meddiff.diffusion.inverse import Masked, denoise_at, given, given_noisy
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS
from meddiff.engines.card import Card
from meddiff.engines.predict import check_voxels, sigma_grid
from meddiff.engines.trainer import autocast
from meddiff.engines.volumes import Seen, in_batches
from meddiff.errors import ConfigError, GeometryError, ImageError, RunError
from meddiff.imaging.noise_level import white_noise_sigma
from meddiff.imaging.volume import Volume
from meddiff.seeds import generator
from meddiff.tasks.restoration import LEVEL

ITERATIONS = 4  # of conjugate gradients: what a masked image says is found to that accuracy at each step
REACH = 3  # standard deviations of the noise
BLURRED = 0.02  # share of what is missing that a voxel of a coarser grid may hold and be known
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
    missing: Volume | None = None,  # 1 where the scan was not measured, 0 elsewhere; on its grid
) -> Clean:
    """The posterior mean of the clean scan, or one sample of it; with several samples also their standard deviation.

    Training images are cut off at the limits of `data.intensity`: what lies further beyond them than noise reaches is shown to
    the model at the limit, and stays as it was scanned. With `missing`, what it marks is filled in and everything else stays
    as it is. ImageError where the scan is not for this
    model, or no noise level can be told from it; GeometryError where `missing` lies on another grid.
    """
    _check_missing(config, volume, missing, sigma)
    samples = 0 if config.diffusion.process == "direct" or config.sample.steps == 1 else config.sample.samples
    if estimate == "sample" and not samples:
        raise ConfigError("This run gives the first answer only, which no sample differs from; use --estimate mean.")
    seen = Seen(volume, config, card)
    if missing is None:
        level, told = _level(config, volume, seen, sigma)
        beyond = seen.images.abs() > 1 + REACH * level
        images, chosen = torch.where(beyond, seen.images.clamp(-1, 1), seen.images), torch.arange(len(seen.images))
    else:
        level, told, beyond = LEVEL, None, torch.zeros_like(seen.images, dtype=torch.bool)
        images, chosen = _with_mask(config, seen, missing)
    mean, drawn = (seen.images.expand(n, *seen.images.shape).clone() for n in (1, samples))
    with torch.no_grad():
        mean[0, chosen], drawn[:, chosen] = estimates(model, config, images, level, [name], seed, samples, seen)

    mean, drawn = (torch.where(beyond, seen.images, maps) for maps in (mean, drawn))

    def back(maps: Tensor, offset: float) -> Volume:
        array = (seen.back(seen.unbatch(maps))[0] - offset) / seen.scale
        return Volume(array.astype(np.float32), volume.geometry, volume.modality, volume.unit)

    image = back(mean[0] if estimate == "mean" else drawn[0], seen.offset)
    spread = back(drawn.std(0), 0.0) if samples > 1 else None
    if missing is not None:
        there = missing.array > 0
        image = replace(image, array=np.where(there, image.array, volume.array).astype(np.float32))
        spread = spread and replace(spread, array=np.where(there, spread.array, 0).astype(np.float32))
    return Clean(image, spread and replace(spread, array=np.abs(spread.array)), told)


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
        return seen.windowed(denoise, sample) if seen else denoise

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
        z = SAMPLERS[sample.sampler](windows(second), z, sigmas, given, [g for _, g in way])
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
    """Mean and samples of an unconditional model, of what is given under white noise or, with a mask beside it, in parts.

    Of a noisy image the mean is D(y, level), in one evaluation. Of a masked one it is that of the samples.
    """
    if not isinstance(model, Preconditioned):
        raise RunError(
            "This run is a model of latents, an autoencoder or a baseline, whose noise is not that of an image. Restore with a run "
            "of restoration, or of synthesis without diffusion.latent and baseline."
        )
    check_voxels(config)
    if config.data.paired or config.condition.mask or config.condition.image:
        raise RunError(
            "A run of synthesis restores if it draws images from nothing; this one has label maps or images beside."
        )
    sample, device = config.sample, y.device

    def shown(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            return model(x, sigma, cond)

    masked = y.shape[1] > 1
    around, sigmas, mean = (_in_parts if masked else _under_noise)(windows(shown), y, level, sample)
    samples = []
    for way in ways:
        x = mean + sigmas[0] * draw("gaussian", mean.shape[1:], [start for start, _ in way]).to(device)
        samples.append(SAMPLERS[sample.sampler](around, x, sigmas, None, [g for _, g in way]))
    return torch.stack(samples).mean(0) if masked and samples else mean, samples


def _under_noise(denoise: Denoiser, y: Tensor, level: float, sample: SampleConfig) -> tuple[Denoiser, Tensor, Tensor]:
    """E[x0 | x, y] for an image under white noise, the sigmas of a sampler, and where it starts: at E[x0 | y]."""
    return given_noisy(denoise, y, level), sigma_grid(_about(sample, level)), denoise_at(denoise, y, level)


def _in_parts(denoise: Denoiser, y: Tensor, level: float, sample: SampleConfig) -> tuple[Denoiser, Tensor, Tensor]:
    """The same for an image beside its mask, which is 1 where it was measured; that is taken to be without noise."""
    image, known = y[:, :1], y[:, 1:]
    given_parts = given(denoise, Masked(known), image * known, sample.sigma_min, ITERATIONS)

    def around(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        # clipped as the images were that the model learned from: the approximation may overshoot
        return given_parts(x, sigma, cond).clamp(-1, 1)

    sigmas = sigma_grid(sample)
    return around, sigmas, around(torch.zeros_like(image), sigmas[0])


def _about(sample: SampleConfig, level: float) -> SampleConfig:
    """The same settings with sigmas where a sample of p(x0 | y) is decided: not far above the level of y, and below it.

    Above ten times the level x says a hundredth of what y says, and any x will do; all that y leaves open is within the level.
    """
    return sample.model_copy(
        update={"sigma_max": min(sample.sigma_max, 10 * level), "sigma_min": min(sample.sigma_min, level / 10)}
    )


def _check_missing(config: Config, volume: Volume, missing: Volume | None, sigma: float | None) -> None:
    undone = config.data.degradation
    if missing is None:
        if isinstance(undone, Mask):
            raise ConfigError(
                "This run fills in masked regions, and a scan does not say which of its voxels were not measured. "
                "Give a mask on the scan's grid, 1 where they were not, with --mask."
            )
        return
    if undone is not None and not isinstance(undone, Mask):
        raise ConfigError(
            f"--mask is for a run that fills in masked regions, or one of synthesis; this one undoes {undone.kind}."
        )
    if sigma is not None:
        raise ConfigError(
            "--sigma is for noise; with --mask the measured voxels are kept as they are. Give one of them."
        )
    if not missing.geometry.close(volume.geometry, 1e-3):
        raise GeometryError(
            f"The mask lies on another grid, {missing.geometry!r}, than the scan, {volume.geometry!r}. "
            "Resample it to the scan's."
        )
    values = np.unique(missing.array)
    if not np.isin(values, (0, 1)).all() or not values.any():
        raise ImageError(
            f"The mask holds values from {values[0]:g} to {values[-1]:g}; 1 where the scan was not measured and 0 elsewhere "
            "are needed, and 1 at least once."
        )


def _with_mask(config: Config, seen: Seen, missing: Volume) -> tuple[Tensor, Tensor]:
    """Images (b, 2, *size) in which something is missing, filled as in training, beside 1 where known; which images they are.

    A voxel of the model's grid is known where hardly any of it is made of what is missing.
    """
    share = placing(config.data)({"image": to_meta(replace(missing, array=missing.array.astype(np.float32)))})["image"]
    parts = seen.batch(share.as_tensor(), outside=0.0)
    unknown = (parts > min(BLURRED, float(parts.max()) / 2)).float()
    chosen = unknown.flatten(1).any(1).nonzero()[:, 0]
    fill = config.data.degradation.fill if isinstance(config.data.degradation, Mask) else -1.0
    filled = torch.where(unknown > 0, fill, seen.images)
    return torch.cat([filled, 1 - unknown], dim=1)[chosen], chosen


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
