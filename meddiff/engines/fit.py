"""From a config to a trained run: everything is put together here, and what watches a run attaches from outside."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import images_of, learn
from meddiff.data.loader import Images, augmented, fixed, training_loader
from meddiff.data.manifest import Case, Manifest
from meddiff.data.store import Entry
from meddiff.data.transforms import AXES
from meddiff.engines.card import Card, build_model, build_task, versions
from meddiff.engines.checkpoint import load_checkpoint, save_checkpoint
from meddiff.engines.ema import EMA
from meddiff.engines.run import Run
from meddiff.engines.trainer import choose_device, evaluator, optimizer_for, trainer
from meddiff.errors import ManifestError
from meddiff.tasks.synthesis import Synthesis
from meddiff.tasks.task import Space, Task

LOG_EVERY = 10  # steps
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
    images: Images  # that it trains on
    held_out: Images | None  # the split val
    device: torch.device


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

    Interrupted at any point and resumed, the weights are those of the uninterrupted run, bit by bit on a CPU.
    """
    run = Run.open(folder) if resume else Run(folder)
    if not resume:
        run.refuse_if_taken()
    device = choose_device(config.train.device)
    manifest = Manifest.read(config.data.manifest)
    identity = {"config": _digest(config), "manifest": manifest.digest}
    start, state = load_checkpoint(run.checkpoints, identity, force=force) if resume else (0, None)

    images = prepare(config, manifest, "train", on_case)
    known = learn(config, manifest)
    held_out = prepare(config, manifest, "val", on_case) if manifest.split("val") else None
    if held_out is None:
        log.warning("%s has no cases in the split val: no held-out loss is measured.", config.data.manifest)

    train = config.train
    task = build_task(config, known, augmented(images, train.reference, train.seed) if train.reference else None)
    sigma_data = _sigma_data(config, images, task)
    torch.manual_seed(train.seed)  # of the initial weights only; every later draw has a generator of its own
    model = build_model(config, sigma_data, images.labels, known.classes).to(device)
    ema = EMA(model, train.ema)
    optimizer = optimizer_for(model, train)
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    engine = trainer(model, ema, optimizer, scaler, task, config.diffusion, train, device)
    if state is not None:
        model.load_state_dict(state["model"])
        ema.model.load_state_dict(state["ema"])
        ema.updates = start
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    engine.load_state_dict({"iteration": start, "max_epochs": 1, "epoch_length": train.steps})

    run.begin(config, manifest)
    card = Card(
        sigma_data=sigma_data,
        space=_space(config, images.entries),
        labels=known.labels,
        classes=known.classes,
        covariates=known.covariates,
        manifest=manifest.digest,
        train_cases=len(images.cases),
        train_items=len(images),
        versions=versions(),
        limits=config.audit.digest,
    )
    session = Session(run, config, engine, model, task, ema, card, images, held_out, device)

    def save() -> None:
        step = engine.state.iteration
        state = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
        }
        save_checkpoint(run.checkpoints, step, state, identity)
        run.save_model(ema.model, card.model_copy(update={"step": step}))

    if held_out is not None:
        _measure(session, fixed(held_out, HELD_OUT))
    _write_log(session)
    for handler in attach:
        handler(session)
    engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=_every(train.checkpoint_every, train.steps)), save)
    if start < train.steps:
        engine.run(training_loader(images, train.batch, start, train.steps, train.seed))
    return run


def prepare(config: Config, manifest: Manifest, split: str, on_case: Callable[[Case], None] | None = None) -> Images:
    """The images of one split, preprocessed; ManifestError where the split is empty."""
    cases = manifest.split(split)
    if not cases:
        raise ManifestError(
            f"{config.data.manifest}: has no case in the split {split}. Scan again with another --split, or add cases."
        )
    return images_of(config, learn(config, manifest), manifest, cases, on_case)


def _every(n: int, last: int) -> Callable[[Engine, int], bool]:
    """True at each n-th step, and at the last."""
    return lambda engine, step: step % n == 0 or step == last


def _digest(config: Config) -> str:
    """Of what the weights depend on: not of where files lie, nor of how the model is used afterwards."""
    elsewhere = {"sample": True, "evaluate": True, "data": {"manifest", "cache", "workers"}}
    tree = config.model_dump(mode="json", exclude=elsewhere)  # type: ignore[arg-type]
    for key in ("device", "checkpoint_every", "validate_every", "preview_every"):
        del tree["train"][key]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _sigma_data(config: Config, images: Images, task: Task) -> float:
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
    task = build_task(session.config, session.card.known)
    judge = evaluator(session.ema.model, task, session.config.diffusion, session.device, train.precision)
    starts = range(0, len(items["image"]), batch)
    batches = [({name: value[i : i + batch] for name, value in items.items()}, i) for i in starts]

    def measure(engine: Engine) -> None:
        engine.state.metrics["held_out"] = float(judge.run(batches).metrics["loss"])

    session.engine.add_event_handler(
        Events.ITERATION_COMPLETED(event_filter=_every(train.validate_every, train.steps)), measure
    )


def _write_log(session: Session) -> None:
    """Attach log.jsonl and TensorBoard: the mean loss of the last steps, the rate, the held-out loss when it is new."""
    from torch.utils.tensorboard import SummaryWriter

    engine, train = session.engine, session.config.train
    writer = SummaryWriter(str(session.run.tensorboard))
    losses: list[float] = []
    noted: list[float | None] = [None]  # the held-out loss that is in the log already; it stays for others to show
    began = [time.monotonic()]

    def note(engine: Engine) -> None:
        output: dict[str, float] = engine.state.output  # type: ignore[assignment]
        losses.append(output["loss"])
        step = engine.state.iteration
        if step % LOG_EVERY and step != train.steps:
            return
        now = time.monotonic()
        rate = len(losses) / max(now - began[0], 1e-9)
        record = {"step": step, "loss": sum(losses) / len(losses), "lr": output["lr"], "grad_norm": output["grad_norm"]}
        engine.state.metrics["loss"] = record["loss"]
        if engine.state.metrics.get("held_out") != noted[0]:
            record["held_out"] = noted[0] = engine.state.metrics["held_out"]
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        with session.run.log_path.open("a") as file:
            file.write(json.dumps({**record, "steps_per_s": rate}) + "\n")
        losses.clear()
        began[0] = now

    engine.add_event_handler(Events.ITERATION_COMPLETED, note)
    engine.add_event_handler(Events.COMPLETED, lambda: writer.close())
