"""What a run is at a step's end, as a checkpoint holds it; no random state, for there is none, or it must not be kept."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meddiff.engines.budget import Budget
from meddiff.engines.card import Card
from meddiff.engines.ema import EMA
from meddiff.engines.parallel import take_optimizer, take_weights, whole_optimizer, whole_weights
from meddiff.engines.trainer import Skips
from meddiff.errors import PrivacyError, RunError


@dataclass
class Training:
    """All that changes from step to step; the schedules are functions of the step."""

    model: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    skips: Skips
    budget: Budget | None = None  # of a private run

    def stamp(self, card: Card, step: int) -> Card:
        """The card of the weights as they are at this step."""
        privacy = None if self.budget is None else self.budget.guarantee
        return card.model_copy(update={"step": step, "privacy": privacy})

    def capture(self) -> dict[str, Any]:
        """The state on the CPU, in the first process; all processes must call it. RunError where a weight is not finite."""
        state: dict[str, Any] = {
            "model": whole_weights(self.model),
            "ema": whole_weights(self.ema.model),
            "updates": self.ema.updates,
            "optimizer": whole_optimizer(self.model, self.optimizer),
            "scaler": self.scaler.state_dict(),
            "skips": asdict(self.skips),
            **({} if self.budget is None else {"privacy": self.budget.capture()}),
        }
        broken = [f"{key}.{name}" for key in ("model", "ema") for name, v in state[key].items() if not _finite(v)]
        if broken:
            raise RunError(
                f"{len(broken)} weights are not finite, {broken[0]} the first. Nothing of this was saved: --resume goes on "
                "from the last checkpoint. Lower train.lr, or use train.precision: fp32."
            )
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Become what was captured; RunError where it does not fit this network, PrivacyError where a promise would not hold."""
        if (self.budget is None) != ("privacy" not in state):
            raise PrivacyError(
                f"The checkpoint was trained {'without' if self.budget else 'with'} train.privacy, and now the config is "
                f"{'with' if self.budget else 'without'} it. Nothing that is promised of such weights would hold; start a new run."
            )
        try:
            if self.budget is not None:
                self.budget.restore(state["privacy"])
            take_weights(self.model, state["model"])
            take_weights(self.ema.model, state["ema"])
            take_optimizer(self.model, self.optimizer, state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.ema.updates = state["updates"]
            self.skips.all, self.skips.in_a_row = state["skips"]["all"], state["skips"]["in_a_row"]
        except (KeyError, RuntimeError, ValueError, TypeError) as e:
            raise RunError(
                f"The checkpoint does not fit this network, or is of another version ({e}). Resume with the run's own "
                "config.yaml, or start a new run."
            ) from e


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
