"""A generative adversarial network: relativistic loss, penalties on the critic's slope, no tricks (Huang et al. 2024).

Generator and critic are trained by one optimiser on the sum of their losses, each loss being blind to the other's weights
(simultaneous gradient descent, which the penalties make converge: Mescheder et al. 2018). One step, one checkpoint and one
average of weights therefore serve the pair as they serve a denoiser.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from meddiff.baseline_config import GANConfig
from meddiff.config import NetworkConfig
from meddiff.diffusion.noise import draw
from meddiff.networks.blocks import convolution, depth_to_space, doubled, halved, space_to_depth, zeroed

SLOPE = 0.2  # of the leaky rectifier below 0


class Block(nn.Module):
    """Residual block without a norm, which starts as its skip connection: (B, inputs, ...) -> (B, outputs, ...)."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, kernel=1)
        self.one = convolution(dims, inputs, outputs)
        self.two = zeroed(convolution(dims, outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.two(F.leaky_relu(self.one(F.leaky_relu(x, SLOPE)), SLOPE))


class Painter(nn.Module):
    """The generator: numbers (B, latent) -> images (B, 1, *size), from the coarsest level to the finest."""

    def __init__(self, settings: GANConfig, network: NetworkConfig, size: Sequence[int]) -> None:
        super().__init__()
        dims, widths = network.spatial_dims, network.channels[::-1]
        self.patch, self.dims = network.patch, dims
        self.start = [n // (network.patch * 2 ** (len(widths) - 1)) for n in size]
        self.first = nn.Linear(settings.latent, widths[0] * prod(self.start))
        self.levels = nn.ModuleList(
            nn.Sequential(Block(dims, before, own), *(Block(dims, own, own) for _ in range(network.blocks - 1)))
            for before, own in pairwise((widths[0], *widths))
        )
        self.last = convolution(dims, widths[-1], network.patch**dims)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).unflatten(1, (-1, *self.start))
        for i, level in enumerate(self.levels):
            h = level(doubled(h) if i else h)
        return depth_to_space(self.last(h), self.patch, self.dims)


class Critic(nn.Module):
    """The discriminator: images (B, 1, *size) -> how real each looks, (B,)."""

    def __init__(self, network: NetworkConfig, size: Sequence[int]) -> None:
        super().__init__()
        dims, widths, self.patch = network.spatial_dims, network.channels, network.patch
        self.first = convolution(dims, network.patch**dims, widths[0])
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(dims, own, own) for _ in range(network.blocks - 1)), Block(dims, own, after))
            for own, after in pairwise((*widths, widths[-1]))
        )
        left = prod(n // (network.patch * 2 ** (len(widths) - 1)) for n in size)
        self.last = nn.Linear(widths[-1] * left, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(space_to_depth(x, self.patch))
        for i, level in enumerate(self.levels):
            h = level(halved(h) if i else h)
        return self.last(h.flatten(1))[:, 0]


class GAN(nn.Module):
    """A generator and the critic that it learns from."""

    def __init__(self, settings: GANConfig, network: NetworkConfig, size: Sequence[int]) -> None:
        super().__init__()
        self.latent, self.penalty = settings.latent, settings.penalty
        self.painter, self.critic = Painter(settings, network, size), Critic(network, size)

    def losses(self, x0: Tensor, generators: Sequence[Generator]) -> Tensor:
        """The generator's loss plus the critic's, per case, (B,): the gradient of each belongs to its own weights alone."""
        drawn = self.painter(draw("gaussian", (self.latent,), generators, like=x0))
        with torch.enable_grad():  # a held-out loss has the penalties too
            seen = [image.detach().clone().requires_grad_() for image in (x0, drawn)]
            real, fake = (self.critic(image) for image in seen)
            slopes = _slope(real, seen[0]) + _slope(fake, seen[1])
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        flattered = torch.func.functional_call(self.critic, frozen, (drawn,))
        painter, critic = F.softplus(real.detach() - flattered), F.softplus(fake - real)
        return painter.float() + critic.float() + self.penalty / 2 * slopes

    def sample(self, generators: Sequence[Generator]) -> Tensor:
        """One image for each generator, (B, 1, *size)."""
        device = next(self.parameters()).device
        return self.painter(draw("gaussian", (self.latent,), generators).to(device)).float().clamp(-1, 1)

    def memory(self, x0: Tensor) -> dict[str, Tensor]:
        """What gives away whom the model learned from: how unreal the critic finds each image, (B,)."""
        return {"critic": -self.critic(x0)}


def _slope(score: Tensor, image: Tensor) -> Tensor:
    """The squared norm of the gradient of each image's score by that image, (B,)."""
    (gradient,) = torch.autograd.grad(score.sum(), image, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)
