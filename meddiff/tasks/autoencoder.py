"""Autoencoding: `x0` is the image, and what is learned is to find it again from far fewer numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Generator, Tensor, nn

from meddiff.config import AutoencoderConfig
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.losses import kl_divergence
from meddiff.diffusion.noise import draw


class Codec(Protocol):
    """What is trained: an image and unit noise of `latent_shape` -> reconstruction, mean and deviation."""

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]: ...

    def __call__(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


class Autoencoding:
    """Images of a Gaussian over latents that is as little as possible away from N(0, 1)."""

    def __init__(self, settings: AutoencoderConfig) -> None:
        self.kl = settings.kl

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The image (B, 1, *size), without a condition."""
        return batch["image"], None

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """Mean absolute error of the reconstruction of a draw, plus `kl` times the nats per voxel, (B,)."""
        codec = cast(Codec, model)
        eps = draw("gaussian", codec.latent_shape(x0.shape[2:]), generators, like=x0)
        image, mean, deviation = codec(x0, eps)
        error = (image.float() - x0).abs().flatten(1).mean(1)
        return error + self.kl * kl_divergence(mean, deviation) / x0[0].numel()
