"""How images are made worse to train and test restoration: the settings of each kind of degradation.

A `Range` (low, high) says what is drawn from. Levels of noise are shares of the intensity range: 0.1 is a standard deviation
of a tenth of what lies between -1 and 1, thus 0.2 in model units.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from meddiff.settings import Settings


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"the first limit must not be above the second; found {limits[0]:g}, {limits[1]:g}")
    return limits


Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
LogRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]  # drawn evenly in its logarithm


class Gaussian(Settings):
    """White noise, the same everywhere."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: LogRange = (0.02, 0.2)  # share of the intensity range


class Rician(Settings):
    """The noise of an MR magnitude image (Gudbjartsson and Patz 1995); -1 is taken as no signal."""

    kind: Literal["rician"]
    sigma: LogRange = (0.02, 0.2)  # of the real and of the imaginary part, share of the intensity range


class LowDoseCT(Settings):
    """Photon counts of a CT with parallel rays, reconstructed by filtered back projection; for images in HU."""

    kind: Literal["low_dose_ct"]
    photons: LogRange = (3e3, 3e5)  # per detector element and view, with nothing in the beam
    views: int = Field(64, ge=8)  # over half a turn
    kernel: Literal["ramp", "hann"] = "ramp"  # sharp, or with the high frequencies rolled off


class Gibbs(Settings):
    """Ringing: the outer lines of k-space were not measured."""

    kind: Literal["gibbs"]
    keep: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], Share], AfterValidator(_ordered)] = (
        0.4,
        0.9,
    )  # of lines
    axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] | None = None  # spatial axes; all unless given


class Motion(Settings):
    """Sudden shifts of the patient between runs of k-space lines."""

    kind: Literal["motion"]
    shift: Annotated[tuple[Annotated[float, Field(ge=0)], Positive], AfterValidator(_ordered)] = (
        0.2,
        2.0,
    )  # voxels, std
    moves: Annotated[tuple[Annotated[int, Field(ge=1)], int], AfterValidator(_ordered)] = (1, 4)  # how many
    axis: Annotated[int, Field(ge=0, le=2)] | None = None  # of phase encoding; drawn unless given


class Downsample(Settings):
    """Coarser voxels, each the mean of those it holds, shown on the fine grid again."""

    kind: Literal["downsample"]
    factor: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=2, max_length=3)  # per spatial axis


class Mask(Settings):
    """A region that was not measured."""

    kind: Literal["mask"]
    shape: Literal["box", "ellipsoid"] = "box"
    size: Annotated[tuple[Share, Share], AfterValidator(_ordered)] = (0.2, 0.5)  # of each axis
    fill: float = Field(-1.0, ge=-1, le=1)  # model units


Degradation = Annotated[Gaussian | Rician | LowDoseCT | Gibbs | Motion | Downsample | Mask, Field(discriminator="kind")]
DEGRADATION_KINDS = ("gaussian", "rician", "low_dose_ct", "gibbs", "motion", "downsample", "mask")
