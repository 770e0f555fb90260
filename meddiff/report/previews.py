"""Pictures while a run trains: the same noise each time, so that only the model changes from one to the next."""

from pathlib import Path

import torch
from ignite.engine import Events
from torch import Tensor

from meddiff.data.loader import fixed
from meddiff.diffusion.noise import draw
from meddiff.engines.fit import Session
from meddiff.engines.predict import draw_samples, sigma_grid
from meddiff.report.figures import save_mosaic, save_process
from meddiff.seeds import generator

SHOWN = {2: 16, 3: 2}  # samples in a preview, by the network's dimensions
STAGES = 8  # columns of the pictures of the process


def previews(session: Session) -> None:
    """Attach pictures: the forward process first, `step_00000500.png` every `train.preview_every` steps, the reverse process last."""
    every, last = session.config.train.preview_every, session.config.train.steps

    def show() -> None:
        step = session.engine.state.iteration
        if step % every == 0 or step == last:
            save_preview(session, session.run.previews / f"step_{step:08d}.png")

    session.engine.add_event_handler(
        Events.STARTED, lambda: save_forward(session, session.run.previews / "forward.png")
    )
    session.engine.add_event_handler(Events.ITERATION_COMPLETED, show)
    session.engine.add_event_handler(
        Events.COMPLETED, lambda: save_reverse(session, session.run.previews / "reverse.png")
    )


def save_preview(session: Session, path: Path) -> None:
    """A mosaic of samples with fixed seeds."""
    count = SHOWN[session.config.network.spatial_dims]
    names = [f"preview_{i}" for i in range(count)]
    samples = torch.stack(list(draw_samples(session.ema.model, session.config, names, session.config.train.seed)))
    save_mosaic(path, samples.clamp(-1, 1), columns=8 if count > 8 else 1, zoom=3)


def save_forward(session: Session, path: Path) -> None:
    """How one training image becomes noise: `x0 + sigma * eps` at the sigmas that samples are drawn on."""
    image = fixed(session.images, 3)["image"][-2 if len(session.images) > 2 else 0]
    sigmas = _stages(sigma_grid(session.config.sample)).flip(0)
    eps = draw(session.config.diffusion.noise, image.shape, [generator(0, "forward")])[0]
    rows = [("x", [image + s * eps for s in sigmas])]
    save_process(path, "Forward process of one training image", rows, [f"$\\sigma$ = {s:.3g}" for s in sigmas])


def save_reverse(session: Session, path: Path) -> None:
    """How noise becomes one sample: the state, and the denoised image that each step saw."""
    states: list[Tensor] = []
    denoised: list[Tensor] = []

    def keep(i: int, x: Tensor, d: Tensor) -> None:
        states.append(x[0].cpu())
        denoised.append(d[0].cpu())

    config = session.config
    list(draw_samples(session.ema.model, config, ["preview_0"], config.train.seed, on_step=keep))
    sigmas = sigma_grid(config.sample)[1:]
    chosen = torch.linspace(0, len(states) - 1, min(STAGES, len(states))).round().long().tolist()
    rows = [("x", [states[i] for i in chosen]), ("D(x)", [denoised[i] for i in chosen])]
    save_process(path, "Reverse process of one sample", rows, [f"$\\sigma$ = {sigmas[i]:.3g}" for i in chosen])


def _stages(sigmas: Tensor) -> Tensor:
    chosen = torch.linspace(0, len(sigmas) - 1, min(STAGES, len(sigmas))).round().long()
    return sigmas[chosen]
