"""From an autoencoder that was trained to the latents that another model is trained on."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from meddiff.config import Config
from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images, fixed
from meddiff.data.manifest import Case
from meddiff.diffusion.compose import Latent, latent
from meddiff.engines.card import Card, Latents
from meddiff.engines.run import Run
from meddiff.errors import ConfigError, RunError
from meddiff.networks.autoencoder import Autoencoder

SAME = ("modality", "spacing_mm", "axis", "intensity")  # settings of `data` that both models must share
MEASURED = 256  # items, at most, that mean and deviation of the latents are measured on


@dataclass(frozen=True)
class Codec:
    """A trained autoencoder, as a model of latents needs it."""

    source: Run
    model: Autoencoder
    card: Card

    @classmethod
    def open(cls, config: Config, run: Run, device: torch.device) -> "Codec":
        """The autoencoder that `diffusion.latent` names, or the copy in the run's folder where there is one.

        RunError where it is no autoencoder, ConfigError where it is not for the images or the network of `config`.
        """
        assert config.diffusion.latent is not None
        source = Run.open(run.autoencoder if run.autoencoder.is_dir() else config.diffusion.latent)
        other = source.config()
        if other.task != "autoencoder":
            raise RunError(
                f"{source.folder}: is a run of {other.task}; diffusion.latent needs one of task: autoencoder, for instance of "
                "configs/autoencoder_3d_mr.yaml."
            )
        for name, ours, theirs in (
            ("network.spatial_dims", config.network.spatial_dims, other.network.spatial_dims),
            *((f"data.{key}", getattr(config.data, key), getattr(other.data, key)) for key in SAME),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"{name} is {ours}, the autoencoder {source.folder} was trained with {theirs}; use the same for both."
                )
        _check_levels(config, other.network.multiple)
        model, card = source.load_model(device)
        return cls(source, cast(Autoencoder, model), card)

    def encoded(
        self, images: Images, held_out: Images | None, on_case: Callable[[Case], None] | None = None
    ) -> tuple[LatentImages, LatentImages | None, Latents]:
        """The latents of both, encoded where they are not in the cache, in units in which the training ones have unit deviation.

        The third is what the card of a model of them says.
        """
        latents = self._prepared(images, on_case)
        z = fixed(latents, MEASURED)["image"].transpose(0, 1).flatten(1).double()  # (C, all)
        mean, std = z.mean(1).float(), z.std(1).clamp(min=1e-6).float()
        latents.in_units(mean, std)
        others = None if held_out is None else self._prepared(held_out, on_case)
        if others is not None:
            others.in_units(mean, std)
        units = {"mean": tuple(mean.tolist()), "std": tuple(std.tolist())}
        return latents, others, Latents(autoencoder=self.card.weights, factor=self.model.factor, **units)

    def _prepared(self, images: Images, on_case: Callable[[Case], None] | None) -> LatentImages:
        device = next(self.model.parameters()).device
        latents = LatentImages(images, self.card.weights, self.model.factor)
        with torch.no_grad():
            latents.prepare(lambda x: self.model.encode(x.to(device)), on_case)
        return latents

    def denoiser(self, model: nn.Module, latents: Latents) -> Latent:
        """A model of the latents with what decodes them."""
        return latent(model, self.model, latents.mean, latents.std).to(next(model.parameters()).device)

    def copy_to(self, run: Run) -> None:
        """Put what decodes the latents into the folder of the run, so that it is complete and can be moved."""
        if run.autoencoder.is_dir():
            return
        partial = run.autoencoder.with_name(".autoencoder.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in (self.source.config_path, self.source.card_path, self.source.weights_path):
            shutil.copyfile(path, partial / path.name)
        partial.rename(run.autoencoder)


def _check_levels(config: Config, factor: int) -> None:
    size, least = [n // factor for n in config.data.size], config.network.multiple
    if min(size) < least:
        raise ConfigError(
            f"data.size = {list(config.data.size)} has {size} latents, too few for {len(config.network.channels)} levels of "
            f"network.channels with network.patch = {config.network.patch}: {least} an axis are needed. Use fewer levels, or "
            "an autoencoder with fewer."
        )
