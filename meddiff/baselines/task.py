"""The synthesis of images without diffusion: the same data, the same samples' meaning, another model."""

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from meddiff.baselines.gan import GAN
from meddiff.baselines.vae import VAE
from meddiff.diffusion.denoiser import Condition
from meddiff.tasks.synthesis import Synthesis


class BaselineSynthesis(Synthesis):
    """Unconditional images by a VAE or a GAN."""

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """The model's own loss, (B,); there is no noise level."""
        assert isinstance(model, VAE | GAN)
        return model.losses(x0, generators)
