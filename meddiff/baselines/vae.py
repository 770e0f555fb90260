"""A variational autoencoder: MONAI's, with a likelihood that needs no weight."""

from collections.abc import Sequence

import torch
from monai.networks.nets import VarAutoEncoder
from torch import Generator, Tensor, nn

from meddiff.baseline_config import VAEConfig
from meddiff.config import NetworkConfig
from meddiff.diffusion.noise import draw
from meddiff.networks.blocks import convolution, depth_to_space, space_to_depth
from meddiff.seeds import generator

NOISES = 4  # that the loss of one image is averaged over
LEAST_ERROR = 1e-6  # mean square, model units: below it a reconstruction is called perfect


class VAE(nn.Module):
    """Images (B, 1, *size) and `latent` numbers each; samples are the decoder's mean for numbers from N(0, I)."""

    def __init__(self, settings: VAEConfig, network: NetworkConfig, size: Sequence[int]) -> None:
        super().__init__()
        self.latent, self.patch, self.dims = settings.latent, network.patch, network.spatial_dims
        channels = network.patch**self.dims
        self.network = VarAutoEncoder(
            spatial_dims=self.dims,
            in_shape=(channels, *(n // network.patch for n in size)),
            out_channels=network.channels[0],  # MONAI ends on a norm, which would take the brightness out of an image
            latent_size=settings.latent,
            channels=network.channels,
            strides=(1, *[2] * (len(network.channels) - 1)),
            num_res_units=network.blocks,
            norm=("group", {"num_groups": network.norm_groups}),
            use_sigmoid=False,
        )
        self.last = convolution(self.dims, network.channels[0], channels)

    def losses(self, x0: Tensor, generators: Sequence[Generator]) -> Tensor:
        """The negative evidence lower bound per voxel, up to a constant, (B,).

        The variance of the Gaussian likelihood is the best one for each image, its mean squared error: ln(error) / 2 takes the
        place of an error with a weight that would have to be tuned (Rybkin et al. 2021, section 3.2).
        """
        mean, log_variance = (v.float() for v in self.network.encode_forward(space_to_depth(x0, self.patch)))
        eps = draw("gaussian", (self.latent,), generators, like=mean)
        again = self._decode(mean + (log_variance / 2).exp() * eps)
        error = (again - x0).square().flatten(1).mean(1)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2  # from N(0, I)
        return error.clamp(min=LEAST_ERROR).log() / 2 + divergence / x0[0].numel()

    def sample(self, generators: Sequence[Generator]) -> Tensor:
        """One image for each generator, (B, 1, *size)."""
        device = next(self.parameters()).device
        return self._decode(draw("gaussian", (self.latent,), generators).to(device)).clamp(-1, 1)

    def memory(self, x0: Tensor) -> dict[str, Tensor]:
        """What gives away whom the model learned from: the loss of each image, (B,), with the same noise for all of them."""
        shared = [[generator(i, "membership") for _ in x0] for i in range(NOISES)]
        return {"bound": torch.stack([self.losses(x0, noise) for noise in shared]).mean(0)}

    def _decode(self, z: Tensor) -> Tensor:
        h = self.network.decode_forward(z, use_sigmoid=False)
        return depth_to_space(self.last(h).float(), self.patch, self.dims)
