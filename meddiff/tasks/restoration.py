"""Restoration: `x0` is the clean image, a degraded one is given, and samples are clean images that may have led to it."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from meddiff.config import DataConfig
from meddiff.data.transforms import AXES, spacing_by_axis
from meddiff.degradation_config import LowDoseCT, Mask
from meddiff.diffusion.answered import Restored
from meddiff.diffusion.denoiser import Condition
from meddiff.diffusion.losses import denoising_loss
from meddiff.diffusion.noise import draw
from meddiff.errors import ConfigError
from meddiff.intensity_config import Window
from meddiff.seeds import generator
from meddiff.tasks import degradations
from meddiff.tasks.degradations import Measured, Parameters, Units
from meddiff.tasks.task import left_out

LEVEL = 0.1  # model units; how far a degraded image is taken to be from the clean one where no noise level says it


class Restoration:
    """Clean images from degraded ones; the degradation of the config is drawn anew for every training image."""

    def __init__(
        self,
        data: DataConfig,
        share: float = 1.0,  # of a training batch: see `losses`
        steps: float = 1.0,  # the share of them: see `losses`
    ) -> None:
        if data.degradation is None:
            raise ConfigError("data.degradation is missing: restoration learns to undo it. Add one: {kind: gaussian}.")
        self.data, self.settings, self.share, self.steps = data, data.degradation, share, steps
        self.dims = len(data.size)
        self.known = int(isinstance(self.settings, Mask))  # channels beside the image: 1 where it was measured

    def degrade(self, image: Tensor, seed: int) -> tuple[Measured, Parameters]:
        """The image (1, *size) degraded, and by what."""
        parameters = degradations.draw(self.settings, generator(seed, "degrade"), self.dims, self._units())
        return degradations.apply(image, parameters), parameters

    def _units(self) -> Units | None:
        if not isinstance(self.settings, LowDoseCT):
            return None
        if not isinstance(self.data.intensity, Window):
            raise ConfigError("data.degradation low_dose_ct needs HU: give data.intensity as a window.")
        spacing = [s for i, s in enumerate(spacing_by_axis(self.data)) if self.dims == 3 or i != AXES[self.data.axis]]
        return Units((self.data.intensity.low, self.data.intensity.high), tuple(spacing))

    def condition(self, measured: Sequence[Measured]) -> Condition:
        """What the model is told of degraded images: the image, what was measured, and ln(level)."""
        parts = [torch.cat([m.image, m.mask]) if self.known else m.image for m in measured]
        levels = torch.tensor([[m.sigma] for m in measured]).nan_to_num(LEVEL)
        return Condition(torch.stack(parts), covariates=levels.log().float())

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """The clean image (B, 1, *size), and the degraded one as the condition."""
        degraded = [
            self.degrade(image, int(seed))[0] for image, seed in zip(batch["image"], batch["seed"], strict=True)
        ]
        return batch["image"], self.condition(degraded)

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """The error of the first answer over its scale, squared, plus the denoising loss of what it leaves, (B,).

        In training the second is measured on the first `share` of the batch, counting as if on all, and in a share of
        `steps` only, drawn at random: most of the time goes to the first answer, which every image needs.
        """
        assert isinstance(model, Restored)
        m, s, given = answer(model, cond)
        z = (x0 - m.float()) / s
        first = z.square().flatten(1).mean(1)
        if model.second is None or (model.training and left_out(self.steps, generators)):
            return first
        some = max(1, round(self.share * len(x0))) if model.training else len(x0)
        eps = draw("gaussian", x0.shape[1:], generators[:some], like=x0)
        left = denoising_loss(model.second, z[:some].detach(), eps, sigma[:some], given.map(itemgetter(slice(some))))
        return first + pad(left * len(x0) / some, (0, len(x0) - some))


def answer(model: Restored, cond: Condition | None) -> tuple[Tensor, Tensor, Condition]:
    """`Restored.answer` for the condition that `Restoration.condition` makes."""
    assert cond is not None
    assert cond.image is not None
    assert cond.covariates is not None
    known = cond.image[:, model.channels :]
    y, level = cond.image[:, : model.channels], cond.covariates[:, 0].exp()
    return model.answer(y, level, known if known.shape[1] else None)
