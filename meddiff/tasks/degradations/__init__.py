"""Degradations of images: drawn parameters and a deterministic act, so that what was done is recorded and can be repeated.

Images are (C, *spatial) in model units, 2D or 3D; -1 is background.
"""

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor

from meddiff.degradation_config import Degradation
from meddiff.errors import ConfigError
from meddiff.tasks.degradations import ct, kspace, noise, sampling
from meddiff.tasks.degradations.measured import Measured, Parameters, Units

__all__ = ["DEGRADATIONS", "Measured", "Parameters", "Units", "apply", "draw"]

DEGRADATIONS: dict[str, tuple[Callable[[Any, int, Units | None, Generator], Parameters], Callable[..., Measured]]] = {
    "gaussian": (noise.draw, noise.gaussian),
    "rician": (noise.draw, noise.rician),
    "low_dose_ct": (ct.draw, ct.low_dose_ct),
    "gibbs": (kspace.draw_gibbs, kspace.gibbs),
    "motion": (kspace.draw_motion, kspace.motion),
    "downsample": (sampling.draw_downsample, sampling.downsample),
    "mask": (sampling.draw_mask, sampling.mask),
}


def draw(
    settings: Degradation,
    generator: Generator,
    dims: int,  # spatial axes of the images, 2 or 3
    units: Units | None = None,  # only low_dose_ct needs them
) -> Parameters:
    """All that `apply` needs, as plain values that survive JSON; noise follows from a seed among them."""
    of_kind, _ = DEGRADATIONS[settings.kind]
    return {"kind": settings.kind, "dims": dims, **of_kind(settings, dims, units, generator)}


def apply(x: Tensor, parameters: Parameters) -> Measured:
    """The image (C, *spatial) degraded: same image, same parameters, same bytes."""
    kind = parameters.get("kind")
    if kind not in DEGRADATIONS:
        raise ConfigError(f"A degradation of kind {kind!r} is unknown; choose one of {', '.join(DEGRADATIONS)}.")
    if x.ndim - 1 != parameters["dims"]:
        raise ConfigError(
            f"These parameters of {kind} were drawn for {parameters['dims']} spatial axes; found {tuple(x.shape)}."
        )
    _, act = DEGRADATIONS[kind]
    return act(x, parameters)
