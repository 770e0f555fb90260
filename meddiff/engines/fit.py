"""From a config to a trained run: everything is put together here, and what watches a run attaches from outside."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import images_of, learn
from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images, augmented, close, fixed, training_loader
from meddiff.data.manifest import Case, Manifest
from meddiff.data.store import Entry
from meddiff.data.transforms import AXES
from meddiff.engines.card import Card, build_model, build_task, versions
from meddiff.engines.checkpoint import load_checkpoint, refuse_other
from meddiff.engines.distil import Teacher
from meddiff.engines.ema import EMA
from meddiff.engines.interruption import Interruption
from meddiff.engines.keeper import Keeper
from meddiff.engines.latents import Codec
from meddiff.engines.log import write_log
from meddiff.engines.parallel import lay_out
from meddiff.engines.predict import teacher_grid
from meddiff.engines.processes import first, first_alone
from meddiff.engines.quarantine import Quarantine
from meddiff.engines.run import Run
from meddiff.engines.state import Training
from meddiff.engines.trainer import (
    Skips,
    choose_device,
    evaluator,
    held_out_batches,
    optimizer_for,
    own_part,
    trainer,
)
from meddiff.errors import ManifestError, RunError
from meddiff.tasks.synthesis import Synthesis
from meddiff.tasks.task import Space, Task

HELD_OUT = 256  # images, at most, that the held-out loss is measured on
log = logging.getLogger(__name__)


@dataclass
class Session:
    """A run while it trains: what a handler may want to look at."""

    run: Run
    config: Config
    engine: Engine  # state.iteration is the step, state.metrics holds "loss" and "held_out"
    model: nn.Module
    task: Task
    ema: EMA
    card: Card
    images: Images | LatentImages  # that it trains on
    held_out: Images | LatentImages | None  # the split val
    device: torch.device
    keeper: Keeper
    denoiser: nn.Module  # the EMA model as it is sampled from: of latents with what decodes them


def fit(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    force: bool = False,  # resume although config or data changed
    attach: Sequence[Callable[[Session], None]] = (),  # handlers: progress, previews
    on_case: Callable[[Case], None] | None = None,  # called for every volume prepared
) -> Run:
    """Train to `train.steps` and leave a complete run folder; bad input is refused before anything is written.

    Interrupted at any point and resumed, the weights are those of the uninterrupted run, bit by bit on a CPU. At a SIGTERM
    or SIGUSR1 it saves a checkpoint at the step's end and raises Stopped. Under `torchrun` every process calls this.
    """
    with ExitStack() as held:
        interruption = held.enter_context(Interruption())
        return _fit(
            config, Run.open(folder) if resume else Run(folder), resume, force, attach, on_case, interruption, held
        )


def _fit(
    config: Config,
    run: Run,
    resume: bool,
    force: bool,
    attach: Sequence[Callable[[Session], None]],
    on_case: Callable[[Case], None] | None,
    interruption: Interruption,
    held: ExitStack,
) -> Run:
    train = config.train
    part = own_part(train)
    if not resume:
        run.refuse_if_taken()
    elif first():
        held.enter_context(run.writing())
    device = choose_device(train.device)
    manifest = Manifest.read(config.data.manifest)
    codec = None if config.diffusion.latent is None else Codec.open(config, run, device)
    teacher = None if train.distil is None else Teacher(config, train.distil.teacher, device)
    source = teacher or codec  # of these two there is one at most
    others = "" if source is None else source.card.weights
    identity = {"config": _digest(config, others), "manifest": manifest.digest}
    start, state = _resumed(run, identity, others, force) if resume else (0, None)

    quarantine = Quarantine(config.data.unreadable_limit, len(manifest.split("train")) + len(manifest.split("val")))
    with first_alone():
        seen = prepare(config, manifest, "train", on_case, quarantine)
        known = learn(config, manifest)
        unseen = prepare(config, manifest, "val", on_case, quarantine) if manifest.split("val") else None
        images, held_out, latents = codec.encoded(seen, unseen, on_case) if codec is not None else (seen, unseen, None)
    if held_out is None:
        log.warning("%s has no cases in the split val: no held-out loss is measured.", config.data.manifest)

    task = build_task(config, known, augmented(images, train.reference, train.seed) if train.reference else None)
    if teacher is not None:
        task = teacher.task(config, known, device)
    sigma_data = _sigma_data(config, images, task) if teacher is None else teacher.card.sigma_data
    torch.manual_seed(train.seed)  # of the initial weights only; every later draw has a generator of its own
    model = build_model(config, sigma_data, seen.labels, known.classes, latents)
    if teacher is not None:
        model.load_state_dict(teacher.weights)
    ema = EMA(model, train.ema)
    lay_out(model, train, device)
    lay_out(ema.model, train, torch.device(train.ema_device or device))
    optimizer = optimizer_for(model, train)
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    skips = Skips()
    engine = trainer(model, ema, optimizer, scaler, task, config.diffusion, train, device, skips)
    training = Training(model, ema, optimizer, scaler, skips)
    if state is not None:
        training.restore(state)
    engine.load_state_dict({"iteration": start, "max_epochs": 1, "epoch_length": train.steps})

    card = Card(
        sigma_data=sigma_data,
        space=_space(config, images.entries),
        latents=latents,
        labels=known.labels,
        classes=known.classes,
        covariates=known.covariates,
        manifest=manifest.digest,
        train_cases=len(images.cases),
        train_items=len(images),
        versions=versions(),
        teacher="" if teacher is None else teacher.card.weights,
        limits=config.audit.digest,
    )
    if first():
        if not resume:
            held.enter_context(run.writing())
            run.refuse_if_taken()
        run.begin(config, manifest, start)
        if codec is not None:
            codec.copy_to(run)
        if state is not None:  # a kill may have come between the weights and their card
            run.save_model(state["ema"], card.model_copy(update={"step": start}))
    quarantine.write(run, start)
    keeper = Keeper(
        run, training, card, images, identity, train.keep_checkpoints, quarantine, interruption, saved=start
    )
    denoiser = ema.model if codec is None or latents is None else codec.denoiser(ema.model, latents)
    session = Session(run, config, engine, model, task, ema, card, images, held_out, device, keeper, denoiser)
    keeper.watch(engine)
    if held_out is not None:
        _measure(session, fixed(held_out, HELD_OUT))
    if first():
        write_log(run, engine, train.steps)
    for handler in attach:
        handler(session)
    every = Events.ITERATION_COMPLETED(event_filter=_every(train.checkpoint_every, train.steps))
    engine.add_event_handler(every, keeper.save)
    if start < train.steps:
        loader = training_loader(images, train.batch, start, train.steps, train.seed, part)
        try:
            engine.run(loader)
        except (RuntimeError, ConnectionError, EOFError) as e:
            raise _explained(e, keeper.saved) from e
        finally:
            close(loader)
    return run


def _resumed(run: Run, identity: dict[str, str], others: str, force: bool) -> tuple[int, dict[str, Any] | None]:
    """Step and state to go on from; step 0 without a state where the run was stopped before its first checkpoint."""
    if any(run.checkpoints.glob("step_*.pt")):
        return load_checkpoint(run.checkpoints, identity, force=force)
    if not force:
        own = {"config": _digest(run.config(), others), "manifest": run.manifest().digest}
        refuse_other(str(run.config_path), own, identity)
    log.warning("%s: was stopped before its first checkpoint; it starts again.", run.folder)
    return 0, None


def _explained(error: Exception, saved: int) -> Exception:
    """What the user can do about an error that torch raises when another process is gone; others as they are."""
    text = str(error)
    go_on = f"The checkpoint of step {saved} is whole; go on from it with --resume." if saved else "Start again."
    if "DataLoader worker" in text or isinstance(error, ConnectionError | EOFError):
        what = text.splitlines()[0] if text else type(error).__name__
        return RunError(
            f"A loader process ended ({what}); mostly memory or /dev/shm is short. Use fewer data.workers. {go_on}"
        )
    if isinstance(error, torch.distributed.DistError) or "gloo" in text:
        return RunError(f"Another process of this run ended; its own message says why. {go_on}")
    return error


def prepare(
    config: Config,
    manifest: Manifest,
    split: str,
    on_case: Callable[[Case], None] | None = None,
    quarantine: Quarantine | None = None,  # takes the cases that cannot be read; without it they are errors
) -> Images:
    """The images of one split, preprocessed; ManifestError where the split is empty."""
    cases = manifest.split(split)
    if not cases:
        raise ManifestError(
            f"{config.data.manifest}: has no case in the split {split}. Scan again with another --split, or add cases."
        )

    def build(cases: Sequence[Case]) -> Images:
        return images_of(config, learn(config, manifest), manifest, cases, on_case)

    return build(cases) if quarantine is None else quarantine.readable(cases, build)


def _every(n: int, last: int) -> Callable[[Engine, int], bool]:
    """True at each n-th step, and at the last."""
    return lambda engine, step: step % n == 0 or step == last


def _digest(config: Config, others: str = "") -> str:
    """Of what the weights depend on: not of where files lie, nor of how the model is used afterwards.

    `others` is the SHA-256 of the weights of the run that `diffusion.latent` or `train.distil` names.
    """
    elsewhere = {
        "sample": True,
        "evaluate": True,
        "data": {"manifest", "cache", "workers", "unreadable_limit"},
        "diffusion": {"latent"},
        "train": {
            "device": True,
            "checkpoint_every": True,
            "validate_every": True,
            "preview_every": True,
            "keep_checkpoints": True,
            "nonfinite_limit": True,
            "parallel": True,
            "compile": True,
            "channels_last": True,
            "ema_device": True,
            "distil": {"teacher"},
        },
    }
    tree = config.model_dump(mode="json", exclude=elsewhere)  # type: ignore[arg-type]
    if config.train.distil is not None:  # the levels that it learns are those it samples on
        tree["train"]["distil"]["sigmas"] = teacher_grid(config).tolist()
    return hashlib.sha256((json.dumps(tree, sort_keys=True) + others).encode()).hexdigest()


def _sigma_data(config: Config, images: Images | LatentImages, task: Task) -> float:
    """The standard deviation of what is drawn, in model units, over at most 256 training images."""
    if config.diffusion.sigma_data != "auto":
        return config.diffusion.sigma_data
    batch = fixed(images, 256)
    drawn = task.x0(batch) if isinstance(task, Synthesis) else batch["image"]
    return round(float(drawn.std()), 4)


def _space(config: Config, entries: Sequence[Entry]) -> Space:
    """The grid and units of samples: those of the training volumes, medians where volumes differ."""
    spacing = np.median([e.geometry.spacing_mm for e in entries], axis=0).round(6).tolist()
    for axis, value in enumerate(config.data.spacing_mm if len(config.data.spacing_mm) == 3 else ()):
        spacing[axis] = value
    if len(config.data.spacing_mm) == 2:
        in_plane = [axis for axis in range(3) if axis != AXES[config.data.axis]]
        for axis, value in zip(in_plane, config.data.spacing_mm, strict=True):
            spacing[axis] = value
    kinds = sorted({(e.modality, e.unit) for e in entries})
    if len(kinds) > 1:
        raise ManifestError(f"The training cases mix {kinds}; a model needs one unit. Choose one with data.modality.")
    scale, offset = (float(np.median([getattr(e, name) for e in entries])) for name in ("scale", "offset"))
    return Space(tuple(spacing), config.data.axis, scale, offset, *kinds[0])


def _measure(session: Session, items: dict[str, Tensor]) -> None:
    """Attach the held-out loss of the EMA weights, in `engine.state.metrics["held_out"]`."""
    train, batch = session.config.train, session.config.train.batch
    # without the reference: the loss itself, whatever it was trained with
    task = session.task if train.distil else build_task(session.config, session.card.known)
    judge = evaluator(session.ema.model, task, session.config.diffusion, session.device, train.precision)
    batches = held_out_batches(items, batch)

    def measure(engine: Engine) -> None:
        with session.ema.on(session.device):
            engine.state.metrics["held_out"] = float(judge.run(batches).metrics["loss"])
        session.keeper.measured = engine.state.iteration

    session.engine.add_event_handler(
        Events.ITERATION_COMPLETED(event_filter=_every(train.validate_every, train.steps)), measure
    )
