"""Ignite engines: one that trains a denoiser, one that measures its loss on held-out images. Handlers attach from outside."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from math import cos, isfinite, pi
from operator import itemgetter, methodcaller
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Average
from torch import Tensor, nn

from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.diffusion.noise import sent
from meddiff.diffusion.sigmas import TRAINING, stratified
from meddiff.engines.ema import EMA
from meddiff.engines.parallel import clipped, objective, reduced
from meddiff.engines.processes import rank, total, world
from meddiff.errors import ConfigError, RunError
from meddiff.seeds import derive, generator
from meddiff.tasks.task import Task

log = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first there is of cuda, mps, cpu."""
    if name == "auto":
        alone = world() == 1 and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if alone else "cpu"
    if name == "cuda" and world() > 1:
        name = f"cuda:{torch.cuda.current_device()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"train.device: {name!r} cannot be used here ({e}). Use cpu, or leave it at auto.") from e
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision of a name for a device; fp32, with a warning, in place of bf16 on a CPU that only emulates it."""
    if precision == "fp32" or (precision == "bf16" and device.type == "cpu" and not computes_bf16()):
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"train.precision: fp16 needs a CUDA device, found {device.type}. Use bf16 or fp32.")
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


@cache
def computes_bf16() -> bool:
    """Whether oneDNN convolves in bf16 on this CPU (on x86 from AVX-512 on). Elsewhere torch does, a hundred times slower than in
    fp32; says so when first asked."""
    able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not able:
        log.warning(
            "This CPU has no fast bf16: what asks for it is computed in fp32, which is more exact and takes more memory."
        )
    return able


def training_sigmas(diffusion: DiffusionConfig) -> Callable[[Tensor], Tensor]:
    """The quantile function of the sigmas to train on."""
    settings = diffusion.training.model_dump()
    return partial(TRAINING[settings.pop("kind")], **settings)


def learning_rate(train: TrainConfig, step: int) -> float:
    """Of step 0, 1, ...: linear warm-up, then a cosine that would reach 0 one step after the last."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    return train.lr * 0.5 * (1 + cos(pi * (step - train.warmup) / max(1, train.steps - train.warmup)))


def optimizer_for(model: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW, without weight decay on biases and norms (Loshchilov and Hutter 2019)."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # one pass over a weight's state in place of a dozen; it needs gradient and state in the weight's memory layout, as autograd
    # and `take_optimizer` keep them, and Opacus does not
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=train.privacy is None)


@dataclass
class Skips:
    """Steps whose loss or gradient was not finite, and which therefore changed nothing."""

    all: int = 0
    in_a_row: int = 0

    def count(self, healthy: bool) -> None:
        """Count a step."""
        self.all += not healthy
        self.in_a_row = 0 if healthy else self.in_a_row + 1


def own_part(train: TrainConfig) -> slice:
    """The positions of this process in the batch of a step; ConfigError where the batch cannot be shared evenly."""
    if train.batch % (world() * train.accumulate):
        raise ConfigError(
            f"train.batch = {train.batch} is shared by {world()} processes and {train.accumulate} parts of train.accumulate; "
            f"use a multiple of {world() * train.accumulate}, or another number of processes."
        )
    n = train.batch // world()
    return slice(rank() * n, (rank() + 1) * n)


