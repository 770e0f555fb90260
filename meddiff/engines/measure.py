"""What one training step and one sample cost here: the real engine and the real sampler on invented images."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.utils import convert_to_tensor
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from meddiff.config import Config
from meddiff.config_file import parse_config
from meddiff.data.conditions import Known
from meddiff.data.transforms import augmentation, spacing_by_axis
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.engines.card import Card, Latents, build_model, build_task
from meddiff.engines.distil import distillation
from meddiff.engines.ema import EMA
from meddiff.engines.latents import Codec
from meddiff.engines.parallel import lay_out, repeatable
from meddiff.engines.predict import draw_samples
from meddiff.engines.restore import restore
from meddiff.engines.run import Run
from meddiff.engines.segment import segment
from meddiff.engines.trainer import choose_device, optimizer_for, trainer
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume
from meddiff.networks.autoencoder import Autoencoder
from meddiff.tasks.synthesis import Synthesis
from meddiff.tasks.task import Space

STEPS = (3, 8)  # timed steps, at least and at most
PATIENCE_S = 8.0  # after which the least is enough
FEW, MORE = 3, 5  # network evaluations of the two timed samples
SIGMA_DATA = 0.5  # of invented images; no cost depends on it


class Request(BaseModel):
    """What to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Config
    labels: tuple[str, ...] = ()  # of the label maps, where there are any
    classes: tuple[str, ...] = ()  # that an image may be asked for
    batch: int  # images that go through the network together
    size: tuple[int, ...]  # voxels per axis


class Step(BaseModel):
    """One training step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float  # median
    libraries: int  # bytes resident before there was a model; 0 on a GPU
    peak: int  # bytes, at most: resident for a CPU, of tensors for a GPU
    after: int  # bytes, between steps
    flops: float  # of convolutions, matrix products and attention, forward and backward
    parameters: int


class Drawn(BaseModel):
    """One sample, or one scan that is segmented, restored or reconstructed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    once: float  # seconds that do not depend on the number of evaluations
    evaluation: float  # seconds of one


