"""The manifest: one case a line, with where its files lie, what they hash to, whose they are and which split they are in.

A manifest names files as the scan found them. Where folders are named after patients it is as private as the images.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from meddiff.data.files import absolute, digest_file, digest_files, portable, write_lines
from meddiff.data.medmnist import read_row
from meddiff.errors import GeometryError, ManifestError
from meddiff.imaging.body_parts import Face
from meddiff.imaging.dicom import read_series
from meddiff.imaging.dicom_label import read_label
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.volume import Volume

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
NAME = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,150}")
GRID_TOLERANCE = 0.01  # voxels by which a corner of two equal grids may differ: headers keep float32 quaternions


class Record(BaseModel):
    """What every line of our files has in common: frozen, no unknown key, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Record):
    """Where one image of a case lies: `path` for a file, `files` for a DICOM series, `path` + `array` + `index` for a
    row of a MedMNIST file. Paths are POSIX and relative to the manifest's folder, or absolute.
    """

    modality: str  # CT, MR, ... or the channel's name in its data set
    path: str | None = None
    files: tuple[str, ...] | None = None  # one a slice, in order along the slice normal
    array: str | None = None  # key inside the .npz
    index: int | None = None  # row of that array
    volume: int | None = None  # which of the volumes in `files`, where they hold several
    sha256: str  # of the file's bytes; for `files` see `files.digest_files`

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Source":
        if (self.path is None) == (self.files is None):
            raise ValueError("give exactly one of `path` and `files`")
        if (self.array is None) != (self.index is None) or (self.array is not None and self.path is None):
            raise ValueError("`array` and `index` go together, beside a `path`")
        return self


class Case(Record):
    """One image (or several channels on one grid) of one patient, with its label map and classes if it has them."""

    case: str
    patient: str  # keyed pseudonym
    split: Split
    image: tuple[Source, ...]
    label: Source | None = None
    classes: dict[str, str] = {}  # covariate -> value, e.g. {"class": "lesion"}
    labels: dict[str, int] = {}  # name -> number in the label map
    shape: tuple[int, int, int]  # voxels (I, J, K)
    spacing_mm: tuple[float, float, float]
    affine: tuple[tuple[float, float, float, float], ...]  # (4, 4), voxel index -> RAS mm
    unit: str
    layout: str
    repairs: tuple[str, ...] = ()  # that reading the DICOM series makes: fill-gaps, resample-tilt
    regions: tuple[str, ...] = ()  # of the DICOM label map that are its labels 1, 2, ...; empty: all of them
    face: Face | None = None  # of a head, or of what may be one; None where the file does not say

    @model_validator(mode="after")
    def _has_image_and_grid(self) -> "Case":
        if not self.image:
            raise ValueError("`image` is empty")
        if not NAME.fullmatch(self.case):
            raise ValueError(
                "`case` becomes the name of files: 1 to 150 printable characters, no / and no \\, not . or .."
            )
        if len(self.affine) != 4:
            raise ValueError(f"`affine` has {len(self.affine)} rows, not 4")
        return self

    @property
    def geometry(self) -> Geometry:
        """The recorded grid."""
        return Geometry(self.shape, np.array(self.affine, dtype=np.float64))

    def source(self, modality: str | None = None) -> Source:
        """The image of that modality; without one, the only image. ManifestError where that leaves none or several."""
        found = [s for s in self.image if modality is None or s.modality == modality]
        if len(found) != 1:
            names = ", ".join(s.modality for s in self.image)
            raise ManifestError(
                f"{self.case}: {len(found)} images fit modality {modality!r}; it has {names}. Name one of these."
            )
        return found[0]


