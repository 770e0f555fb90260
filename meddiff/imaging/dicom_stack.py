"""Slices to stacks: which of them may form one volume, their order along the normal, and the grid that they are.

Nothing is guessed. What is no regular grid is refused with the slices and the millimetres, or repaired where that is asked.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddiff.imaging.dicom_header import RefusedError
from meddiff.imaging.dicom_slice import SPLIT_KEYS, Slice
from meddiff.imaging.geometry import Geometry

GAP_TOLERANCE = 0.01  # of the spacing: how far a gap may differ from the others ...
GAP_TOLERANCE_MM = 0.02  # ... or this much, as positions are often written with two decimals; whichever is more
PLACE_TOLERANCE_MM = 0.05  # how far a slice may lie from where the affine puts it
TILT_TOLERANCE = 1e-3  # tangent of the angle between the stack and its normal; a tilted gantry makes 0.05 and more
PLANE_TOLERANCE = 1e-4  # how far cosines and relative pixel spacing may differ within one stack
LARGEST_TILT = 1.0  # tangent up to which a tilt is resampled; scanners reach 30 degrees
MOST_MISSING = 2  # neighbours that `fill-gaps` makes up ...
MISSING_SHARE = 0.25  # ... and the share of all slices that it makes up at most
FILL_GAPS, RESAMPLE_TILT = "fill-gaps", "resample-tilt"
REPAIRS = (FILL_GAPS, RESAMPLE_TILT)


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order along their normal, and the grid that they are on or are brought to."""

    slices: tuple[Slice, ...]
    geometry: Geometry
    index: np.ndarray  # (slices,) where each lies along the third axis; other than 0, 1, 2, ... where gaps are filled
    shift: np.ndarray  # (2,) rows and columns that a slice is moved by against its lower neighbour, to undo a tilt
    repairs: tuple[str, ...] = ()  # that were needed

    @property
    def files(self) -> tuple[Path, ...]:
        """Each file once, in the order of the slices."""
        return tuple(dict.fromkeys(one.path for one in self.slices))