def measure_step(request: Request) -> Step:
    """The cost of a training step of `batch` images of `size`; data are made as fast as they are read, and augmented."""
    config = resized(request)
    device = choose_device(config.train.device)
    libraries = _resident(device)
    latents, _ = _latents(config, device)
    model = build_model(config, SIGMA_DATA, request.labels, request.classes, latents)
    ema = EMA(model, config.train.ema)
    lay_out(model, config.train, device)
    lay_out(ema.model, config.train, torch.device(config.train.ema_device or device))
    shape = _shape(config, latents)
    known = _known(request)
    reference = None
    if config.train.reference:
        reference = next(_batches(config, request.model_copy(update={"batch": config.train.reference}), shape))
    task = build_task(config, known, reference)
    if config.train.distil is not None:
        assert isinstance(ema.model, Preconditioned)
        task = distillation(config, known, ema.model, device)  # a teacher of its size
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    optimizer = optimizer_for(model, config.train)
    engine = trainer(
        model,
        ema,
        optimizer,
        scaler,
        task,
        config.diffusion,
        config.train,
        device,
    )
    times: list[float] = []
    began = time.monotonic()

    def note() -> None:
        _wait(device)
        times.append(time.monotonic())
        if len(times) > STEPS[0] and (len(times) > STEPS[1] or times[-1] - began > PATIENCE_S):
            engine.terminate()

    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    with repeatable(config.train, device):
        engine.run(_batches(config, request, shape), max_epochs=1, epoch_length=STEPS[1] + 1)
    peak, after = _peak(device), _resident(device)
    seconds = median(b - a for a, b in pairwise(times))  # the first step is slower than the rest
    with FlopCounterMode(display=False) as counter:
        engine.run(_batches(config, request, shape), max_epochs=1, epoch_length=1)
    return Step(
        seconds=seconds,
        libraries=libraries,
        peak=peak,
        after=after,
        flops=counter.get_total_flops(),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def measure_sample(request: Request) -> Drawn:
    """The cost of one sample (one scan, or one slice of it, for the other tasks), `batch` side by side."""
    config = resized(request)
    device = choose_device(config.train.device)
    latents, codec = _latents(config, device)
    model = (
        build_model(config, SIGMA_DATA, request.labels, request.classes, latents)
        .to(device)
        .eval()
        .requires_grad_(False)
    )
    if codec is not None and latents is not None:
        model = codec.denoiser(model, latents)
    draw = _sampling(model, config, request, device)
    few, more = (_seconds(draw, _with_steps(config, n), device) for n in (FEW, MORE))
    evaluation = max(more - few, 0.0) / (MORE - FEW)
    return Drawn(once=max(few - FEW * evaluation, 0.0), evaluation=evaluation)


def resized(request: Request) -> Config:
    """The config with the batch and the size of a request, nothing accumulated."""
    tree = request.config.model_dump(mode="json")
    tree["data"]["size"] = list(request.size)
    tree["train"] |= {"batch": request.batch, "accumulate": 1}
    tree["sample"]["batch"] = request.batch
    return parse_config(tree, "the plan")


def _with_steps(config: Config, steps: int) -> Config:
    tree = config.model_dump(mode="json")
    tree["sample"] |= {"steps": steps, "samples": 1, "sampler": "euler"}
    tree["train"]["distil"] = None  # an evaluation costs the same, and any number of them can be asked for
    return parse_config(tree, "the plan")


def _known(request: Request) -> Known:
    labels = {name: i for i, name in enumerate(request.labels, 1)}
    return Known(labels, request.classes, dict.fromkeys(request.config.condition.covariates, (0.0, 1.0)))


def _latents(config: Config, device: torch.device) -> tuple[Latents | None, Codec | None]:
    if config.diffusion.latent is None:
        return None, None
    codec = Codec.open(config, Run(config.diffusion.latent), device)
    channels = codec.model.latent_channels
    units = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return Latents(autoencoder=codec.card.weights, factor=codec.model.factor, **units), codec


def _shape(config: Config, latents: Latents | None) -> tuple[int, ...]:
    """Of x0 without the batch."""
    factor, channels = (latents.factor, len(latents.mean)) if latents else (1, 1)
    return (channels, *(n // factor for n in config.data.size))


def _batches(config: Config, request: Request, shape: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Batches as the loader makes them, of numbers that mean nothing."""
    augment = augmentation(config.data, config.network.spatial_dims)
    rng, given = np.random.default_rng(0), config.condition
    image = (rng.random(shape, np.float32) * 2 - 1).astype(np.float16)
    label = rng.integers(0, len(request.labels) + 1, shape).astype(np.uint8)
    number = 0
    while True:
        items = []
        for _ in range(request.batch):
            item: dict[str, Tensor] = {"image": torch.from_numpy(image.astype(np.float32))}
            if request.labels:
                item["label"] = torch.from_numpy(label.astype(np.float32))
            if augment is not None:
                augment.set_random_state(seed=number)
                item = {name: convert_to_tensor(value) for name, value in augment(item).items()}
            if given.image:
                item["given"] = item["image"]
            if request.classes and given.classes and given.classes.column:
                item["class"] = torch.tensor(number % len(request.classes))
            if given.covariates:
                item["covariates"] = torch.zeros(len(given.covariates))
            items.append(item)
            number += 1
        seeds = torch.arange(number - request.batch, number)
        yield {**{name: torch.stack([item[name] for item in items]) for name in items[0]}, "seed": seeds}


def _sampling(model: nn.Module, config: Config, request: Request, device: torch.device) -> Callable[[Config], object]:
    """What `meddiff sample`, `segment`, `restore` or `evaluate` does with one batch of samples, one scan or one image."""
    names = [f"plan_{i}" for i in range(request.batch)]
    task = build_task(config, _known(request))
    if isinstance(task, Synthesis):
        cond = task.condition(next(_batches(config, request, (1, *config.data.size))))
        return lambda settings: list(draw_samples(model, settings, names, 0, cond=cond))
    if isinstance(model, Autoencoder):
        image = torch.rand(1, 1, *config.data.size, device=device)

        def reconstruct(settings: Config) -> object:
            with torch.no_grad():
                return model.decode(model.encode(image)[0])

        return reconstruct
    volume, card = _scan(config, request)
    if config.task == "segmentation":
        return lambda settings: segment(model, settings, card, volume, "plan", 0)
    return lambda settings: restore(model, settings, card, volume, "plan", 0, sigma=0.1)


def _scan(config: Config, request: Request) -> tuple[Volume, Card]:
    """An invented scan of the size, and a card that it fits."""
    i, j, k = (1.0 if np.isnan(mm) else mm for mm in spacing_by_axis(config.data))
    shape = list(config.data.size)
    if len(shape) == 2:
        shape.insert(("sagittal", "coronal", "axial").index(config.data.axis), 1)
    array = np.random.default_rng(0).random(shape, np.float32)
    volume = Volume(array, Geometry.make(tuple(shape), (i, j, k)), "OT", "a.u.")
    card = Card(
        sigma_data=SIGMA_DATA,
        space=Space((i, j, k), config.data.axis, 1.0, 0.0, "OT", "a.u."),
        labels={name: i for i, name in enumerate(request.labels, 1)},
        manifest="",
        train_cases=0,
        train_items=0,
    )
    return volume, card


def _seconds(act: Callable[[Config], object], config: Config, device: torch.device) -> float:
    """The faster of two calls."""
    taken = []
    for _ in range(2):
        began = time.monotonic()
        act(config)
        _wait(device)
        taken.append(time.monotonic() - began)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or _most()


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or _most()


def _status(name: str) -> int:
    """Bytes, from the kernel's account of this process; 0 where it keeps none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