def trainer(
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,  # disabled but for fp16
    task: Task,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    device: torch.device,
    skips: Skips | None = None,
) -> Engine:
    """An engine whose iteration is one optimiser step; `state.output` is {"loss", "lr", "grad_norm"} of the whole batch
    and {"skipped"}, the steps of the run that were skipped.

    A batch holds this process's part. All randomness of a step is derived from the seed, the step and the place in the
    whole batch. A step whose loss or gradient is not finite changes nothing; RunError after `train.nonfinite_limit` in a row.
    """
    sigma_of = training_sigmas(diffusion)
    autocast(device, train.precision)  # refuses what this device cannot do before the first step
    if train.sampling_steps < 1 and world() > 1:
        raise ConfigError(
            f"train.sampling_steps = {train.sampling_steps:g} leaves a network out of some steps, which {world()} processes "
            "cannot agree on. Set it to 1; restoration has train.sampling_share instead."
        )
    part_of_all, skipped = own_part(train), skips or Skips()
    losses_of = objective(model, task, train, device)
    send = partial(sent, device=device)

    def step(engine: Engine, batch: Any) -> dict[str, float]:
        model.train()
        now = engine.state.iteration - 1
        x0, cond = task.example(batch)
        first = part_of_all.start
        sigma = sigma_of(stratified(train.batch, generator(train.seed, "sigma", now))[part_of_all]).float()
        noise = [generator(train.seed, "noise", now, first + i) for i in range(len(x0))]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, now)
        own = 0.0
        parts = torch.arange(len(x0)).chunk(train.accumulate)
        for number, part in enumerate(parts, 1):
            here = None if cond is None else cond.map(itemgetter(part)).map(send)
            dropout = seeded_dropout(model, derive(train.seed, "dropout", now, first + int(part[0])), device)
            with dropout, reduced(losses_of, number == len(parts)):
                with autocast(device, train.precision):
                    losses = losses_of(send(x0[part]), here, send(sigma[part]), [noise[i] for i in part])
                loss = losses.sum() / train.batch
                scaler.scale(loss * world()).backward()  # the mean over processes of this is the mean over the batch
                own += float(loss.detach())
        scaler.unscale_(optimizer)
        norm, mean = clipped(model.parameters(), train.clip), total(own)
        healthy = isfinite(mean) and isfinite(norm)
        if healthy:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if healthy:
            ema.update(model)
        skipped.count(healthy)
        _judge(skipped, train, now, mean, norm)
        return {"loss": mean, "lr": learning_rate(train, now), "grad_norm": norm, "skipped": skipped.all}

    return Engine(step)


def _judge(skips: Skips, train: TrainConfig, now: int, loss: float, norm: float) -> None:
    """Say that a step was skipped; RunError where too many were."""
    if not skips.in_a_row:
        return
    what = f"The loss is {loss:g} and the gradient's norm {norm:g} at step {now + 1}"
    if skips.in_a_row >= train.nonfinite_limit:
        raise RunError(
            f"{what}, and {skips.in_a_row} steps in a row were skipped for that. Nothing of these was saved. Lower train.lr "
            f"(now {train.lr:g}), or use train.precision: fp32; then --resume from the last checkpoint with --force."
        )
    log.warning("%s: the step is skipped; %d skipped so far.", what, skips.all)


@contextmanager
def seeded_dropout(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """torch draws dropout from its global generator: lend that a seed where there is dropout, and put its state back."""
    if not any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def evaluator(model: nn.Module, task: Task, diffusion: DiffusionConfig, device: torch.device, precision: str) -> Engine:
    """An engine over batches (items of the loader, their indices, whether each counts); metric "loss": their mean loss.

    Item i always meets the same noise and the same sigma, the i-th point of a golden-ratio sequence through the
    training distribution: two models, or two moments of one, are compared on the same task. The mean is that over the
    items of all processes.
    """
    sigma_of = training_sigmas(diffusion)

    @torch.no_grad()
    def step(engine: Engine, batch: tuple[dict[str, Any], Tensor, Tensor]) -> Tensor:
        items, index, counts = batch
        x0, cond = task.example(items)
        sigma = sigma_of(((index.double() + 0.5) * 0.6180339887498949 % 1).clamp(1e-4, 1 - 1e-4)).float()
        here = None if cond is None else cond.map(methodcaller("to", device))
        noise = [generator(0, "held-out", i) for i in index.tolist()]
        with autocast(device, precision):
            losses = task.losses(model, x0.to(device), here, sigma.to(device), noise)
        return losses.cpu()[counts][:, None]  # Average wants (B, 1)

    engine = Engine(step)
    Average().attach(engine, "loss")
    return engine


def held_out_batches(items: dict[str, Tensor], size: int) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """This process's share of some items for `evaluator`, in batches; as many as every other process has.

    Where the items do not come out even, the last ones are repeated and do not count.
    """
    n = len(next(iter(items.values())))
    places = torch.arange(rank(), -(-n // world()) * world(), world())
    return [
        ({name: value[part % n] for name, value in items.items()}, part % n, part < n) for part in places.split(size)
    ]
