"""Intensities by tissue of a synthetic set with label maps, beside those of real images."""

import logging
from dataclasses import dataclass

import numpy as np

from meddiff.config import Config
from meddiff.data.loader import Images
from meddiff.data.manifest import Manifest
from meddiff.data.store import Store, label_names
from meddiff.errors import ManifestError
from meddiff.metrics.tissue import Difference, Tissue, compare_tissue, gather
from meddiff.seeds import derive

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images with label maps on the model's grid, in the unit of the scans."""

    images: list[np.ndarray]
    labels: list[np.ndarray]
    patients: list[str]
    unit: str

    def tissue(self, number: int) -> Tissue:
        """The voxels of one label."""
        return gather(self.images, self.labels, number)

    @property
    def voxels(self) -> int:
        """Of all images."""
        return sum(image.size for image in self.images)


def labelled(config: Config, manifest: Manifest, split: str, names: tuple[str, ...]) -> Labelled:
    """The images of a split with their label maps; ManifestError where there are none."""
    cases = manifest.split(split)
    if not cases:
        raise ManifestError(f"{manifest.folder}: has no case in the split {split}.")
    entries = Store(config.data, names).prepare(manifest, cases)
    images = Images(manifest, cases, config.data, config.network.spatial_dims, entries, names)
    found = Labelled([], [], [], entries[0].unit)
    for index, item in enumerate(images.items):
        entry, batch = entries[item.case], images.image(index, derive(0, "fixed", index))
        found.images.append((batch["image"][0].numpy().astype(np.float64) - entry.offset) / entry.scale)
        found.labels.append(batch["label"][0].numpy().astype(np.int64))
        found.patients.append(cases[item.case].patient)
    return found


def tissues(config: Config, manifest: Manifest, split: str, synthetic: Manifest) -> dict[str, dict[str, Difference]]:
    """For each label that all show: `synthetic` images beside held-out ones, and `training` images beside held-out ones.

    Both are looked at on the model's grid and within its window: what is clipped in one is clipped in the other. ManifestError
    where the sets have other labels or another unit.
    """
    names = label_names(manifest, config.data)
    if missing := set(names) - set(label_names(synthetic, config.data.model_copy(update={"labels": None}))):
        raise ManifestError(
            f"{synthetic.folder}: its label maps name no {', '.join(sorted(missing))}. Give a set that was drawn with labels."
        )
    real = labelled(config, manifest, split, names)
    sets = {
        "synthetic": labelled(config, synthetic, "train", names),
        "training": labelled(config, manifest, "train", names),
    }
    if sets["synthetic"].unit != real.unit:
        raise ManifestError(f"{synthetic.folder}: is in {sets['synthetic'].unit}, the real images in {real.unit}.")
    found: dict[str, dict[str, Difference]] = {}
    for k, name in enumerate(names, 1):
        own = real.tissue(k)
        others = {kind: one.tissue(k) for kind, one in sets.items()}
        lacking = [kind for kind, t in {"held-out": own, **others}.items() if not t.voxels.sum()]
        if lacking:
            log.warning("%s: no voxel of it in the %s images; it is left out.", name, " and the ".join(lacking))
            continue
        found[name] = {
            kind: compare_tissue(own, t, (real.voxels, sets[kind].voxels), (real.patients, sets[kind].patients))
            for kind, t in others.items()
        }
    return found
