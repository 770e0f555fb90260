"""How intensities become -1 to 1: the settings of each kind of map."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from meddiff.settings import Settings


class Window(Settings):
    """Fixed limits in the image's own unit, for instance HU: `low` becomes -1 and `high` becomes 1."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Window":
        if not self.low < self.high:
            raise ValueError(f"low must be below high; found low {self.low:g}, high {self.high:g}")
        return self


class Percentile(Settings):
    """Limits from each volume's own percentiles, for images without a unit such as MR."""

    kind: Literal["percentile"] = "percentile"
    low: float = Field(0.0, ge=0, lt=100)
    high: float = Field(99.5, gt=0, le=100)

    @model_validator(mode="after")
    def _ordered(self) -> "Percentile":
        if not self.low < self.high:
            raise ValueError(f"low must be below high; found low {self.low:g}, high {self.high:g}")
        return self


Intensity = Annotated[Window | Percentile, Field(discriminator="kind")]