def stacks(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices that may form one volume, together; the order of the slices given does not matter."""
    groups: dict[tuple, list[list[Slice]]] = defaultdict(list)
    for one in sorted(slices, key=lambda s: (s.path, s.frame)):
        key = (one.patient_id, one.study_uid, one.series_uid, one.frame_uid, one.modality, one.unit, one.rows,
               one.columns, one.apart)  # fmt: skip
        stack = next((s for s in groups[key] if parallel(s[0], one)), None)
        if stack is None:
            groups[key].append([one])
        else:
            stack.append(one)
    return [part for group in groups.values() for stack in group for part in _split(stack)]


def _split(stack: list[Slice]) -> list[list[Slice]]:
    """One stack for each value of the first of SPLIT_KEYS whose values make several equal stacks of it."""
    normal = np.cross(*stack[0].orientation)
    if not _twice(_places(stack, normal)):
        return [stack]
    for key in range(min(len(SPLIT_KEYS), *(len(one.further) for one in stack))):
        parts: dict[str, list[Slice]] = defaultdict(list)
        for one in stack:
            parts[one.further[key]].append(one)
        places = [_places(part, normal) for part in parts.values()]
        if (
            len(parts) > 1
            and len({len(part) for part in places}) == 1
            and not any(map(_twice, places))
            and all(np.abs(part - places[0]).max() < GAP_TOLERANCE_MM for part in places)
        ):
            return list(parts.values())
    return [stack]


def _places(stack: Sequence[Slice], normal: np.ndarray) -> np.ndarray:
    """(slices,) mm along the normal, increasing."""
    return np.sort([float(one.position @ normal) for one in stack])


def _twice(places: np.ndarray) -> bool:
    return bool((np.diff(places) < GAP_TOLERANCE_MM).any())


def check_series(stack: Sequence[Slice], series: Sequence[Slice]) -> None:
    """What only the whole series shows: that it is one patient's, and that a lone slice is no stray of a volume."""
    first = stack[0]
    patients = len({one.patient_id for one in series})
    if first.series_uid and patients > 1:
        raise RefusedError(
            "several-patients",
            f"The {len(series)} images with its SeriesInstanceUID are of {patients} patients (PatientID); whose they are is "
            "unknown. Correct the headers, or leave the series out.",
        )
    if (
        len(stack) == 1
        and first.series_uid
        and not all(parallel(first, one) and _together(first, one) for one in series)
    ):
        raise RefusedError(
            "single-slice",
            f"It is a lone slice: the {len(series) - 1} other images of its series lie elsewhere and form no volume with it, as "
            "in a scout. Leave it out.",
        )


def _together(one: Slice, other: Slice) -> bool:
    """Whether two slices lie at one place."""
    return float(np.abs(one.position - other.position).max()) < GAP_TOLERANCE_MM


def parallel(one: Slice, other: Slice) -> bool:
    """Whether two slices have one orientation and pixel size."""
    return float(np.abs(one.orientation - other.orientation).max()) <= PLANE_TOLERANCE and all(
        abs(a - b) <= PLANE_TOLERANCE * b for a, b in zip(one.pixel_spacing, other.pixel_spacing, strict=True)
    )


def ordered(stack: Sequence[Slice], repairs: Collection[str] = ()) -> Stack:
    """The slices along their normal, and the grid they form; RefusedError where they form none.

    `repairs` are those of REPAIRS that may be made; the result names those that were.
    """
    row, column = stack[0].orientation
    normal = np.cross(row, column)
    slices = tuple(sorted(stack, key=lambda s: float(s.position @ normal)))
    places = np.array([s.position for s in slices])
    first = slices[0]
    done: list[str] = []
    if len(slices) == 1:
        if first.thickness is None:
            raise RefusedError("single-slice", "It is alone in its series and has no SliceThickness; leave it out.")
        index, step, drift = np.zeros(1, dtype=int), first.thickness * normal, np.zeros(3)
    else:
        index = _index(slices, np.diff(places @ normal), FILL_GAPS in repairs)
        if index[-1] >= len(slices):
            done.append(FILL_GAPS)
        between = (places[-1] - places[0]) / index[-1]
        step, drift = _line(slices, places, index, between, normal, RESAMPLE_TILT in repairs)
        if drift.any():
            done.append(RESAMPLE_TILT)
    # PS3.3 C.7.6.2.1.1: along a row lies the spacing between columns
    axes = np.array([row * first.pixel_spacing[1], column * first.pixel_spacing[0], step])  # (3, 3), one a line
    shift = np.array([drift @ column / first.pixel_spacing[0], drift @ row / first.pixel_spacing[1]])
    low, high = reach(shift, int(index[-1]))
    lps = np.eye(4)
    lps[:3, :3] = axes.T
    lps[:3, 3] = places[0] + low[1] * axes[0] + low[0] * axes[1]
    grown = high - low
    shape = (first.columns + int(grown[1]), first.rows + int(grown[0]), int(index[-1]) + 1)
    return Stack(slices, Geometry.from_lps(shape, lps), index, shift, tuple(done))


def reach(shift: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns by which the grid grows below 0 and above its end, so that moved slices stay on it; (2,), (2,)."""
    return np.floor(np.minimum(shift * last, 0)).astype(int), np.ceil(np.maximum(shift * last, 0)).astype(int)


def _index(slices: Sequence[Slice], gaps: np.ndarray, fill: bool) -> np.ndarray:
    """Where each slice lies in steps: one slice at each place, and one distance between all neighbours."""
    if gaps.min() < GAP_TOLERANCE_MM:
        at = int(gaps.argmin())
        raise RefusedError(
            "duplicate-position",
            f"{slices[at].name} and {slices[at + 1].name} lie at the same place: copies, or several volumes "
            "without a tag that tells them apart. Remove one of them.",
        )
    step = float(np.quantile(gaps, 0.5, method="lower"))  # one of the gaps, also where their number is even
    wrong = np.flatnonzero(np.abs(gaps - step) > max(GAP_TOLERANCE * step, GAP_TOLERANCE_MM))
    if not len(wrong):
        return np.arange(len(slices))
    at = int(wrong[0])
    steps = np.rint(gaps / step).astype(int)
    off = np.abs(gaps - steps * step) > 2 * np.maximum(GAP_TOLERANCE * gaps, GAP_TOLERANCE_MM)
    missing = not off.any() and steps.min() > 0 and len(wrong) <= len(gaps) / 2
    lost = int((steps - 1).sum())
    fillable = missing and steps.max() - 1 <= MOST_MISSING and lost <= MISSING_SHARE * (len(slices) + lost)
    if fill and fillable:
        return np.concatenate([[0], np.cumsum(steps)])
    guess = "slices are missing" if missing else "the spacing is irregular"
    remedy = ", or scan with --fill-gaps" if fillable else ""
    raise RefusedError(
        "irregular-spacing",
        f"Slices {at + 1} ({slices[at].name}) and {at + 2} ({slices[at + 1].name}) are {gaps[at]:.3f} mm "
        f"apart, the others {step:.3f} mm; {guess}. Complete the series{remedy}, or leave it out.",
    )


def _line(
    slices: Sequence[Slice],
    places: np.ndarray,
    index: np.ndarray,
    between: np.ndarray,
    normal: np.ndarray,
    untilt: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The step along the third axis and what is left of it within the plane, mm; all slices on one line, evenly."""
    along = float(between @ normal)
    beside = between - along * normal
    apart = float(np.linalg.norm(beside))
    tilted = apart / along > TILT_TOLERANCE and apart * index[-1] > PLACE_TOLERANCE_MM
    if tilted and not (untilt and apart / along <= LARGEST_TILT):
        raise RefusedError(
            "gantry-tilt",
            f"Each slice is shifted by {apart:.3f} mm in its own plane, a gantry tilt of "
            f"{np.degrees(np.arctan2(apart, along)):.1f} degrees: the stack is not a rectangular grid. "
            "Scan with --resample-tilt, or leave it out.",
        )
    off = np.linalg.norm(places - places[0] - np.outer(index, between), axis=1)
    if off.max() > max(PLACE_TOLERANCE_MM, GAP_TOLERANCE * along):
        at = int(off.argmax())
        raise RefusedError(
            "irregular-spacing",
            f"Slice {at + 1} ({slices[at].name}) lies {off[at]:.3f} mm beside its place in an even stack. "
            "Export the series again, or leave it out.",
        )
    return (along * normal, beside) if tilted else (between, np.zeros(3))
