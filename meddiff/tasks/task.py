"""What a task is: it says what `x0` and the condition mean for a medical batch, and what samples mean to the reader."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from meddiff.diffusion.denoiser import Condition
from meddiff.imaging.volume import Volume


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

    channels: int  # of x0

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """`(x0, cond)` in model units from a batch of the loader."""
        ...

    def outcome(self, sample: Tensor, space: Space) -> dict[str, Volume]:
        """Named volumes in physical units from one sample (C, *spatial)."""
        ...
