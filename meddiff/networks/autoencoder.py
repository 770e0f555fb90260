"""A KL autoencoder for 2D and 3D: images <-> a Gaussian over latents, `factor` times smaller along each axis.

MONAI's AutoencoderKL (Rombach et al. 2022, section 3.1) with what it lacks: any image size, windows over large volumes, and
deviations that are returned instead of drawn from. The latents also hold the lowest frequencies of their voxels, and the network
what these leave out (a shortcut after Chen et al. 2025, Deep Compression Autoencoder, section 3.1): it reconstructs an image
from the first step on. No attention: a latent follows from its surroundings alone, and windows agree where they overlap.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from meddiff.errors import NetworkError
from meddiff.networks.blocks import depth_to_space, space_to_depth

LOG_VARIANCE = -12.0  # of the latents before training


class Autoencoder(nn.Module):
    """Encoder x -> (mean, deviation) and decoder z -> x.

    NetworkError where the settings contradict each other, or an image is not what it was built for.
    """

    basis: Tensor  # (frequencies, factor**dims)

    def __init__(
        self,
        *,
        spatial_dims: int,  # 2 or 3
        latent_channels: int,
        channels: Sequence[int] = (32, 64, 64),  # per level; each level after the first halves the size
        blocks: int = 1,  # residual blocks per level, each way
        norm_groups: int = 8,  # must divide every entry of `channels`
        patch: int = 1,  # the first level works at 1/patch of the resolution: blocks of voxels as channels
        checkpointing: bool = False,  # recompute in the backward pass: less memory
        window: Sequence[int] | None = None,  # voxels per axis; larger images are taken in windows. None: never
    ) -> None:
        super().__init__()
        self.spatial_dims, self.latent_channels, self.patch = spatial_dims, latent_channels, patch
        self.factor = patch * 2 ** (len(channels) - 1)  # voxels along each axis that a latent stands for
        self.window = None if window is None else tuple(window)
        if self.window and any(n % (2 * self.factor) for n in self.window):
            raise NetworkError(
                f"Windows of {self.window} voxels do not divide into latents of {self.factor} with half of them shared; "
                f"use multiples of {2 * self.factor}."
            )
        voxels = patch**spatial_dims
        try:
            self.network = AutoencoderKL(
                spatial_dims=spatial_dims,
                in_channels=voxels,
                out_channels=voxels,
                channels=tuple(channels),
                num_res_blocks=blocks,
                attention_levels=[False] * len(channels),
                latent_channels=latent_channels,
                norm_num_groups=norm_groups,
                with_encoder_nonlocal_attn=False,
                with_decoder_nonlocal_attn=False,
                use_checkpoint=checkpointing,
            )
        except ValueError as e:
            raise NetworkError(f"No autoencoder can be built of channels {tuple(channels)}: {e}") from e
        self.register_buffer("basis", lowest(latent_channels, self.factor, spatial_dims), persistent=False)
        for part, bias in (("quant_conv_mu", 0.0), ("quant_conv_log_sigma", LOG_VARIANCE), ("decoder", 0.0)):
            # at the start the shortcut is all there is, and a deviation of 1 would drown it
            for name, parameter in self._last(part):
                nn.init.constant_(parameter, bias if name.endswith("bias") else 0.0)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction of a draw, mean and deviation; `eps` is unit noise of `latent_shape`."""
        mean, deviation = self._encode(self._padded(x))
        return self._decode(mean + deviation * eps)[self._crop(x.shape[2:])], mean, deviation

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """(latent_channels, *size of the latents) for an image of `size` voxels."""
        return (self.latent_channels, *(-(-n // self.factor) for n in size))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, each (B, latent_channels, *latents), of images (B, 1, *spatial) in model units."""
        return self._tiled(self._encode, self._padded(x), 1)

    def decode(self, z: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Images (B, 1, *spatial) of latents (B, latent_channels, *latents); cut to `size` voxels where it is given."""
        image = self._tiled(self._decode, z, self.factor)
        return image if size is None else image[self._crop(size)]

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self.network.encode(space_to_depth(x, self.patch))
        voxels = space_to_depth(x.float(), self.factor)  # (B, factor^dims, *latents)
        low = (
            torch.einsum("cv,bv...->bc...", self.basis, voxels) / self.basis.shape[1] ** 0.5
        )  # the first is their mean
        return mean + F.pad(low, [0, 0] * self.spatial_dims + [0, mean.shape[1] - low.shape[1]]), deviation

    def _decode(self, z: Tensor) -> Tensor:
        low = z[:, : len(self.basis)].float() * self.basis.shape[1] ** 0.5
        image = depth_to_space(torch.einsum("cv,bc...->bv...", self.basis, low), self.factor, self.spatial_dims)
        return image + depth_to_space(self.network.decode(z), self.patch, self.spatial_dims)

    def _last(self, part: str) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the last convolution of a part of the network."""
        convolutions = [m for m in self.network.get_submodule(part).modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        return list(convolutions[-1].named_parameters())

    def _filled(self, coarse: Tensor) -> Tensor:
        """With channels of 0 up to `latent_channels`."""
        return F.pad(coarse, [0, 0] * self.spatial_dims + [0, self.latent_channels - coarse.shape[1]])

    def _padded(self, x: Tensor) -> Tensor:
        """The image, its last voxels repeated until every size is a multiple of `factor`: MONAI would cut it short."""
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != 1:
            raise NetworkError(
                f"The autoencoder takes images as (batch, 1, {self.spatial_dims} sizes), found shape {tuple(x.shape)}."
            )
        missing = [-n % self.factor for n in x.shape[2:]]
        if not any(missing):
            return x
        return F.pad(x, [side for n in reversed(missing) for side in (0, n)], mode="replicate")

    def _tiled(self, act: Callable[[Tensor], Any], x: Tensor, scale: int) -> Any:
        """`act` on x (B, C, *sizes), in windows where x is larger than one; a voxel of x becomes `scale` of an image."""
        if self.window is None or all(scale * n <= w for n, w in zip(x.shape[2:], self.window, strict=True)):
            return act(x)
        roi = [min(w // scale, n) for n, w in zip(x.shape[2:], self.window, strict=True)]
        unit = self.factor // scale  # of x, along each axis: windows start at whole latents
        shared = [0.25 if n % (4 * unit) == 0 else 0.5 for n in roi]
        return sliding_window_inference(x, roi, 1, act, overlap=shared, mode="gaussian")

    def _crop(self, size: Sequence[int]) -> tuple:
        return (..., *(slice(n) for n in size))


def lowest(most: int, size: int, dims: int) -> Tensor:
    """The at most `most` lowest frequencies of a block of `size` voxels an axis: rows of its cosine transform, orthonormal.

    (frequencies, size**dims), voxels in the order of `space_to_depth`.
    """
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64) + 0.5
    along = (torch.pi * k * n / size).cos() * (2 / size) ** 0.5  # DCT-II
    along[0] /= 2**0.5
    chosen = sorted(product(range(size), repeat=dims), key=lambda f: (sum(i * i for i in f), f))[:most]
    return torch.stack([reduce(torch.kron, [along[i] for i in f]) for f in chosen]).float()
