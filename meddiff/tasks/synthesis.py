"""Synthesis: `x0` is the image, with its label map beside it if it is asked for, and a sample is an image of nobody.

What may be given is a class, covariates, a label map to paint and another image; see `condition_config`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from meddiff.config import Config
from meddiff.data.conditions import Known
from meddiff.data.transforms import placed
from meddiff.diffusion.denoiser import Condition, Preconditioned
from meddiff.diffusion.losses import denoising_loss
from meddiff.diffusion.noise import draw
from meddiff.diffusion.posterior import one_hot
from meddiff.imaging.volume import Volume
from meddiff.seeds import derive
from meddiff.tasks.task import Space

LABEL = (
    0.5  # a channel of the label map is this where its label is and minus this elsewhere: as much spread as an image
)
NO_CLASS = -1


class Synthesis:
    """Images, 2D slices or 3D volumes; of nothing, or of what the config's `condition` names."""

    def __init__(
        self,
        config: Config,
        known: Known | None = None,  # what the config's condition and label maps can be; needed where it has any
        reference: Mapping[str, Tensor] | None = None,  # a batch of the loader: see `losses.stable_target`
    ) -> None:
        self.config, self.known = config, known or Known()
        self.labels = tuple(self.known.labels)
        self.channels, self.cond_channels = channels(config, self.labels)
        self.reference: Tensor | None = None
        self.reference_class: Tensor | None = None
        if reference is not None:
            self.reference = self.x0(reference)
            cond = self.condition(reference)
            self.reference_class = None if cond is None else cond.label

    def example(self, batch: Mapping[str, Any]) -> tuple[Tensor, Condition | None]:
        """x0 (B, C, *size) and its condition, which a share `condition.drop` of the images, by their seeds, is without."""
        cond = self.condition(batch)
        if cond is not None:
            share = [derive(int(seed), "drop") / 2**63 for seed in batch["seed"]]
            cond = dropped(cond, torch.tensor(share) < self.config.condition.drop)
        return self.x0(batch), cond

    def x0(self, batch: Mapping[str, Any]) -> Tensor:
        """The image, and after it the channels of background and labels if both are drawn, (B, C, *size)."""
        if not self.config.data.paired:
            return batch["image"]
        label = one_hot(batch["label"][:, 0].long(), len(self.labels) + 1)
        return torch.cat([batch["image"], LABEL * (2 * label - 1)], dim=1)

    def condition(self, batch: Mapping[str, Any]) -> Condition | None:
        """All that the config says is given of a batch: "label" and "given" (B, 1, *size), "class" (B,), "covariates"."""
        given, maps = self.config.condition, []
        if not given.any:
            return None
        if given.mask:
            maps.append(one_hot(batch["label"][:, 0].long(), len(self.labels) + 1)[:, 1:])
        if given.image:
            maps.append(batch["given"])
        if maps:
            maps.append(torch.ones_like(maps[0][:, :1]))  # there is something: what is dropped is 0 throughout
        return Condition(
            torch.cat(maps, dim=1) if maps else None,
            self.classes(batch) if given.classes else None,
            batch["covariates"] if given.covariates else None,
        )

    def classes(self, batch: Mapping[str, Any]) -> Tensor:
        """The class of each image (B,): of its case, or whether its label map shows the label."""
        if "class" in batch:
            return batch["class"]
        settings = self.config.condition.classes
        assert settings is not None
        assert settings.label is not None
        shown = batch["label"] == self.labels.index(settings.label) + 1
        return (shown.flatten(1).sum(1) >= settings.voxels).long()

    def losses(
        self, model: nn.Module, x0: Tensor, cond: Condition | None, sigma: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """The denoising loss, (B,)."""
        assert isinstance(model, Preconditioned)
        eps = draw(self.config.diffusion.noise, x0.shape[1:], generators, like=x0)
        reference = agrees = None
        if self.reference is not None:
            reference = self.reference = self.reference.to(x0.device)
            if cond is not None and cond.label is not None and self.reference_class is not None:
                own = cond.label.unsqueeze(1)
                agrees = (own == self.reference_class.to(own.device)) | (own == NO_CLASS)
        return denoising_loss(model, x0, eps, sigma, cond, reference, agrees)

    def outcome(self, sample: Tensor, space: Space, label: Tensor | None = None) -> dict[str, Volume]:
        """`image`: the sample in physical units, within the limits of the training intensities.

        `label`, in the data set's own numbers: the map that is drawn beside it, or the one (1, *size) it was drawn for.
        """
        values = (sample[0].clamp(-1, 1).double().cpu().numpy() - space.offset) / space.scale
        image = placed(values.astype("float32"), space.spacing_mm, space.axis, modality=space.modality, unit=space.unit)
        if self.config.data.paired:
            label = sample[1:].argmax(0, keepdim=True)
        if label is None:
            return {"image": image}
        numbers = self.numbers(label[0].long().cpu().numpy())
        return {"image": image, "label": placed(numbers, space.spacing_mm, space.axis, modality="SEG", unit="label")}

    def numbers(self, channel: np.ndarray) -> np.ndarray:
        """The data set's own numbers for those of the channels, 0 being background."""
        numbers = np.array([0, *self.known.labels.values()])
        return numbers[channel].astype(np.min_scalar_type(int(numbers.max())))


def dropped(cond: Condition, rows: Tensor | None = None) -> Condition:
    """The condition without what is given of some rows (B,), or of all: no class, unknown covariates, channels of 0."""

    def drop(values: Tensor, nothing: float) -> Tensor:
        if rows is None:
            return torch.full_like(values, nothing)
        return values.masked_fill(rows.to(values.device).view(-1, *[1] * (values.ndim - 1)), nothing)

    return Condition(
        None if cond.image is None else drop(cond.image, 0),
        None if cond.label is None else drop(cond.label, NO_CLASS),
        None if cond.covariates is None else drop(cond.covariates, torch.nan),
    )


def channels(config: Config, labels: Sequence[str]) -> tuple[int, int]:
    """Channels of x0 and of the condition's image."""
    given = config.condition
    maps = given.mask * len(labels) + (given.image is not None)
    return 1 + config.data.paired * (len(labels) + 1), maps + (maps > 0)
