"""What a layout hands to the scan: cases by file name, before any hash is taken or NIfTI header read."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from meddiff.data.manifest import Split
from meddiff.errors import ManifestError
from meddiff.imaging.body_parts import Face
from meddiff.imaging.dicom import Refusal
from meddiff.imaging.geometry import Geometry

NIFTI = re.compile(r"(?P<stem>.+?)\.nii(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Channel:
    """One image of a case: a file, the slices of a series in order, or a row of an array in a file."""

    modality: str
    paths: tuple[Path, ...]
    series: bool = False  # paths are the slices of a DICOM series
    array: str | None = None
    index: int | None = None
    volume: int | None = None  # which of the volumes in the files of a DICOM series, where they hold several


@dataclass(frozen=True)
class Found:
    """A case as its layout sees it."""

    layout: str
    patient_id: str  # not yet a pseudonym: stays in memory
    images: tuple[Channel, ...]
    label: Path | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] | None = None  # None: the data set gives its label numbers no names
    split: Split | None = None  # the data set's own, where it has one
    geometry: Geometry | None = None  # None: in the NIfTI header
    unit: str | None = None  # None: the usual one of the modality
    repairs: tuple[str, ...] = ()  # that reading the series needs
    face: Face | None = None  # None: in the NIfTI header, if anywhere
    regions: tuple[str, ...] = ()  # that were chosen of a DICOM label map

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file of the case, label last."""
        return tuple(path for image in self.images for path in image.paths) + ((self.label,) if self.label else ())


@dataclass(frozen=True)
class Reading:
    """How DICOM headers are read."""

    repairs: tuple[str, ...] = ()  # of `imaging.dicom.REPAIRS`, that may be made
    workers: int = 1  # processes
    progress: Callable[[int, int], None] | None = None  # told (headers read, headers to read)
    record: tuple[str, ...] = ()  # of `imaging.dicom_person.ATTRIBUTES`, that become classes of the case


class Layout(Protocol):
    """A way to arrange files: which folders below `folder` follow it, and what the files below such a root are."""

    def roots(self, folder: Path, files: Sequence[Path]) -> list[Path]: ...

    def find(self, root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]: ...


def nifti_stem(path: Path) -> str | None:
    """The file's name without .nii or .nii.gz; None where it is not named as NIfTI."""
    match = NIFTI.fullmatch(path.name)
    return match["stem"] if match else None


def refuse(paths: Iterable[Path], reason: str, detail: str) -> list[Refusal]:
    """The same refusal for several files."""
    return [Refusal(path, reason, detail) for path in paths]


def refuse_rest(files: Iterable[Path], done: Iterable[Path], expected: str) -> list[Refusal]:
    """Refusals for the files of a data set that are not `done`; `expected` says what its images are called."""
    done = set(done)
    return [not_in_layout(path, expected) for path in files if path not in done]


def not_in_layout(path: Path, expected: str) -> Refusal:
    """A refusal that tells an image in the wrong place from a file that is none."""
    if nifti_stem(path) is None:
        return Refusal(
            path, "not-an-image", "Neither NIfTI, DICOM nor MedMNIST; if it is an image, convert it to NIfTI."
        )
    return Refusal(
        path, "not-in-layout", f"The layout expects {expected}; rename the file, or scan with another --layout."
    )


def read_description(path: Path) -> dict[str, Any]:
    """A data set's dataset.json; ManifestError where it is no JSON object."""
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{path}: cannot be read as JSON ({error}). Correct it, or scan with --layout pairs."
        ) from error
    if not isinstance(description, dict):
        raise ManifestError(
            f"{path}: holds a {type(description).__name__}, not an object. Correct it, or scan with --layout pairs."
        )
    return description


def label_names(entry: object) -> dict[str, int]:
    """Names and numbers from `labels`: {name: number} (nnU-Net 2), {"number": name} (Decathlon), or regions.

    A region (a list of numbers, nnU-Net's overlapping classes) has no number of its own: its numbers get plain names.

    >>> label_names({"background": 0, "whole": [1, 2], "core": [2]}), label_names({"0": "background", "1": "liver"})
    ({'background': 0, 'label_1': 1, 'core': 2}, {'background': 0, 'liver': 1})
    """
    if not isinstance(entry, dict):
        return {}
    names: dict[int, str] = {}
    inside: set[int] = set()
    for key, value in entry.items():
        if isinstance(value, str) and str(key).isdigit():
            names[int(key)] = value
        elif isinstance(value, int):
            names[value] = str(key)
        elif isinstance(value, list) and all(isinstance(v, int) for v in value):
            inside |= set(value)
            if len(value) == 1:
                names[value[0]] = str(key)
    return {names.get(number, f"label_{number}"): number for number in sorted(inside | set(names))}
