"""Synthesis: `x0` is the image, nothing is given, and a sample is an image of nobody."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Generator, Tensor, nn

from meddiff.data.transforms import placed
from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.losses import denoising_loss
from meddiff.diffusion.noise import draw
from meddiff.imaging.volume import Volume
from meddiff.tasks.task import Space


class Synthesis:
    """Unconditional images, 2D slices or 3D volumes."""

    channels = 1

    def __init__(self, noise: str = "gaussian", reference: Tensor | None = None) -> None:
        self.noise, self.reference = noise, reference  # (N, 1, *size): see `losses.stable_target`

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The image (B, 1, *size), without a condition."""
        return batch["image"], None

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """The denoising loss, (B,)."""
        assert isinstance(model, Preconditioned)
        eps = draw(self.noise, x0.shape[1:], generators).to(x0)
        return denoising_loss(model, x0, eps, sigma, cond, self.reference)

    def outcome(self, sample: Tensor, space: Space) -> dict[str, Volume]:
        """`image`: the sample in physical units, within the limits of the training intensities."""
        values = (sample[0].clamp(-1, 1).double().cpu().numpy() - space.offset) / space.scale
        image = placed(values.astype("float32"), space.spacing_mm, space.axis, modality=space.modality, unit=space.unit)
        return {"image": image}
