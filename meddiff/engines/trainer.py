"""Ignite engines: one that trains a denoiser, one that measures its loss on held-out images. Handlers attach from outside."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import cos, isfinite, pi
from operator import itemgetter, methodcaller
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Average
from torch import Tensor, nn

from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.diffusion.sigmas import TRAINING, stratified
from meddiff.engines.ema import EMA
from meddiff.errors import ConfigError, RunError
from meddiff.seeds import derive, generator
from meddiff.tasks.task import Task


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is the first there is of cuda, mps, cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"train.device: {name!r} cannot be used here ({e}). Use cpu, or leave it at auto.") from e
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision of a name for a device."""
    if precision == "fp32":
        return nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"train.precision: fp16 needs a CUDA device, found {device.type}. Use bf16 or fp32.")
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


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
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas)


def trainer(
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,  # disabled but for fp16
    task: Task,
    diffusion: DiffusionConfig,
    train: TrainConfig,
    device: torch.device,
) -> Engine:
    """An engine whose iteration is one optimiser step; `state.output` is {"loss", "lr", "grad_norm"}.

    All randomness of a step is derived from the seed and the step. RunError where the loss is not finite.
    """
    sigma_of = training_sigmas(diffusion)
    autocast(device, train.precision)  # refuses what this device cannot do before the first step

    def step(engine: Engine, batch: Any) -> dict[str, float]:
        model.train()
        now = engine.state.iteration - 1
        x0, cond = task.example(batch)
        sigma = sigma_of(stratified(len(x0), generator(train.seed, "sigma", now))).float()
        noise = [generator(train.seed, "noise", now, i) for i in range(len(x0))]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, now)
        total = 0.0
        with _seeded_dropout(model, derive(train.seed, "dropout", now)):
            for part in torch.arange(len(x0)).chunk(train.accumulate):
                here = None if cond is None else cond.map(itemgetter(part)).map(methodcaller("to", device))
                with autocast(device, train.precision):
                    losses = task.losses(
                        model, x0[part].to(device), here, sigma[part].to(device), [noise[i] for i in part]
                    )
                loss = losses.sum() / len(x0)
                scaler.scale(loss).backward()
                total += float(loss.detach())
        if not isfinite(total):
            raise RunError(
                f"The loss is {total} at step {now + 1}. Nothing of this step was saved. Lower train.lr "
                f"(now {train.lr:g}), or use train.precision: fp32; then --resume from the last checkpoint with --force."
            )
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        return {"loss": total, "lr": learning_rate(train, now), "grad_norm": float(norm)}

    return Engine(step)


@contextmanager
def _seeded_dropout(model: nn.Module, seed: int) -> Iterator[None]:
    """torch draws dropout from its global generator: lend that a seed where there is dropout, and put its state back."""
    if not any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()):
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def evaluator(model: nn.Module, task: Task, diffusion: DiffusionConfig, device: torch.device, precision: str) -> Engine:
    """An engine over batches (batch of the loader, index of its first item) whose metric "loss" is the mean held-out loss.

    Item i always meets the same noise and the same sigma, the i-th point of a golden-ratio sequence through the
    training distribution: two models, or two moments of one, are compared on the same task.
    """
    sigma_of = training_sigmas(diffusion)

    @torch.no_grad()
    def step(engine: Engine, batch: tuple[dict[str, Any], int]) -> Tensor:
        x0, cond = task.example(batch[0])
        index = torch.arange(batch[1], batch[1] + len(x0))
        sigma = sigma_of(((index.double() + 0.5) * 0.6180339887498949 % 1).clamp(1e-4, 1 - 1e-4)).float()
        here = None if cond is None else cond.map(methodcaller("to", device))
        noise = [generator(0, "held-out", i) for i in index.tolist()]
        with autocast(device, precision):
            return task.losses(model, x0.to(device), here, sigma.to(device), noise)[:, None]  # Average wants (B, 1)

    engine = Engine(step)
    Average().attach(engine, "loss")
    return engine
