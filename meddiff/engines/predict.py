"""From a trained run to samples, and from samples to files. A case's noise comes from (seed, case), never from its batch."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from meddiff.config import Config, SampleConfig
from meddiff.data.files import digest_file
from meddiff.data.manifest import Case, Manifest, Source
from meddiff.diffusion.compose import Latent, windowed
from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS, OnStep, grid_steps
from meddiff.diffusion.sigmas import GRIDS
from meddiff.engines.card import Card, build_task, versions
from meddiff.engines.checkpoint import write_atomic
from meddiff.engines.trainer import autocast
from meddiff.errors import RunError
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.volume import Volume
from meddiff.seeds import generator
from meddiff.tasks.synthesis import Synthesis


def sigma_grid(sample: SampleConfig) -> Tensor:
    """The sigmas of a sampling setting; `sample.steps` counts network evaluations, one of which finds the start."""
    return GRIDS[sample.grid](grid_steps(sample.sampler, sample.steps - 1), sample.sigma_min, sample.sigma_max)


def draw_samples(
    model: nn.Module,
    config: Config,
    names: Sequence[str],  # of the cases; a case's noise follows from its name
    seed: int,
    *,
    size: Sequence[int] | None = None,  # voxels; larger than data.size is sampled in windows
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """One sample (C, *size) in model units for each name, in order, `sample.batch` of them side by side."""
    sample = config.sample
    latents = model if isinstance(model, Latent) else None
    factor = latents.factor if latents else 1  # from here on sizes count latents, where the model is one of them
    size = tuple(-(-n // factor) for n in size or config.data.size)
    patch = [n // factor for n in config.data.size]
    channels = latents.channels if latents else _synthesis(config).channels
    device = next(model.parameters()).device
    denoise: Denoiser = model
    if any(n > p for n, p in zip(size, patch, strict=True)):
        denoise = windowed(model, patch, [min(sample.overlap // factor, p // 2) for p in patch])
    sampler = SAMPLERS[sample.sampler]
    if sample.sampler == "ancestral":
        sampler = partial(sampler, noise=config.diffusion.noise)

    def bounded(x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        with autocast(device, sample.precision):
            d = denoise(x, sigma, cond)
        return d if latents else d.clamp(-1, 1)  # the mean of images within -1..1 lies within -1..1

    sigmas = sigma_grid(sample)
    for first in range(0, len(names), sample.batch):
        batch = names[first : first + sample.batch]
        eps = draw(config.diffusion.noise, (channels, *size), [generator(seed, "start", name) for name in batch])
        x = sigmas[0].item() * eps.to(device)
        with torch.no_grad():
            x = x + bounded(
                x, sigmas[0].to(device)
            )  # at sigma_max D is the mean of the data: noise around it, not around 0
        way = [generator(seed, "way", name) for name in batch]
        drawn = sampler(bounded, x, sigmas, generators=way, on_step=on_step)
        if latents is None:
            yield from drawn.cpu()
            continue
        for z in drawn:
            with torch.no_grad():
                yield latents.decode(z[None])[0].cpu()


def sample_set(
    model: nn.Module,
    card: Card,
    config: Config,
    n: int,
    folder: Path,
    seed: int,
    write: Callable[[Path, Volume], Path],  # writes one image under a stem and returns its path
    on_case: Callable[[Tensor], None] | None = None,  # told each sample in model units,
) -> Manifest:
    """`n` samples as files, each beside a JSON sidecar, and the manifest of the set.

    Refuses a folder that holds anything but this very set.
    """
    settings = {
        "weights": card.weights,
        "step": card.step,
        "seed": seed,
        "sample": config.sample.model_dump(mode="json", exclude={"batch"}),
        "evaluations": evaluations(config.sample),
        "versions": versions(),
    }
    _refuse_other_set(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    task = _synthesis(config)
    names = [f"sample_{i:05d}" for i in range(n)]
    cases = []
    for name, sample in zip(names, draw_samples(model, config, names, seed), strict=True):
        volume = task.outcome(sample, card.space)["image"]
        path = write(folder / name, volume)
        sha256 = digest_file(path)
        sidecar = {"case": name, "file": path.name, "sha256": sha256, "synthetic": True, **settings}
        write_atomic(folder / f"{name}.json", json.dumps(sidecar, indent=2).encode())
        if path.name.endswith(".nii.gz"):
            cases.append(_case(name, path, volume, sha256))
        if on_case:
            on_case(sample)
    manifest = Manifest(tuple(cases), folder.absolute())
    if cases:
        manifest.write(folder / "manifest.jsonl")
    return manifest


def _synthesis(config: Config) -> Synthesis:
    """The task; RunError where it is another one."""
    task = build_task(config)
    if not isinstance(task, Synthesis):
        raise RunError(
            f"Samples of nobody need a run of synthesis; this one is of {config.task}. Use meddiff segment or restore."
        )
    return task


def write_image(stem: Path, volume: Volume) -> Path:
    """`stem.nii.gz`."""
    path = stem.with_name(f"{stem.name}.nii.gz")
    write_nifti(path, volume)
    return path


def evaluations(sample: SampleConfig) -> int:
    """Of the network, for one sample."""
    n = grid_steps(sample.sampler, sample.steps - 1)
    return 1 + (2 * n - 1 if sample.sampler == "heun" else n)


def _refuse_other_set(folder: Path, settings: dict) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, a folder is needed. Choose another name with -o.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    for sidecar in sorted(folder.glob("sample_*.json"))[:1]:
        found = json.loads(sidecar.read_text())
        if all(found.get(key) == value for key, value in settings.items()):
            return
    raise RunError(f"{folder}: holds something else than this set of samples. Choose a new folder with -o.")


def _case(name: str, path: Path, volume: Volume, sha256: str) -> Case:
    grid = volume.geometry
    return Case(
        case=name,
        patient=name,
        split="train",
        image=(Source(modality=volume.modality, path=path.name, sha256=sha256),),
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        affine=tuple(map(tuple, grid.affine.tolist())),
        unit=volume.unit,
        layout="synthetic",
    )
