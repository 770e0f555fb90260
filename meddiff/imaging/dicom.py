"""DICOM series in: classic single-frame CT, MR and PET images. Nothing is guessed.

Every file ends in a series that is a regular stack, or is refused with a reason. Order comes from ImagePositionPatient
along the slice normal, never from InstanceNumber or file names.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddiff.errors import DicomError
from meddiff.imaging.dicom_slice import RefusedError, Slice, read_pixels, read_slice
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

GAP_TOLERANCE = 0.01  # of the spacing: how far a gap may differ from the others ...
GAP_TOLERANCE_MM = 0.02  # ... or this much, as positions are often written with two decimals; whichever is more
PLACE_TOLERANCE_MM = 0.05  # how far a slice may lie from where the affine puts it
TILT_TOLERANCE = 1e-3  # tangent of the angle between the stack and its normal; a tilted gantry makes 0.05 and more
PLANE_TOLERANCE = 1e-4  # how far cosines and relative pixel spacing may differ within one stack


@dataclass(frozen=True)
class Series:
    """One stack of slices that is a volume."""

    uid: str
    patient_id: str
    study_uid: str
    modality: str
    description: str
    files: tuple[Path, ...]  # in order along the slice normal
    geometry: Geometry


@dataclass(frozen=True)
class Refusal:
    """One file that is in no series, and why."""

    path: Path
    reason: str  # a short code
    detail: str  # a sentence, with the remedy


def find_series(paths: Sequence[Path]) -> tuple[list[Series], list[Refusal]]:
    """The volumes among some files, by their headers; every path is in exactly one series or one refusal."""
    slices: list[Slice] = []
    refused: list[Refusal] = []
    for path in sorted(set(paths)):
        try:
            slices.append(read_slice(path))
        except RefusedError as why:
            refused.append(Refusal(path, why.reason, why.detail))
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.series_uid].append(one)
    series = []
    for stack in _stacks(slices):
        try:
            _check_series(stack, by_uid[stack[0].series_uid])
            series.append(_series(*_ordered(stack)))
        except RefusedError as why:
            refused += [Refusal(s.path, why.reason, why.detail) for s in stack]
    return sorted(series, key=lambda s: s.files[0]), sorted(refused, key=lambda r: r.path)


def read_series(files: Sequence[Path]) -> Volume:
    """The volume of one series: CT in HU by each slice's own rescale, RAS geometry, float32 (columns, rows, slices).

    DicomError where the files are not one regular stack, or the pixels cannot be decoded.
    """
    if not files:
        raise DicomError("A series of no files was asked for; give the files of one series.")
    try:
        stacks = _stacks([read_slice(Path(path)) for path in files])
        if len(stacks) > 1:
            raise RefusedError(
                "several-series", f"The files are {len(stacks)} series or volumes. Scan their folder instead."
            )
        slices, geometry = _ordered(stacks[0])
    except RefusedError as why:
        raise DicomError(f"{Path(files[0]).parent}: {len(files)} files are not one volume: {why}") from why
    array = np.empty((len(slices), slices[0].rows, slices[0].columns), dtype=np.float32)
    for k, one in enumerate(slices):
        array[k] = read_pixels(one)
    modality = slices[0].modality
    return Volume(array.T, geometry, modality, "HU" if modality == "CT" else "a.u.")  # (columns, rows, slices)


def _stacks(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that may form one volume, together."""
    groups: dict[tuple, list[list[Slice]]] = defaultdict(list)
    for one in slices:
        key = (
            one.patient_id,
            one.study_uid,
            one.series_uid,
            one.frame_uid,
            one.modality,
            one.rows,
            one.columns,
            one.apart,
        )
        stack = next((s for s in groups[key] if _parallel(s[0], one)), None)
        if stack is None:
            groups[key].append([one])
        else:
            stack.append(one)
    return [stack for group in groups.values() for stack in group]


def _check_series(stack: list[Slice], series: list[Slice]) -> None:
    """What only the whole series shows: that it is one patient's, and that a lone slice is no stray of a volume."""
    first = stack[0]
    patients = len({one.patient_id for one in series})
    if first.series_uid and patients > 1:
        raise RefusedError(
            "several-patients",
            f"The {len(series)} files with its SeriesInstanceUID are of {patients} patients (PatientID); whose they are is "
            "unknown. Correct the headers, or leave the series out.",
        )
    if (
        len(stack) == 1
        and first.series_uid
        and not all(_parallel(first, one) and _together(first, one) for one in series)
    ):
        raise RefusedError(
            "single-slice",
            f"It is a lone slice: the {len(series) - 1} other images of its series lie elsewhere and form no volume with it, as "
            "in a scout. Leave it out.",
        )


