"""What a task is: it says what `x0` and the condition mean for a medical batch, and what samples mean to the reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from meddiff.diffusion.denoiser import Condition


@dataclass(frozen=True)
class Space:
    """The grid and the units that a model was trained in: what turns a tensor back into a volume."""

    spacing_mm: tuple[float, float, float]  # RAS
    axis: str  # what a 2D slice is perpendicular to
    scale: float  # model = scale * value + offset
    offset: float
    modality: str
    unit: str


class Task(Protocol):
    """The meaning of channels; see the table in docs/ideas.md."""

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """`(x0, cond)` from a batch of the loader."""
        ...

    def losses(
        self,
        model: nn.Module,
        x0: Tensor,
        cond: Condition | None,
        sigma: Tensor,  # (B,)
        generators: Sequence[Generator],  # one per case: all noise comes from them
    ) -> Tensor:
        """What training makes smaller, per case; shape (B,)."""
        ...


def left_out(share: float, generators: Sequence[Generator]) -> bool:
    """Whether a second network, which learns in a `share` of the steps, is left out of this one; no draw where it never is."""
    return share < 1 and torch.rand((), generator=generators[0]).item() >= share
