"""The settings of what diffusion is compared with; widths and levels are those of `network`."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from meddiff.settings import Settings


class VAEConfig(Settings):
    """A variational autoencoder (Kingma and Welling 2014)."""

    kind: Literal["vae"]
    latent: Annotated[int, Field(ge=1)] = 64  # numbers that an image is drawn from


class GANConfig(Settings):
    """A generative adversarial network with the loss of Huang et al. 2024; set train.betas and train.clip for it."""

    kind: Literal["gan"]
    latent: Annotated[int, Field(ge=1)] = 64  # numbers that an image is drawn from
    penalty: Annotated[float, Field(ge=0)] = 1.0  # on the critic's slope at real and at drawn images


Baseline = VAEConfig | GANConfig
BASELINE_KINDS = ("vae", "gan")


def refuse_unused(baseline: Baseline, given: Sequence[str]) -> None:
    """ValueError where settings are given that a baseline has no use for."""
    if given:
        raise ValueError(
            f"baseline: {baseline.kind} draws images of nothing and without diffusion; it has no {', '.join(given)}. "
            "Remove what it cannot use"
        )


def refuse_size(size: Sequence[int], multiple: int) -> None:
    """ValueError where halving an image does not come out even."""
    if any(n % multiple for n in size):
        raise ValueError(f"data.size = {list(size)} does not divide by {multiple}, as a baseline of these levels needs")