def _together(one: Slice, other: Slice) -> bool:
    """Whether two slices lie at one place."""
    return float(np.abs(one.position - other.position).max()) < GAP_TOLERANCE_MM


def _parallel(one: Slice, other: Slice) -> bool:
    """Whether two slices have one orientation and pixel size."""
    return np.allclose(one.orientation, other.orientation, rtol=0, atol=PLANE_TOLERANCE) and np.allclose(
        one.pixel_spacing, other.pixel_spacing, rtol=PLANE_TOLERANCE, atol=0
    )


def _ordered(stack: list[Slice]) -> tuple[list[Slice], Geometry]:
    """The slices along their normal, and the grid they form; RefusedError where they form none."""
    row, column = stack[0].orientation
    normal = np.cross(row, column)
    slices = sorted(stack, key=lambda s: float(s.position @ normal))
    places = np.array([s.position for s in slices])
    first = slices[0]
    if len(slices) == 1:
        if first.thickness is None:
            raise RefusedError("single-slice", "It is alone in its series and has no SliceThickness; leave it out.")
        between = normal * first.thickness
    else:
        _check_gaps(slices, np.diff(places @ normal))
        between = (places[-1] - places[0]) / (len(slices) - 1)
        _check_line(slices, places, between, normal)
    lps = np.eye(4)
    lps[:3, 0] = row * first.pixel_spacing[1]  # PS3.3 C.7.6.2.1.1: along a row lies the spacing between columns
    lps[:3, 1] = column * first.pixel_spacing[0]
    lps[:3, 2], lps[:3, 3] = between, places[0]
    return slices, Geometry.from_lps((first.columns, first.rows, len(slices)), lps)


def _check_gaps(slices: list[Slice], gaps: np.ndarray) -> None:
    """One slice at each place, and one distance between all neighbours."""
    if gaps.min() < GAP_TOLERANCE_MM:
        at = int(gaps.argmin())
        raise RefusedError(
            "duplicate-position",
            f"{slices[at].path.name} and {slices[at + 1].path.name} lie at the same place: copies, or several volumes "
            "without a tag that tells them apart. Remove one of them.",
        )
    step = float(np.quantile(gaps, 0.5, method="lower"))  # one of the gaps, also where their number is even
    wrong = np.flatnonzero(np.abs(gaps - step) > max(GAP_TOLERANCE * step, GAP_TOLERANCE_MM))
    if not len(wrong):
        return
    at = int(wrong[0])
    steps = float(gaps[at]) / step
    missing = steps > 1.5 and abs(steps - round(steps)) < 2 * GAP_TOLERANCE * steps and len(wrong) <= len(gaps) / 2
    guess = "slices are missing" if missing else "the spacing is irregular"
    raise RefusedError(
        "irregular-spacing",
        f"Slices {at + 1} ({slices[at].path.name}) and {at + 2} ({slices[at + 1].path.name}) are {gaps[at]:.3f} mm "
        f"apart, the others {step:.3f} mm; {guess}. Complete the series, or leave it out.",
    )


def _check_line(slices: list[Slice], places: np.ndarray, between: np.ndarray, normal: np.ndarray) -> None:
    """All slices on one line, evenly, and the line along the normal."""
    along = float(between @ normal)
    beside = float(np.linalg.norm(between - along * normal))
    if beside / along > TILT_TOLERANCE and beside * (len(slices) - 1) > PLACE_TOLERANCE_MM:
        raise RefusedError(
            "gantry-tilt",
            f"Each slice is shifted by {beside:.3f} mm in its own plane, a gantry tilt of "
            f"{np.degrees(np.arctan2(beside, along)):.1f} degrees: the stack is not a rectangular grid. "
            "Resample it, for instance with dcm2niix, or leave it out.",
        )
    off = np.linalg.norm(places - places[0] - np.outer(np.arange(len(slices)), between), axis=1)
    if off.max() > max(PLACE_TOLERANCE_MM, GAP_TOLERANCE * along):
        at = int(off.argmax())
        raise RefusedError(
            "irregular-spacing",
            f"Slice {at + 1} ({slices[at].path.name}) lies {off[at]:.3f} mm beside its place in an even stack. "
            "Export the series again, or leave it out.",
        )


def _series(slices: list[Slice], geometry: Geometry) -> Series:
    first = slices[0]
    return Series(
        uid=first.series_uid,
        patient_id=first.patient_id,
        study_uid=first.study_uid,
        modality=first.modality,
        description=first.description,
        files=tuple(s.path for s in slices),
        geometry=geometry,
    )
