"""Images as an autoencoder sees them: the mean and the deviation of every latent, on disk, drawn from anew at every step.

A cached draw would put the autoencoder's own noise into the training set; mean and deviation leave it out.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from meddiff.data.arrays import open_array, write_array
from meddiff.data.loader import OUTSIDE, Draw, Images, centred, readable
from meddiff.data.manifest import Case
from meddiff.data.store import Store
from meddiff.data.transforms import AXES
from meddiff.errors import CaseError, ConfigError, ManifestError
from meddiff.seeds import generator

TOGETHER = 16  # slices that are encoded side by side
FORMAT = 1  # raise it when the encoding changes what it computes


def latents_path(store: Store, case: Case, weights: str) -> Path:
    """Where the latents of a case by an autoencoder of these weights lie."""
    key = f"{store.key(case)} {weights} {store.data.size} {FORMAT}"
    return store.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.latents.npy"


class LatentImages(Dataset):
    """The latents of `images`, (C, *size / factor), in units of `std` around `mean`."""

    def __init__(
        self,
        images: Images,
        weights: str,  # SHA-256 of the autoencoder's
        factor: int,  # voxels along each axis that a latent stands for
    ) -> None:
        if any(n % factor for n in images.data.size):
            raise ConfigError(
                f"data.size = {list(images.data.size)} must divide by {factor}, the voxels along each axis that a latent of this "
                "autoencoder stands for."
            )
        self.images, self.weights, self.factor = images, weights, factor
        self.cases, self.entries, self.items, self.labels = images.cases, images.entries, images.items, images.labels
        self.data = images.data
        self.size = [n // factor for n in images.data.size]
        self.in_units(torch.zeros(1), torch.ones(1))

    def in_units(self, mean: Tensor, std: Tensor) -> None:
        """Give latents as (z - mean) / std, each (C,)."""
        wide = (-1, *[1] * len(self.size))
        self.mean, self.std = mean.view(wide), std.view(wide)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str | int]:
        draw, item, unreadable = readable(self, draw)
        case = self.cases[self.items[draw.item].case].case
        return {**item, "case": case, "seed": draw.seed, "unreadable": unreadable}

    def image(self, index: int, seed: int) -> dict[str, Tensor]:
        """A draw from the latents of item `index` as "image", (C, *size) float32; the seed draws it and places a patch.

        CaseError where they cannot be read.
        """
        item = self.items[index]
        case = self.cases[item.case]
        try:
            array = open_array(self.path(case))[item.slice or 0]  # (2 C, *latents)
        except ManifestError as e:
            raise CaseError(f"{case.case}: {e}", case.case) from e
        start = self._start(case, array.shape[1:], item.slice, seed)
        here = tuple(slice(a, a + n) for a, n in zip(start, self.size, strict=True))
        mean, deviation = torch.from_numpy(array[(slice(None), *here)].copy()).chunk(2)
        z = mean + deviation * torch.randn(mean.shape, generator=generator(seed, "latent"))
        told = {name: values[item.case] for name, values in self.images.told.items()}
        return {"image": (z - self.mean) / self.std, **told}

    def _start(self, case: Case, room: Sequence[int], at: int | None, seed: int) -> list[int]:
        """The latent that a patch begins with: where the patch of the image would, rounded down."""
        if not self.images.random_crop:
            return centred(room, self.size)
        array = self.images.store.array(case)
        whole = array if at is None else self.images.plane(array, at)
        return [max(a, 0) // self.factor for a in self.images.place(whole, seed)]

    def path(self, case: Case) -> Path:
        """Where the latents of a case lie, (parts, 2 C, *latents) float32: the slices of a scan, or one volume."""
        return latents_path(self.images.store, case, self.weights)

    def prepare(
        self,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],  # images (B, 1, *spatial) -> mean, deviation
        on_case: Callable[[Case], None] | None = None,
    ) -> None:
        """Encode the cases that have not been."""
        for case in self.cases:
            if not self.path(case).exists():
                parts = [torch.cat(encode(some), dim=1) for some in self._parts(case).split(TOGETHER)]
                write_array(self.path(case), torch.cat(parts).float().cpu().numpy())
            if on_case:
                on_case(case)

    def _parts(self, case: Case) -> Tensor:
        """The slices (S, 1, *spatial) of a case, or its volume (1, 1, *spatial), at least as large as a patch."""
        volume = torch.from_numpy(self.images.store.array(case).astype(np.float32))
        parts = volume[None] if self.images.dims == 3 else volume.movedim(AXES[self.data.axis], 0)
        missing = [max(s - n, 0) for n, s in zip(parts.shape[1:], self.data.size, strict=True)]
        around = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        return F.pad(parts, around, value=OUTSIDE["image"])[:, None]
