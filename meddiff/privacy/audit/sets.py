"""What an audit looks at: the images a model was trained on, held-out ones, and a synthetic set that is surely its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meddiff.audit_config import AuditConfig
from meddiff.data.loader import Images, fixed
from meddiff.data.manifest import Case, Manifest, load_image
from meddiff.data.transforms import AXES, placed
from meddiff.errors import GeometryError, PrivacyError
from meddiff.imaging.reorder import reordered
from meddiff.tasks.task import Space

FEWEST_PATIENTS = 8  # that were trained on: with fewer no distance says what is near


@dataclass(frozen=True, eq=False)
class Real:
    """Images of patients, in model units."""

    batch: Mapping[str, Tensor]  # as the loader gives it; "image" is (n, 1, *size)
    patients: tuple[str, ...]  # whose each image is
    names: tuple[str, ...]  # of the images, for people

    @property
    def images(self) -> Tensor:
        """(n, 1, *size)."""
        return self.batch["image"]

    def of(self, chosen: set[str]) -> Tensor:
        """Indices of the images of some patients."""
        return torch.tensor([i for i, name in enumerate(self.patients) if name in chosen], dtype=torch.long)

    def some(self, most: int) -> "Real":
        """At most `most` images, spread evenly."""
        n = len(self.patients)
        kept = torch.linspace(0, n - 1, min(most, n)).round().long().unique()
        batch = {name: values[kept] for name, values in self.batch.items()}
        return Real(batch, *(tuple(names[i] for i in kept.tolist()) for names in (self.patients, self.names)))


@dataclass(frozen=True, eq=False)
class Synthetic:
    """A synthetic set in model units, with what proves which files it is."""

    images: Tensor  # (n, 1, *size)
    files: dict[str, dict[str, str]]  # case -> SHA-256 of its image, and label if it has one
    weights: str  # SHA-256 of the model's weights, which the sidecars state


def real_images(splits: Sequence[Images]) -> Real:
    """Every image of some splits. PrivacyError where they are random patches of larger volumes.

    A copy of a patch may lie anywhere in a volume, and no threshold would hold.
    """
    batches: list[dict[str, Tensor]] = []
    patients: list[str] = []
    names: list[str] = []
    for images in splits:
        larger = [
            e.shape for e in images.entries if any(n > s for n, s in zip(e.shape, images.data.size, strict=False))
        ]
        if images.random_crop and larger:
            raise PrivacyError(
                f"data.crop: the model was trained on random patches of {images.data.size} voxels, for instance from a volume of "
                f"{larger[0]}; where a copy would lie is unknown, and an audit of patches proves nothing. Train whole images "
                "(data.crop: centre, a coarser data.spacing_mm)."
            )
        batches.append(fixed(images, len(images)))
        for item in images.items:
            case = images.cases[item.case]
            patients.append(case.patient)
            names.append(case.case if item.slice is None else f"{case.case}, slice {item.slice}")
    batch = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
    return Real(batch, tuple(patients), tuple(names))


def open_set(folder: Path) -> Manifest:
    """The manifest of a synthetic set; PrivacyError where there is none."""
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise PrivacyError(
            f"{folder}: is no synthetic set (no manifest.jsonl). Give a folder that `meddiff sample` wrote as NIfTI or DICOM."
        )
    return Manifest.read(path)


def sidecar(manifest: Manifest, case: Case) -> dict:
    """What a sample's sidecar states; PrivacyError where it is missing, or does not say that the image is synthetic."""
    path = manifest.folder / f"{case.case}.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if stated["synthetic"] is not True or not isinstance(stated["weights"], str):
            raise ValueError("it does not name a synthetic image and its model")
        if "source" in stated:
            raise ValueError("it is a variant of a real case, and as private as that is")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"{path}: the sidecar of {case.case} does not say that a model drew it of nobody ({error}). Sample the set again."
        ) from error
    return stated


def synthetic_images(manifest: Manifest, weights: str, space: Space, size: Sequence[int]) -> Synthetic:
    """The set, every file checked against its hash and every sidecar against the model.

    PrivacyError for images of another model or another size; ManifestError for a changed file.
    """
    images: list[Tensor] = []
    grid = placed(np.zeros(size, np.uint8), space.spacing_mm, space.axis).geometry
    thin = AXES[space.axis] if len(size) == 2 else ()
    for case in manifest.cases:
        made_by = sidecar(manifest, case)["weights"]
        if made_by != weights:
            raise PrivacyError(
                f"{manifest.folder / case.case}: was made by the weights {made_by[:12]}..., the run's are {weights[:12]}.... An "
                "audit holds for one model and its own samples; give the run that the set is from."
            )
        manifest.verify(case)
        try:
            array = reordered(load_image(manifest, case), grid).squeeze(thin)
        except GeometryError as error:
            raise PrivacyError(
                f"{case.case}: is not on the grid that the model was trained on, {tuple(size)} voxels; a copy shows on one grid only. "
                f"Audit samples of the trained size. ({error})"
            ) from error
        values = torch.from_numpy(np.ascontiguousarray(array)) * space.scale + space.offset
        images.append(values.clamp(-1, 1)[None])
    return Synthetic(torch.stack(images), hashes(manifest), weights)


def hashes(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Of every case, the recorded SHA-256 of its image, and of its label where it has one."""
    return {
        case.case: {"image": case.image[0].sha256, **({"label": case.label.sha256} if case.label else {})}
        for case in manifest.cases
    }


def check_sets(training: Real, held_out: Real, synthetic: Synthetic, settings: AuditConfig) -> None:
    """PrivacyError for too few images or patients, or a patient on both sides."""
    shared = sorted(set(training.patients) & set(held_out.patients))
    if shared:
        raise PrivacyError(
            f"{len(shared)} patients are both trained on and held out, for instance {shared[0]}; they would hide copies. Put each "
            "patient into one split."
        )
    counts = (
        ("synthetic images", len(synthetic.images), settings.synthetic, "audit.synthetic", "Sample more"),
        ("held-out patients", len(set(held_out.patients)), settings.held_out, "audit.held_out", "Hold out more"),
        ("training patients", len(set(training.patients)), FEWEST_PATIENTS, "the audit", "Train on more"),
    )
    for what, found, least, who, remedy in counts:
        if found < least:
            raise PrivacyError(
                f"{found} {what} are too few for an audit: {who} asks for {least}. {remedy}; a smaller limit has to be in the "
                "config before the run, and is shown in the report."
            )
