"""The private step on patients made to be found: what the noise has to hide at worst.

Canary i is a patient whose gradient is the i-th unit vector, longer than max_grad_norm, so that the i-th weight says nothing
but whether it was trained on. The patients are drawn, their gradients clipped, summed and released by the code that trains
networks; only the network is one of a single layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.data.patients import PatientSteps
from meddiff.diffusion.denoiser import Condition
from meddiff.engines.budget import Budget
from meddiff.engines.ema import EMA
from meddiff.engines.private import private_trainer
from meddiff.engines.trainer import Skips
from meddiff.seeds import secret

if TYPE_CHECKING:
    from opacus.optimizers import DPOptimizer

LENGTH = 100.0  # of a canary's gradient, in units of max_grad_norm


class Revealing:
    """A task whose loss has the example itself as its gradient."""

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The unit vectors (B, m)."""
        return batch["image"], None

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """Minus the weights along the example, (B,): a step takes them that way."""
        return -model(x0).flatten()


def canary_scores(
    train: TrainConfig,  # with `privacy`
    included: Tensor,  # (m,) bool
    change: Callable[["DPOptimizer"], None] = lambda optimizer: None,  # breaks the build, to see whether that is found
) -> Tensor:
    """What the trained weights say of each canary, (m,); the patients are those of `included`."""
    assert train.privacy is not None
    number, m = train.privacy.images_per_patient, len(included)
    budget = Budget(train, int(included.sum()))
    model = nn.Linear(m, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = budget.guarded(torch.optim.SGD(model.parameters(), lr=train.lr), torch.device("cpu"))
    change(optimizer)
    device, diffusion = torch.device("cpu"), DiffusionConfig()
    engine = private_trainer(model, EMA(model, 0.0), optimizer, Revealing(), diffusion, train, device, Skips())
    patients = {str(i): [i] for i in range(m) if included[i]}
    steps = PatientSteps(patients, budget.rate, number, 0, train.steps, train.seed, secret())
    engine.run(_batches(steps, LENGTH * train.privacy.max_grad_norm * torch.eye(m)), epoch_length=train.steps)
    return model.weight.detach()[0]


def _batches(steps: PatientSteps, canaries: Tensor) -> Iterator[dict[str, Tensor]]:
    for draws in steps:
        yield {
            "image": canaries[torch.tensor([draw.item for draw in draws], dtype=torch.long)],
            "seed": torch.tensor([draw.seed for draw in draws], dtype=torch.long),
            "unreadable": torch.full((len(draws),), -1),
        }
