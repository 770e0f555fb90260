"""DICOM SEG in: segments as one label map, where the file says they are, or on the grid of an image."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription, segread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, SegmentationStorage

from meddiff.errors import DicomError
from meddiff.imaging.dicom import PLACE_TOLERANCE_MM
from meddiff.imaging.dicom_seg import NUMBERED
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.regions import RegionError, chosen, region_names
from meddiff.imaging.reorder import reordered
from meddiff.imaging.volume import Volume

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage, newer than pydicom's list
MAX_VOXELS = 2**31  # frames far apart may span more; they are refused before anything is decoded


def read_seg(path: Path, grid: Geometry | None = None, regions: Sequence[str] = ()) -> tuple[Volume, dict[int, str]]:
    """The label map of a BINARY or LABELMAP segmentation, and the names of its labels without the background.

    Axes are (columns, rows, slices along the normal), as of an image series. Writers leave empty frames out: without a grid
    the map reaches from the first slice with a segment to the last, with one it fills that grid. A label's number is the
    segment's, or the one that `write_seg` kept. With `regions` (see `regions.py`) only these become labels, 1, 2, ..., and of
    those that share voxels the one named first has them.

    DicomError for a file that is no such segmentation, overlapping segments without `regions`, a region that is missing, or
    irregular frames; GeometryError where the frames are not on the grid.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd values in the rest of the header
            volume, names = _decoded(path, _opened(path), regions)
    except (DicomError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except RegionError as e:
        raise DicomError(f"{path}: {e}") from e
    except (InvalidDicomError, FileNotFoundError) as e:
        raise DicomError(f"{path}: is no DICOM file ({e}). Give a DICOM SEG.") from e
    except BaseException as e:  # native decoders panic with classes that are no Exception
        raise DicomError(
            f"{path}: cannot be read as one label map ({type(e).__name__}: {e}). Export segments that do not overlap, on "
            "evenly spaced slices, or choose some with --regions."
        ) from e
    if grid is None:
        return volume, names
    array = np.ascontiguousarray(reordered(volume, grid, PLACE_TOLERANCE_MM, part=True))
    return Volume(array, grid, "SEG", "label"), names


def _opened(path: Path) -> Segmentation:
    meta = read_file_meta_info(str(path))
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DicomError(f"{path}: a deflated file inflates without bound; convert it, for instance with dcmconv.")
    if meta.get("MediaStorageSOPClassUID") not in (SegmentationStorage, LABEL_MAP_STORAGE):
        raise DicomError(f"{path}: is no DICOM SEG; give a segmentation.")
    seg = segread(path)
    if seg.segmentation_type == SegmentationTypeValues.FRACTIONAL:
        raise DicomError(f"{path}: holds fractions, no labels; export it as BINARY.")
    return seg


def _decoded(path: Path, seg: Segmentation, regions: Sequence[str]) -> tuple[Volume, dict[int, str]]:
    place = seg.get_volume_geometry(allow_missing_positions=True)
    if place is None:
        raise DicomError(f"{path}: its frames are no regular stack in a patient. Export it on evenly spaced slices.")
    if int(np.prod(place.spatial_shape, dtype=object)) > MAX_VOXELS:
        raise DicomError(f"{path}: its frames span {place.spatial_shape} voxels; at most {MAX_VOXELS} are read.")
    described = {int(n): seg.get_segment_description(n) for n in seg.segment_numbers if int(n)}
    if regions:
        found, array = _in_order(seg, chosen(regions, {n: one.segment_label for n, one in described.items()}))
    else:
        found = seg.get_volume(combine_segments=True)
        array = np.asarray(found.array)  # (slices, rows, columns)
    lps = np.array(found.affine)[:, [2, 1, 0, 3]]
    if np.linalg.det(lps[:3, :3]) < 0:  # slices against the normal, the vector product of row and column cosines
        array = array[::-1]
        lps[:3, 3] += lps[:3, 2] * (len(array) - 1)
        lps[:3, 2] *= -1
    if len(array) == 1:  # without a neighbour highdicom may take 1 mm
        lps[:3, 2] *= _thickness(seg) / np.linalg.norm(lps[:3, 2])
    numbers = {label: label for label in region_names(regions)} or _numbers(described)
    table = np.zeros(max(numbers) + 1, np.min_scalar_type(max(numbers.values())))
    for segment, number in numbers.items():
        table[segment] = number
    labels = np.ascontiguousarray(table[array].T)  # (columns, rows, slices)
    names = region_names(regions) or {numbers[n]: one.segment_label for n, one in described.items()}
    return Volume(labels, Geometry.from_lps(labels.shape, lps), "SEG", "label"), names


def _in_order(seg: Segmentation, segments: Mapping[int, int]) -> tuple[highdicom.Volume, np.ndarray]:
    """Segments painted as labels, 1 over 2 over 3 ..., (slices, rows, columns), with the last volume for its place."""
    array = np.empty(0)
    for label in sorted(segments, reverse=True):
        found = seg.get_volume(segment_numbers=[segments[label]], combine_segments=True)
        mask = np.asarray(found.array) > 0
        array = array if array.size else np.zeros(mask.shape, np.min_scalar_type(len(segments)))
        array[mask] = label
    return found, array


def _numbers(described: Mapping[int, SegmentDescription]) -> dict[int, int]:
    """Segment -> label: the number that `write_seg` kept in its description, or its own."""
    kept = {n: NUMBERED.fullmatch(str(one.get("SegmentDescription", ""))) for n, one in described.items()}
    numbers = {n: int(match[1]) for n, match in kept.items() if match}
    if len(numbers) < len(described) or len(set(numbers.values())) < len(described):
        return {n: n for n in described}
    return numbers


def _thickness(seg: Segmentation) -> float:
    """Millimetres from a slice to the next, of which there is none (PS3.3 C.7.6.16.2.1)."""
    for groups in (seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence[0]):
        for measures in groups.get("PixelMeasuresSequence", []):
            return float(measures.get("SpacingBetweenSlices") or measures.SliceThickness)
    raise ValueError("PixelMeasuresSequence is missing")
