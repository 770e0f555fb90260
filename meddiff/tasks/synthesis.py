"""Synthesis: `x0` is the image, nothing is given, and a sample is an image of nobody."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from meddiff.data.transforms import placed
from meddiff.diffusion.denoiser import Condition
from meddiff.imaging.volume import Volume
from meddiff.tasks.task import Space


class Synthesis:
    """Unconditional images, 2D slices or 3D volumes."""

    channels = 1

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The image (B, 1, *size), without a condition."""
        return batch["image"], None

    def outcome(self, sample: Tensor, space: Space) -> dict[str, Volume]:
        """`image`: the sample in physical units, within the limits of the training intensities."""
        values = (sample[0].clamp(-1, 1).double().cpu().numpy() - space.offset) / space.scale
        image = placed(values.astype("float32"), space.spacing_mm, space.axis, modality=space.modality, unit=space.unit)
        return {"image": image}
