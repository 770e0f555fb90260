"""Pictures while a run trains: the same noise each time, so that only the model changes from one to the next."""

from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

import torch
from ignite.engine import Events
from torch import Tensor

from meddiff.data.loader import fixed
from meddiff.diffusion.answered import Restored
from meddiff.diffusion.compose import Latent
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.noise import draw
from meddiff.diffusion.posterior import LabelPosterior, Posterior
from meddiff.diffusion.samplers import OnStep
from meddiff.engines.fit import Session
from meddiff.engines.predict import draw_samples, sampling_sigmas
from meddiff.engines.processes import first
from meddiff.networks.autoencoder import Autoencoder
from meddiff.report.figures import save_mosaic, save_panels, save_process
from meddiff.seeds import generator
from meddiff.tasks.restoration import answer
from meddiff.tasks.synthesis import Synthesis

SHOWN = {2: 16, 3: 2}  # samples in a preview, by the network's dimensions
GIVEN = {2: 8, 3: 2}  # images with a condition in a preview
STAGES = 8  # columns of the pictures of the process


def previews(session: Session) -> None:
    """Attach pictures: `step_00000500.png` every `train.preview_every` steps; for diffusion of images also the two processes.

    Synthesis shows samples. The other tasks show what they do with a few held-out images, or training images where no
    split was held out. Of several processes all draw, since each may hold a share of the model, and the first saves.
    """
    if session.config.task != "synthesis":
        _attach(session, _given(session))
        return
    _attach(session, lambda path: save_preview(session, path))
    if session.config.baseline is not None:
        return
    if first():
        session.engine.add_event_handler(
            Events.STARTED, lambda: save_forward(session, session.run.previews / "forward.png")
        )
    session.engine.add_event_handler(
        Events.COMPLETED,
        lambda: _with_average(session, lambda: save_reverse(session, session.run.previews / "reverse.png")),
    )


def _attach(session: Session, save: Callable[[Path], None]) -> None:
    every, last = session.config.train.preview_every, session.config.train.steps

    def show() -> None:
        step = session.engine.state.iteration
        if step % every == 0 or step == last:
            _with_average(session, lambda: save(session.run.previews / f"step_{step:08d}.png"))

    session.engine.add_event_handler(Events.ITERATION_COMPLETED, show)


def _with_average(session: Session, act: Callable[[], None]) -> None:
    with session.ema.on(session.device):
        act()


def _given(session: Session) -> Callable[[Path], None]:
    """What saves the pictures of a task with a condition, for the same images each time."""
    images = session.held_out or session.images
    batch = fixed(images, 2 * GIVEN[session.config.network.spatial_dims] + 1)
    batch = {name: value[1::2] for name, value in batch.items()}  # the ends of a volume show little
    save = {"segmentation": save_labels, "restoration": save_restored, "autoencoder": save_reconstructed}
    return lambda path: save[session.config.task](session, batch, path)


@torch.no_grad()
def save_labels(session: Session, batch: dict[str, Tensor], path: Path) -> None:
    """Columns of images, their label maps, the most probable labels, and the probability that they are wrong."""
    model = session.ema.model
    assert isinstance(model, Posterior | LabelPosterior)
    image = batch["image"].to(session.device)
    blind = image.new_tensor(0.0 if isinstance(model, LabelPosterior) else inf)
    p = model(image.new_zeros(len(image), model.classes, *image.shape[2:]), blind, Condition(image)).cpu()
    grey = 2 / (model.classes - 1)
    panels = [
        ("Image", batch["image"]),
        ("Label", batch["label"] * grey - 1),
        ("First answer", p.argmax(1, keepdim=True) * grey - 1),
        ("Doubt", 1 - 2 * p.amax(1, keepdim=True)),
    ]
    if first():
        save_panels(path, panels, 1)


@torch.no_grad()
def save_restored(session: Session, batch: dict[str, Tensor], path: Path) -> None:
    """Columns of clean images, what was made of them, and the first answer."""
    model, task = session.ema.model, session.task
    assert isinstance(model, Restored)
    x0, cond = task.example(batch)
    assert cond is not None
    assert cond.image is not None
    m, _, _ = answer(model, cond.map(lambda v: v.to(session.device)))
    if first():
        save_panels(path, [("Clean", x0), ("Degraded", cond.image[:, :1]), ("First answer", m.cpu())], 1)


@torch.no_grad()
def save_reconstructed(session: Session, batch: dict[str, Tensor], path: Path) -> None:
    """Columns of images and what is left of them after encoding and decoding."""
    model, image = session.ema.model, batch["image"]
    assert isinstance(model, Autoencoder)
    decoded = model.decode(model.encode(image.to(session.device))[0], image.shape[2:]).cpu()
    if first():
        save_panels(path, [("Image", image), ("Reconstruction", decoded)], 1)


def save_preview(session: Session, path: Path) -> None:
    """A mosaic of samples with fixed seeds."""
    count = SHOWN[session.config.network.spatial_dims]
    samples = torch.stack(list(_drawn(session, count)))
    if first():
        save_mosaic(path, samples.clamp(-1, 1), columns=8 if count > 8 else 1, zoom=3)


def _drawn(session: Session, count: int, on_step: OnStep | None = None) -> Iterator[Tensor]:
    """Samples with fixed seeds, asked for what is known of as many held-out images, or training images."""
    cond = None
    if session.config.condition.any:
        assert isinstance(session.task, Synthesis)
        batch = fixed(session.held_out or session.images, count)
        cond, count = session.task.condition(batch), len(batch["image"])
    names = [f"preview_{i}" for i in range(count)]
    return draw_samples(session.denoiser, session.config, names, session.config.train.seed, cond=cond, on_step=on_step)


def save_forward(session: Session, path: Path) -> None:
    """How one training image becomes noise: `x0 + sigma * eps` at the sigmas that samples are drawn on."""
    image = fixed(session.images, 3)["image"][-2 if len(session.images) > 2 else 0]
    sigmas = _stages(sampling_sigmas(session.config)).flip(0)
    eps = draw(session.config.diffusion.noise, image.shape, [generator(0, "forward")])[0]
    rows = [("x", [_shown(session, image + s * eps) for s in sigmas])]
    save_process(path, "Forward process of one training image", rows, [f"$\\sigma$ = {s:.3g}" for s in sigmas])


def save_reverse(session: Session, path: Path) -> None:
    """How noise becomes one sample: the state, and the denoised image that each step saw."""
    states: list[Tensor] = []
    denoised: list[Tensor] = []

    def keep(i: int, x: Tensor, d: Tensor) -> None:
        states.append(_shown(session, x[0]))
        denoised.append(_shown(session, d[0]))

    list(_drawn(session, 1, keep))
    if not first():
        return
    sigmas = sampling_sigmas(session.config)[1:]
    chosen = torch.linspace(0, len(states) - 1, min(STAGES, len(states))).round().long().tolist()
    rows = [("x", [states[i] for i in chosen]), ("D(x)", [denoised[i] for i in chosen])]
    save_process(path, "Reverse process of one sample", rows, [f"$\\sigma$ = {sigmas[i]:.3g}" for i in chosen])


@torch.no_grad()
def _shown(session: Session, x: Tensor) -> Tensor:
    """The state of a sampler (C, *size) as an image: decoded where it is a latent."""
    return (session.denoiser.decode(x[None].to(session.device))[0] if isinstance(session.denoiser, Latent) else x).cpu()


def _stages(sigmas: Tensor) -> Tensor:
    chosen = torch.linspace(0, len(sigmas) - 1, min(STAGES, len(sigmas))).round().long()
    return sigmas[chosen]
