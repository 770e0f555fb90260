"""What happens at the end of a training step besides the step: checkpoints, signals, cases that could not be read."""

from dataclasses import dataclass

from ignite.engine import Engine, Events

from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images
from meddiff.engines.card import Card
from meddiff.engines.checkpoint import save_checkpoint
from meddiff.engines.interruption import Interruption
from meddiff.engines.processes import first, raised
from meddiff.engines.quarantine import Quarantine
from meddiff.engines.run import Run
from meddiff.engines.state import Training
from meddiff.errors import Stopped


@dataclass
class Keeper:
    """Saves a run as it goes; of several processes the first one writes, and all must take part."""

    run: Run
    training: Training
    card: Card
    images: Images | LatentImages  # that it trains on
    identity: dict[str, str]  # digests of config and manifest
    keep: int  # newest checkpoints
    quarantine: Quarantine
    interruption: Interruption
    saved: int  # step of the newest checkpoint
    measured: int = 0  # step of the newest held-out loss

    def save(self, engine: Engine) -> None:
        """A checkpoint and the weights of this step, unless they are there."""
        step = engine.state.iteration
        if step == self.saved:
            return
        state = self.training.capture()
        if first():
            # no choice of weights by the loss of patients whom nothing protects: a private run has no best checkpoint
            judged = self.measured == step and self.training.budget is None
            loss = engine.state.metrics["held_out"] if judged else None
            save_checkpoint(self.run.checkpoints, step, state, self.identity, keep=self.keep, held_out=loss)
            self.run.save_model(state["ema"], self.training.stamp(self.card, step))
        self.saved = step

    def watch(self, engine: Engine) -> None:
        """Attach what looks at every step first: whether a case was unreadable, and whether a signal came."""

        def look(engine: Engine) -> None:
            unreadable: list[int] = engine.state.batch["unreadable"].tolist()  # type: ignore[index]
            stop, new = raised(self.interruption.asked, self.quarantine.found(self.images, unreadable))
            if new:
                self.quarantine.share()
                self.quarantine.write(self.run, engine.state.iteration)
            if stop:
                self.save(engine)
                raise Stopped(
                    f"Stopped by a signal after step {engine.state.iteration}, which is saved; --resume goes on."
                )

        engine.add_event_handler(Events.ITERATION_COMPLETED, look)
        self.interruption.begin()
