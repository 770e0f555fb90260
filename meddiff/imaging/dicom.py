"""DICOM series in: CT, MR and PET images, classic, enhanced or mosaic. Nothing is guessed.

Every file ends in a series that is a regular stack, or is refused with a reason. Order comes from ImagePositionPatient
along the slice normal, never from InstanceNumber or file names.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from meddiff.errors import DicomError
from meddiff.imaging.body_parts import Face
from meddiff.imaging.dicom_file import Refusal, read_all, read_slices
from meddiff.imaging.dicom_header import RefusedError
from meddiff.imaging.dicom_pixels import read_planes
from meddiff.imaging.dicom_repair import repaired
from meddiff.imaging.dicom_slice import Slice
from meddiff.imaging.dicom_stack import PLACE_TOLERANCE_MM, REPAIRS, Stack, check_series, ordered, stacks
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

__all__ = ["PLACE_TOLERANCE_MM", "REPAIRS", "Refusal", "Series", "find_series", "read_series"]


@dataclass(frozen=True)
class Series:
    """One stack of slices that is a volume."""

    uid: str
    patient_id: str
    study_uid: str
    modality: str
    unit: str
    description: str
    files: tuple[Path, ...]  # in order along the slice normal
    geometry: Geometry
    frame_uid: str = ""  # of the frame of reference
    volume: int | None = None  # which of the volumes in its files, where they hold several
    repairs: tuple[str, ...] = ()  # that were needed, see REPAIRS
    inverted: bool = False  # stored as MONOCHROME1
    face: Face = "kept"


def find_series(
    paths: Sequence[Path],
    *,
    repairs: Collection[str] = (),  # of REPAIRS, that may be made
    workers: int = 1,  # processes that read the headers
    progress: Callable[[int, int], None] | None = None,  # told (files read, files to read)
) -> tuple[list[Series], list[Refusal]]:
    """The volumes among some files, by their headers; every path is in a series or in one refusal.

    A file of several volumes is in as many series; if one of them is refused, the file is.
    """
    _check_repairs(repairs)
    slices, refused = read_all(sorted(set(paths)), workers, progress)
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.series_uid].append(one)
    good: list[Stack] = []
    bad: dict[Path, Refusal] = {}
    for stack in stacks(slices):
        try:
            check_series(stack, by_uid[stack[0].series_uid])
            good.append(ordered(stack, repairs))
        except RefusedError as why:
            bad |= {one.path: Refusal(one.path, why.reason, why.detail) for one in stack}
    found, bad = _whole(good, bad)
    series = _series(found, slices)
    return series, sorted([*refused, *bad.values()], key=lambda r: r.path)


def read_series(files: Sequence[Path], *, volume: int | None = None, repairs: Collection[str] = ()) -> Volume:
    """The volume of one series: CT in HU by each slice's own rescale, PET in SUVbw, RAS geometry, float32 (columns, rows, slices).

    Where the files hold several volumes, `volume` is the index that `find_series` told. DicomError where the files are not one
    regular stack, even after the `repairs` that may be made, or where the pixels cannot be decoded.
    """
    _check_repairs(repairs)
    if not files:
        raise DicomError("A series of no files was asked for; give the files of one series.")
    try:
        found = stacks([one for path in files for one in read_slices(Path(path))])
        if volume is None and len(found) > 1:
            raise RefusedError(
                "several-series", f"The files are {len(found)} series or volumes. Scan their folder instead."
            )
        if volume is not None and volume >= len(found):
            raise RefusedError(
                "several-series", f"They hold {len(found)} volumes, number {volume} is asked for. Scan again."
            )
        stack = ordered(found[volume or 0], repairs)
    except RefusedError as why:
        raise DicomError(f"{Path(files[0]).parent}: {len(files)} files are not one volume: {why}") from why
    array = repaired(stack, read_planes(stack.slices))
    first = stack.slices[0]
    return Volume(array.T, stack.geometry, first.modality, first.unit)  # (columns, rows, slices)


def _check_repairs(repairs: Collection[str]) -> None:
    unknown = sorted(set(repairs) - set(REPAIRS))
    if unknown:
        raise DicomError(f"There is no repair {unknown[0]!r}; choose from {', '.join(REPAIRS)}.")


def _whole(good: list[Stack], bad: dict[Path, Refusal]) -> tuple[list[Stack], dict[Path, Refusal]]:
    """The stacks none of whose files is refused; the others' files are refused with them."""
    while True:
        torn = [stack for stack in good if any(path in bad for path in stack.files)]
        if not torn:
            return good, bad
        good = [stack for stack in good if stack not in torn]
        for stack in torn:
            why = next(bad[path] for path in stack.files if path in bad)
            bad |= {path: Refusal(path, why.reason, why.detail) for path in stack.files if path not in bad}


def _series(found: Sequence[Stack], slices: Sequence[Slice]) -> list[Series]:
    """Series in the order of their files, with the number of the volume where files are shared."""
    owners: dict[Path, int] = defaultdict(int)
    for stack in found:
        for path in stack.files:
            owners[path] += 1
    series = []
    for stack in found:
        shared = any(owners[path] > 1 for path in stack.files)
        volume = _number(stack, slices) if shared else None
        series.append(_described(stack, volume))
    return sorted(series, key=lambda s: (s.files[0], s.volume or 0))


def _number(stack: Stack, slices: Sequence[Slice]) -> int:
    """Which of the stacks in its own files it is, as `read_series` counts them."""
    own, files = {(one.path, one.frame) for one in stack.slices}, set(stack.files)
    parts = stacks([one for one in slices if one.path in files])
    return next(k for k, part in enumerate(parts) if {(one.path, one.frame) for one in part} & own)


def _described(stack: Stack, volume: int | None) -> Series:
    first = stack.slices[0]
    return Series(
        uid=first.series_uid,
        patient_id=first.patient_id,
        study_uid=first.study_uid,
        modality=first.modality,
        unit=first.unit,
        description=first.description,
        files=stack.files,
        geometry=stack.geometry,
        frame_uid=first.frame_uid,
        volume=volume,
        repairs=stack.repairs,
        inverted=any(one.inverted is not None for one in stack.slices),
        face=max((one.face for one in stack.slices), key=("not applicable", "removed", "kept").index),
    )