class Refused(Record):
    """One file that is in no case, and why; `reason` is a short code, `detail` a sentence with the remedy."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Manifest:
    """Cases, and the folder that their relative paths start from."""

    cases: tuple[Case, ...]
    folder: Path

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """The checked manifest in a JSON Lines file; ManifestError names the line and the key that is wrong."""
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(
                f"{path}: cannot be read as a manifest ({error}). "
                "Make one with `meddiff scan FOLDER -o MANIFEST.jsonl`."
            ) from error
        cases = tuple(_parse(path, n, line) for n, line in enumerate(lines, 1) if line.strip())
        if not cases:
            raise ManifestError(f"{path}: holds no case. Scan again, and see the .refused.jsonl beside the manifest.")
        manifest = cls(cases, absolute(path).parent)
        manifest.check()
        return manifest

    def write(self, path: str | Path) -> None:
        """Write atomically; files below the new folder or beside it are named relative to it, others absolutely."""
        write_lines(path, self.lines(absolute(Path(path)).parent))

    def lines(self, folder: Path) -> list[str]:
        """What `write` writes into a manifest of that folder."""
        self.check()
        return [_line(self._moved(case, folder)) for case in self.cases]

    def save_copy(self, path: str | Path) -> None:
        """The copy that a run folder keeps: every path absolute, so that the folder can be moved."""
        self.check()
        write_lines(path, map(_line, self.placed()))

    def placed(self) -> tuple[Case, ...]:
        """The cases with absolute paths: they can stand in one manifest with cases of another folder."""
        return tuple(self._moved(case, None) for case in self.cases)

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split, in the manifest's order."""
        if name not in SPLITS:
            raise ManifestError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}.")
        return tuple(case for case in self.cases if case.split == name)

    def resolve(self, source: Source) -> list[Path]:
        """The absolute paths of a source's files."""
        names = [source.path] if source.path is not None else list(source.files or ())
        return [absolute(self.folder / name) for name in names]

    def check(self) -> None:
        """ManifestError where a case name occurs twice or a patient is in two splits."""
        twice = [name for name, n in Counter(case.case for case in self.cases).items() if n > 1]
        if twice:
            raise ManifestError(f"these case names occur more than once: {_some(twice)}. Keep one line of each.")
        splits: dict[str, set[str]] = {}
        for case in self.cases:
            splits.setdefault(case.patient, set()).add(case.split)
        torn = [f"{patient} ({', '.join(sorted(where))})" for patient, where in splits.items() if len(where) > 1]
        if torn:
            raise ManifestError(
                f"these patients are in more than one split: {_some(torn)}. "
                "Put all cases of a patient into one split, or scan again."
            )

    def verify(self, case: Case) -> None:
        """ManifestError where a file of the case is missing or is no longer the one that was scanned."""
        for source in (*case.image, *([case.label] if case.label else [])):
            paths = self.resolve(source)
            for path in paths:
                _must_exist(case, path)
            found = digest_file(paths[0]) if source.path is not None else digest_files(paths)
            if found != source.sha256:
                where = paths[0] if source.path is not None else paths[0].parent
                raise ManifestError(
                    f"{case.case}: {where} has changed since the scan: SHA-256 {found[:12]}..., recorded "
                    f"{source.sha256[:12]}.... Restore the data, or scan again."
                )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of the cases without their paths: the same data moved is the same data."""
        records = [_unplaced(case) for case in self.cases]
        return hashlib.sha256(json.dumps(records, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _moved(self, case: Case, folder: Path | None) -> Case:
        def move(source: Source) -> Source:
            names = [portable(path, folder) for path in self.resolve(source)]
            return source.model_copy(update={"path": names[0]} if source.path is not None else {"files": tuple(names)})

        label = None if case.label is None else move(case.label)
        return case.model_copy(update={"image": tuple(move(s) for s in case.image), "label": label})


def load_image(manifest: Manifest, case: Case, modality: str | None = None) -> Volume:
    """One image of a case, float32 in the case's unit; ManifestError where its grid is not the recorded one."""
    source = case.source(modality)
    paths = manifest.resolve(source)
    for path in paths:
        _must_exist(case, path)
    if source.files is not None:
        volume = read_series(paths, volume=source.volume, repairs=case.repairs)
    elif source.array is not None and source.index is not None:
        volume = read_row(paths[0], source.array, source.index)
    else:
        volume = read_nifti(paths[0], modality=dicom_modality(source.modality))
    _must_fit(case, volume, paths[0])
    return volume


def load_label(manifest: Manifest, case: Case) -> Volume:
    """The label map of a case, integers; ManifestError where it has none or its grid is not the recorded one."""
    if case.label is None:
        raise ManifestError(f"{case.case}: has no label map. Choose a task that needs none, or scan the labels too.")
    (path,) = manifest.resolve(case.label)
    _must_exist(case, path)
    if case.image[0].files is not None:
        volume, _ = read_label(path, case.geometry, case.regions)
    else:
        volume = read_nifti(path, label=True, modality="SEG")
    _must_fit(case, volume, path)
    return volume


def same_grid(one: Geometry, other: Geometry) -> bool:
    """Whether two grids are one but for what a header's float32 loses: a hundredth of a voxel at every corner."""
    return one.close(other, GRID_TOLERANCE * min(one.spacing_mm))


def dicom_modality(name: str) -> str:
    """DICOM's word (PS3.3 C.7.3.1.1.1) for a data set's channel name: CT, MR, PT, else OT.

    >>> dicom_modality("ct"), dicom_modality("T1w"), dicom_modality("FLAIR"), dicom_modality("PET")
    ('CT', 'MR', 'MR', 'PT')
    """
    word = name.upper()
    if word in ("CT", "CTA", "CECT", "NCCT"):
        return "CT"
    if word in ("PT", "PET"):
        return "PT"
    magnetic = ("MR", "T1", "T2", "FLAIR", "PD", "DWI", "ADC", "SWI")
    return "MR" if word.startswith(magnetic) else "OT"


def unit_of(modality: str) -> str:
    """The unit of an image's numbers: HU for CT, arbitrary units for everything else."""
    return "HU" if dicom_modality(modality) == "CT" else "a.u."


def _line(case: Case) -> str:
    record = case.model_dump(mode="json", exclude_none=True)
    return json.dumps({name: record.get(name) for name in Case.model_fields}, ensure_ascii=False)  # keeps label: null


def _unplaced(case: Case) -> dict:
    """The record without paths and what follows from the files.

    What a case has not (repairs, regions, one of several volumes) is left out, as before it could be there.
    """
    where = {"path", "files"}
    record = case.model_dump(mode="json", exclude={"image": {"__all__": where}, "label": where, "face": True})
    for part, key in (
        (record, "repairs"),
        (record, "regions"),
        *((source, "volume") for source in (*record["image"], record["label"] or {})),
    ):
        if part.get(key) in (None, []):
            part.pop(key, None)
    return record


def _parse(path: Path, number: int, line: str) -> Case:
    try:
        return Case.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise ManifestError(
            f"{path}, line {number}: {key}: {first['msg']}. Correct the line, or scan again."
        ) from error


def _must_exist(case: Case, path: Path) -> None:
    if not path.is_file():
        raise ManifestError(f"{case.case}: {path} is missing. Restore the file, or scan its folder again.")


def _must_fit(case: Case, volume: Volume, path: Path) -> None:
    try:
        fits = same_grid(volume.geometry, case.geometry)
    except GeometryError as error:
        raise ManifestError(f"{case.case}: the manifest's grid is not one: {error} Scan again.") from error
    if not fits:
        raise ManifestError(
            f"{case.case}: {path} has shape {volume.geometry.shape} and affine "
            f"{volume.geometry.affine.tolist()}, the manifest records {case.shape} and "
            f"{[list(row) for row in case.affine]}. The file has changed; scan again."
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
