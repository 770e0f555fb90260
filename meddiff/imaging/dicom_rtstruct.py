"""DICOM RTSTRUCT in: contours on the slices of an image as one label map on its grid (PS3.3 C.8.8.5 and C.8.8.6)."""

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import RTStructureSetStorage

from meddiff.errors import DicomError
from meddiff.imaging.dicom_header import BoundedFile, RefusedError, read_header
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.polygon import Filler
from meddiff.imaging.regions import RegionError, chosen, region_names
from meddiff.imaging.volume import Volume

PLANE_TOLERANCE = 0.2  # of the distance between slices: how far a point of a contour may lie from its slice
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
IGNORED = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")  # enclose nothing
FEWEST = 3  # points that enclose an area
MAX_BYTES = 2**28  # of the file
MAX_POINTS = 2**23  # of all contours
MAX_NUMBER = 2**16 - 1  # of a label, as in a SEG
MAX_MM = 1e5  # from the origin of the frame of reference; nobody is that large

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Roi:
    """One region of interest."""

    number: int
    name: str
    contours: list[np.ndarray] = field(default_factory=list)  # closed ones, each (points, 3) LPS mm

    def __str__(self) -> str:
        return f"ROI {self.number} ({self.name})"


def read_rtstruct(path: Path, grid: Geometry, regions: Sequence[str] = ()) -> tuple[Volume, dict[int, str]]:
    """The label map of a structure set on the grid of its image, whose third axis runs across the slices, and its names.

    A voxel whose centre is inside an odd number of an ROI's contours on that slice belongs to the ROI: a contour in another one,
    or joined to it by a keyhole, is a hole, and CLOSEDPLANAR_XOR means the same. Nothing is made up between slices. Point and
    open contours are ignored, and the log says how many; an ROI without voxels keeps its name.

    A label is the ROINumber. Of ROIs that lie in one another the inner one has the voxels. With `regions` (see `regions.py`)
    only these become labels, 1, 2, ..., and of those that share voxels the one named first has them.

    DicomError for a file that is no structure set, is damaged or too large, names no closed contour, has a contour that is
    more than PLANE_TOLERANCE of a slice beside one, has ROIs that overlap and do not lie in one another, lacks one of the
    regions, or has ROIs in several frames of reference. Whether the frame of reference is the image's is the caller's to check.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd values in the rest of the header
            rois = _rois(path, _opened(path), regions)
        if regions:
            return Volume(_painted(path, rois, grid), grid, "SEG", "label"), region_names(regions)
        return Volume(_filled(path, rois, grid), grid, "SEG", "label"), {one.number: one.name for one in rois}
    except (DicomError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except RefusedError as e:
        raise DicomError(f"{path}: {e.detail}") from e
    except RegionError as e:
        raise DicomError(f"{path}: {e}") from e
    except BaseException as e:  # pydicom raises many kinds for damaged files
        why = " ".join(str(e).split())[:200]
        raise DicomError(
            f"{path}: cannot be read as contours ({type(e).__name__}: {why}). Export the structure set again."
        ) from e


def _opened(path: Path) -> Dataset:
    header = read_header(path)  # refuses what is deflated
    if header.sop_class != RTStructureSetStorage:
        raise DicomError(f"{path}: is no RTSTRUCT; give a structure set.")
    with BoundedFile(path) as file:
        if file.size > MAX_BYTES:
            raise DicomError(f"{path}: has {file.size} bytes; at most {MAX_BYTES} are read. Export fewer ROIs.")
        return pydicom.dcmread(file, specific_tags=["StructureSetROISequence", "ROIContourSequence"])


def _rois(path: Path, dataset: Dataset, regions: Sequence[str]) -> list[Roi]:
    """The ROIs by their numbers, or those of the regions in their order, with their closed contours."""
    rois: dict[int, Roi] = {}
    frames: dict[int, str] = {}
    for item in dataset.get("StructureSetROISequence") or []:
        number = int(item.ROINumber)
        one = Roi(number, str(item.get("ROIName") or "").strip() or f"label_{number}")
        if number in rois:
            raise DicomError(f"{path}: {rois[number]} and {one} have one number. Export the structure set again.")
        if not 1 <= number <= MAX_NUMBER:
            raise DicomError(f"{path}: {one}: labels are 1 to {MAX_NUMBER}, 0 is the background. Number the ROI anew.")
        rois[number] = one
        frames[number] = str(item.get("ReferencedFrameOfReferenceUID") or "")
    numbers = list(chosen(regions, {one.number: one.name for one in rois.values()}).values()) or sorted(rois)
    ignored = points = 0
    for item in dataset.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        if number not in rois:
            raise DicomError(f"{path}: has contours of ROI {number}, which it does not name. Export it again.")
        for contour in (item.get("ContourSequence") or []) if number in numbers else []:
            found = _points(path, rois[number], contour)
            if found is None:
                ignored += 1
                continue
            points += len(found)
            if points > MAX_POINTS:
                raise DicomError(f"{path}: its contours have more than {MAX_POINTS} points. Export fewer ROIs.")
            rois[number].contours.append(found)
    if ignored:
        log.warning("%s: %d contours are points, open or of fewer than 3 points; they are ignored", path, ignored)
    drawn = [rois[number] for number in numbers if rois[number].contours]
    if not drawn:
        raise DicomError(f"{path}: none of its {len(numbers)} ROIs has a closed contour. Export one that has.")
    if len({frames[one.number] for one in drawn}) > 1:
        raise DicomError(
            f"{path}: its ROIs are in several frames of reference. Export one structure set for each image."
        )
    return [rois[number] for number in numbers]


def _points(path: Path, roi: Roi, contour: Dataset) -> np.ndarray | None:
    """The points of a closed contour, (points, 3) LPS mm; None for one that encloses nothing."""
    kind = str(contour.get("ContourGeometricType") or "")
    if kind in IGNORED:
        return None
    if kind not in CLOSED:
        raise DicomError(
            f"{path}: {roi}: a contour is of type {kind!r}; expected {' or '.join(CLOSED)}. Export it again."
        )
    if any(float(mm) for mm in contour.get("ContourOffsetVector") or []):
        raise DicomError(f"{path}: {roi}: a contour has a ContourOffsetVector, which is retired. Export it again.")
    raw = contour.get_item("ContourData")
    stored = raw.value if raw is not None else None
    values = (
        stored.split(b"\\") if stored and isinstance(stored, bytes) else stored or []
    )  # a DSfloat each would take seconds
    mm = np.array([float(value) for value in values])
    count = contour.get("NumberOfContourPoints")
    if mm.size % 3 or (count is not None and int(count) != mm.size // 3):
        raise DicomError(f"{path}: {roi}: a contour of {count} points has {mm.size} coordinates. Export it again.")
    if not (np.abs(mm) <= MAX_MM).all():  # so that NaN is refused too
        raise DicomError(f"{path}: {roi}: a contour has coordinates that are no place in a patient. Export it again.")
    return mm.reshape(-1, 3) if mm.size >= 3 * FEWEST else None


def _painted(path: Path, rois: Sequence[Roi], grid: Geometry) -> np.ndarray:
    """The label map of ROIs in an order that the user chose, (*grid.shape): label 1 over 2 over 3 ..."""
    labels = np.zeros(grid.shape, np.min_scalar_type(len(rois)))
    filler = Filler(grid.shape[:2])
    for label in range(len(rois), 0, -1):
        for k, mask in _masks(path, rois[label - 1], grid, filler):
            labels[:, :, k][mask] = label
    return labels


def _filled(path: Path, rois: Sequence[Roi], grid: Geometry) -> np.ndarray:
    """The label map by ROINumber, (*grid.shape), inner ROIs over outer ones; DicomError where two cross or are the same."""
    labels = np.zeros(grid.shape, np.min_scalar_type(rois[-1].number))
    below = dict(_paint(path, rois, grid, labels))
    if all(set(covered) <= {0} for covered in below.values()):
        return labels
    voxels = {roi: covered.total() for roi, covered in below.items()}
    named = {roi.number: roi for roi in rois}
    labels[:] = 0
    # from the largest to the smallest: an ROI lies wholly in others where all that it covers is one of them
    for roi, covered in _paint(path, sorted(rois, key=lambda one: -voxels[one]), grid, labels):
        others = [named[number] for number in covered if number]
        inside = len(covered) == 1 and all(voxels[other] > voxels[roi] for other in others)
        if others and not inside:
            other = min(others, key=lambda one: voxels[one])
            one, two = sorted((roi, other), key=lambda roi: roi.number)
            raise DicomError(
                f"{path}: {one} and {two} share {covered[other.number]} voxels, neither lies in the other, and a voxel has one "
                "label. Scan with --regions, which chooses regions and puts them in order."
            )
    left = set(np.unique(labels).tolist())
    for roi in rois:
        if voxels[roi] and roi.number not in left:
            log.warning("%s: %s is filled by the ROIs in it and has no voxel of its own", path, roi)
    return labels


def _paint(path: Path, rois: Sequence[Roi], grid: Geometry, labels: np.ndarray) -> Iterator[tuple[Roi, Counter[int]]]:
    """Paint one ROI over another into `labels`; each with how many voxels of which labels it covered."""
    filler = Filler(grid.shape[:2])
    for roi in rois:
        covered: Counter[int] = Counter()
        for k, mask in _masks(path, roi, grid, filler):
            plane = labels[:, :, k]
            found = np.bincount(plane[mask])
            covered.update({int(number): int(found[number]) for number in np.flatnonzero(found)})
            plane[mask] = roi.number
        if roi.contours and not covered:
            log.warning("%s: %s encloses the centre of no voxel", path, roi)
        yield roi, covered


def _masks(path: Path, roi: Roi, grid: Geometry, filler: Filler) -> Iterator[tuple[int, np.ndarray]]:
    """Slice by slice, the voxels of an ROI, (I, J)."""
    for k, polygons in _on_slices(path, roi, grid).items():
        yield k, filler.even_odd(polygons)


def _on_slices(path: Path, roi: Roi, grid: Geometry) -> dict[int, list[np.ndarray]]:
    """The contours by slice, each (points, 2) in the indices of its plane."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    to_index = np.linalg.inv(grid.lps())
    for mm in roi.contours:
        index = mm @ to_index[:3, :3].T + to_index[:3, 3]
        k = int(np.clip(np.rint(index[:, 2].mean()), 0, grid.shape[2] - 1))
        off = float(np.abs(index[:, 2] - k).max())
        if off > PLANE_TOLERANCE:
            apart = grid.spacing_mm[2]
            raise DicomError(
                f"{path}: {roi}: a contour reaches {off * apart:.3g} mm from slice {k}, the nearest of the image, and "
                f"{PLANE_TOLERANCE * apart:.3g} mm is allowed. Draw the contours on the slices of this image."
            )
        polygon = index[:, :2]
        if any(np.array_equal(polygon, other) for other in found[k]):
            raise DicomError(
                f"{path}: {roi}: slice {k} has the same contour twice, which cancel. Export the structure set again."
            )
        found[k].append(polygon)
    return dict(found)
