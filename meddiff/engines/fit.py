"""From a config to a trained run: everything is put together here, and what watches a run attaches from outside."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader

from meddiff.config import Config
from meddiff.data.conditions import images_of, learn
from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images, augmented, close, fixed, training_loader
from meddiff.data.manifest import Case, Manifest
from meddiff.data.patients import PatientSteps, by_patient, patient_loader
from meddiff.engines.budget import Budget
from meddiff.engines.card import Card, build_model, build_task, versions
from meddiff.engines.distil import Teacher
from meddiff.engines.ema import EMA
from meddiff.engines.interruption import Interruption
from meddiff.engines.keeper import Keeper
from meddiff.engines.latents import Codec
from meddiff.engines.leaks import refuse_leaks
from meddiff.engines.learnt import sigma_data, space
from meddiff.engines.log import write_log
from meddiff.engines.parallel import lay_out, repeatable
from meddiff.engines.private import private_trainer
from meddiff.engines.processes import first, first_alone
from meddiff.engines.quarantine import Quarantine
from meddiff.engines.resume import digest, resumed
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
from meddiff.errors import ConfigError, ManifestError, RunError
from meddiff.seeds import secret
from meddiff.tasks.task import Task

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

    Interrupted at any point and resumed, the weights are those of the uninterrupted run, bit by bit on a CPU, and with
    `train.deterministic` on a GPU; of a private run only what is spent is. At a SIGTERM or SIGUSR1 it saves a checkpoint at
    the step's end and raises Stopped. Under `torchrun` every process calls this.
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
    refuse_leaks(config)
    part = own_part(train)
    if not resume:
        run.refuse_if_taken()
    elif first():
        held.enter_context(run.writing())
    device = choose_device(train.device)
    held.enter_context(repeatable(train, device))
    manifest = Manifest.read(config.data.manifest)
    codec = None if config.diffusion.latent is None else Codec.open(config, run, device)
    teacher = None if train.distil is None else Teacher(config, train.distil.teacher, device)
    source = teacher or codec  # of these two there is one at most
    others = "" if source is None else source.card.weights
    identity = {"config": digest(config, others), "manifest": manifest.digest}
    start, state = resumed(run, identity, others, force) if resume else (0, None)

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
    spread = sigma_data(config, images, task) if teacher is None else teacher.card.sigma_data
    budget = None if train.privacy is None else Budget(train, len(by_patient(images)))
    torch.manual_seed(train.seed)  # of the initial weights only; every later draw has a generator of its own
    model = build_model(config, spread, seen.labels, known.classes, latents)
    if teacher is not None:
        model.load_state_dict(teacher.weights)
    ema = EMA(model, train.ema)
    lay_out(model, train, device)
    lay_out(ema.model, train, torch.device(train.ema_device or device))
    optimizer = optimizer_for(model, train)
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    skips = Skips()
    training = Training(model, ema, optimizer, scaler, skips, budget)
    if state is not None:
        training.restore(state)
    if budget is None:
        engine = trainer(model, ema, optimizer, scaler, task, config.diffusion, train, device, skips)
    else:
        guarded = budget.guarded(optimizer, device)
        engine = private_trainer(model, ema, guarded, task, config.diffusion, train, device, skips)
    engine.load_state_dict({"iteration": start, "max_epochs": 1, "epoch_length": train.steps})

    card = Card(
        sigma_data=spread,
        space=space(config, images.entries),
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
            run.save_model(state["ema"], training.stamp(card, start))
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
        write_log(run, engine, train.steps, budget)
    for handler in attach:
        handler(session)
    every = Events.ITERATION_COMPLETED(event_filter=_every(train.checkpoint_every, train.steps))
    engine.add_event_handler(every, keeper.save)
    if start < train.steps:
        if budget is None:
            loader = training_loader(images, train.batch, start, train.steps, train.seed, part)
        else:
            loader = _private_loader(images, budget, start)
        try:
            engine.run(loader)
        except (RuntimeError, ConnectionError, EOFError) as e:
            raise _explained(e, keeper.saved) from e
        finally:
            close(loader)
    return run


def _private_loader(images: Images | LatentImages, budget: Budget, start: int) -> DataLoader:
    number, train = budget.settings.images_per_patient, budget.train
    return patient_loader(
        images, PatientSteps(by_patient(images), budget.rate, number, start, train.steps, train.seed, secret())
    )


def _explained(error: Exception, saved: int) -> Exception:
    """What the user can do about an error that torch raises when another process is gone; others as they are."""
    text = str(error)
    go_on = f"The checkpoint of step {saved} is whole; go on from it with --resume." if saved else "Start again."
    if "deterministic" in text:
        return ConfigError(
            f"train.deterministic: this GPU cannot do all of it in the same order each time ({text.splitlines()[0]}). Set "
            f"train.deterministic=false; the same run will then not give the same bytes again. {go_on}"
        )
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
