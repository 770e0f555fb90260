"""What a run learns of its training images before the first step: their spread, their grid and their units."""

from collections.abc import Sequence

import numpy as np

from meddiff.config import Config
from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images, fixed
from meddiff.data.store import Entry
from meddiff.data.transforms import AXES
from meddiff.errors import ManifestError
from meddiff.tasks.synthesis import Synthesis
from meddiff.tasks.task import Space, Task


def sigma_data(config: Config, images: Images | LatentImages, task: Task) -> float:
    """The standard deviation of what is drawn, in model units, over at most 256 training images."""
    if config.diffusion.sigma_data != "auto":
        return config.diffusion.sigma_data
    batch = fixed(images, 256)
    drawn = task.x0(batch) if isinstance(task, Synthesis) else batch["image"]
    return round(float(drawn.std()), 4)


def space(config: Config, entries: Sequence[Entry]) -> Space:
    """The grid and units of samples: those of the training volumes, medians where volumes differ."""
    spacing = np.median([e.geometry.spacing_mm for e in entries], axis=0).round(6).tolist()
    for axis, value in enumerate(config.data.spacing_mm if len(config.data.spacing_mm) == 3 else ()):
        spacing[axis] = value
    if len(config.data.spacing_mm) == 2:
        in_plane = [axis for axis in range(3) if axis != AXES[config.data.axis]]
        for axis, value in zip(in_plane, config.data.spacing_mm, strict=True):
            spacing[axis] = value
    kinds = sorted({(e.modality, e.unit) for e in entries})
    if len(kinds) > 1:
        raise ManifestError(f"The training cases mix {kinds}; a model needs one unit. Choose one with data.modality.")
    scale, offset = (float(np.median([getattr(e, name) for e in entries])) for name in ("scale", "offset"))
    return Space(tuple(spacing), config.data.axis, scale, offset, *kinds[0])
