"""The run that another one is distilled from: whether it can be, and what it gives."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from meddiff.config import Config
from meddiff.data.conditions import Known
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.diffusion.distil import stretches
from meddiff.engines.predict import bounded, teacher_grid
from meddiff.engines.run import Run
from meddiff.errors import RunError
from meddiff.tasks.distillation import Distillation

ALIKE: dict[str, set[str]] = {  # what a teacher and its student must have in common, by section
    "data": {"spacing_mm", "size", "axis", "intensity", "paired", "modality"},
    "network": {"spatial_dims", "channels", "blocks", "attention", "head_channels", "norm_groups", "patch"},
    "diffusion": {"parameterization", "noise"},
    "condition": {"classes", "covariates", "mask", "image"},
}


class Teacher:
    """A trained run as a teacher of a config; RunError where it cannot be."""

    def __init__(self, config: Config, folder: Path, device: torch.device) -> None:
        run = Run.open(folder)
        own = run.config()
        if own.task != "synthesis" or own.train.distil is not None:
            what = f"of {own.task}" if own.train.distil is None else "distilled itself"
            raise RunError(f"{folder}: is {what}; a teacher is a run of synthesis that learned from images. Give one.")
        differ = [
            f"{section}.{name} is {found} there and {wanted} here"
            for section, names in ALIKE.items()
            for name, found, wanted in _differences(own, config, section, names)
        ]
        if differ:
            raise RunError(
                f"{folder}: cannot teach this config: {'; '.join(differ)}. A student has its teacher's images and network."
            )
        model, self.card = run.load_model(device)
        if not isinstance(model, Preconditioned):
            raise RunError(
                f"{folder}: is a baseline or a model of latents, which has no path to follow. Give another run."
            )
        self.folder, self.model = folder, model

    def task(self, config: Config, known: Known, device: torch.device) -> Distillation:
        """What the student learns; RunError where the manifest knows other labels, classes or covariates."""
        for what in ("labels", "classes", "covariates"):
            found, wanted = getattr(self.card.known, what), getattr(known, what)
            if found != wanted:
                raise RunError(
                    f"{self.folder}: was trained with {what} {found}; this manifest has {wanted}. Use its own."
                )
        return distillation(config, known, self.model, device)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Where the student begins."""
        return self.model.state_dict()


def distillation(config: Config, known: Known, model: Preconditioned, device: torch.device) -> Distillation:
    """The task of a config with `train.distil`, `model` being the teacher."""
    distil = config.train.distil
    assert distil is not None
    teacher = config.model_copy(update={"train": config.train.model_copy(update={"distil": None})})
    sigmas = stretches(teacher_grid(config), distil.evaluations)
    return Distillation(config, known, bounded(model, teacher, device, None), sigmas)


def _differences(one: Config, other: Config, section: str, names: set[str]) -> list[tuple[str, object, object]]:
    found, wanted = (getattr(c, section).model_dump(mode="json") for c in (one, other))
    return [(name, found[name], wanted[name]) for name in sorted(names) if found[name] != wanted[name]]
