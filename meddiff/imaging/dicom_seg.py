"""Label maps as DICOM SEG, out and in (PS3.3 A.51, C.8.20), by highdicom.

A segment is one label; the background, 0, is no segment. Segments are numbered from 1 without gaps, so the label's own
number is kept in the segment's description.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes

from meddiff.errors import DicomError
from meddiff.imaging.dicom_codes import segment_codes
from meddiff.imaging.dicom_source import MAKER, VERSION, Source, read_source
from meddiff.imaging.dicom_write import decimal, digest, file_meta, save, uid
from meddiff.imaging.reorder import reordered
from meddiff.imaging.volume import Volume

SERIES_NUMBER = 1000  # above those of a scanner
NUMBER = "Label {} of the label map"
NUMBERED = re.compile(r"Label (\d+) of the label map")
LONGEST_NAME = 64  # characters (PS3.5 section 6.2, LO)


def write_seg(
    path: Path,
    labels: Volume,  # whole numbers, on the grid of the source, its axes in any order
    names: Mapping[int, str],  # of every number in the label map; 0 is the background and may be left out
    source: Sequence[Path],  # the files of the series that was segmented
    *,
    description: str = "Segmentation by meddiff",  # of the series
    parameters: Mapping[str, str] | None = None,  # of the algorithm: weights, seed, whatever made the result
) -> Path:
    """Write a BINARY segmentation that refers to the source's images, in its frame of reference and patient.

    UIDs follow from the content and the source, dates are the source's: the same arguments give the same bytes. Frames
    without a voxel are left out. GeometryError where the grid is not the source's; DicomError for a number without a name,
    a name that DICOM cannot hold, or a source that nothing can refer to.
    """
    known = _checked_names(path, names)
    if not np.issubdtype(labels.array.dtype, np.integer):
        raise DicomError(f"{path}: labels are whole numbers; found {labels.array.dtype}. Convert the array.")
    unnamed = sorted(set(np.unique(labels.array).tolist()) - {0, *known})
    if unnamed:
        raise DicomError(f"{path}: labels {unnamed} have no name; known are {known}. Name them, or set them to 0.")
    origin = read_source(source)
    array = reordered(labels, origin.series.geometry).T  # (slices, rows, columns)
    frames = np.zeros(array.shape, np.uint8 if len(known) < 256 else np.uint16)
    for segment, number in enumerate(known, 1):
        frames[array == number] = segment
    return _write(path, frames, "BINARY", known, origin, description, parameters)


def write_probability_seg(
    path: Path,
    probabilities: Mapping[int, Volume],  # label -> 0 to 1, on the grid of the source, axes in any order
    names: Mapping[int, str],  # of every label
    source: Sequence[Path],
    *,
    description: str = "Probabilities by meddiff",
    parameters: Mapping[str, str] | None = None,
) -> Path:
    """Write a FRACTIONAL segmentation of type PROBABILITY, in steps of 1/255; else as `write_seg`.

    DicomError also for values outside 0 to 1, and for labels that have a name and no probability or the other way round.
    """
    known = _checked_names(path, names)
    if set(known) != set(probabilities) - {0}:
        raise DicomError(f"{path}: names are of {list(known)}, probabilities of {sorted(probabilities)}; give both.")
    origin = read_source(source)
    shape = origin.series.geometry.shape[::-1]
    frames = np.empty((*shape, len(known)), np.float32)  # (slices, rows, columns, segments)
    for segment, number in enumerate(known):
        frames[..., segment] = reordered(probabilities[number], origin.series.geometry).T
    if not (frames.min() >= 0 and frames.max() <= 1):  # so that NaN is refused too
        raise DicomError(f"{path}: probabilities run from {frames.min():g} to {frames.max():g}; 0 to 1 is needed.")
    return _write(path, frames, "FRACTIONAL", known, origin, description, parameters)


def _checked_names(path: Path, names: Mapping[int, str]) -> dict[int, str]:
    """The labels but the background, in order."""
    known = {int(number): names[number] for number in sorted(names) if number != 0}
    if not known or min(known) < 0:
        raise DicomError(f"{path}: a segmentation needs labels from 1 up with names; found {dict(names)}.")
    for number, name in known.items():
        if not name.strip() or len(name) > LONGEST_NAME or "\\" in name or not name.isprintable():
            raise DicomError(
                f"{path}: label {number} is named {name!r}; DICOM holds 1 to {LONGEST_NAME} printable characters without "
                "backslash. Rename it."
            )
    return known


def _write(
    path: Path,
    frames: np.ndarray,
    kind: str,
    names: Mapping[int, str],
    origin: Source,
    description: str,
    parameters: Mapping[str, str] | None,
) -> Path:
    content = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
    images = [str(header.SOPInstanceUID) for header in origin.headers]
    settings = (kind, sorted(names.items()), description, sorted((parameters or {}).items()), VERSION)
    seed = digest(content, origin.series.uid, images, settings)
    date, time = origin.moment
    first = origin.headers[0]
    nameless = deepcopy(first)
    nameless.PatientName = None  # a name that highdicom finds odd goes to its log
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd values of the source, which they repeat
            seg = Segmentation(
                source_images=[nameless, *origin.headers[1:]],
                pixel_array=frames,
                segmentation_type=kind,
                segment_descriptions=_descriptions(names, parameters),
                series_instance_uid=uid(seed, "series"),
                series_number=SERIES_NUMBER + int(first.get("SeriesNumber") or 0),
                sop_instance_uid=uid(seed, "instance"),
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=MAKER,
                software_versions=VERSION,
                device_serial_number="0",  # of type 1; software has none
                omit_empty_frames=bool(frames.any()),
                content_label="SEGMENTATION",
                content_description=description,
                series_description=description,
                content_date=date,
                content_time=time,
            )
    except (ValueError, TypeError, AttributeError) as e:  # whose text may repeat who the patient is
        raise DicomError(
            f"{path}: the header of {origin.series.files[0]} cannot be taken over ({type(e).__name__}); repair its dates and "
            "other values, or write NIfTI."
        ) from e
    seg.PatientName = first.PatientName
    seg.file_meta = file_meta(seg.SOPClassUID, seg.SOPInstanceUID)
    del seg.InstanceCreationDate, seg.InstanceCreationTime  # the clock, as is what highdicom says of itself:
    del seg.ContributingEquipmentSequence[-1].ContributionDateTime
    spacing = decimal(origin.series.geometry.spacing_mm[2])
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = spacing  # highdicom says 1 mm of a lone slice
    measures.SliceThickness = first.get("SliceThickness") or spacing
    organisation = uid(seed, "dimensions")
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    save(seg, path)
    return path


def _descriptions(names: Mapping[int, str], parameters: Mapping[str, str] | None) -> list[SegmentDescription]:
    algorithm = AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.DCM.ArtificialIntelligence,
        version=VERSION,
        source=MAKER,
        parameters=dict(parameters) if parameters else None,
    )
    descriptions = []
    for segment, (number, name) in enumerate(names.items(), 1):
        category, kind = segment_codes(name)
        one = SegmentDescription(segment, name, category, kind, "AUTOMATIC", algorithm)
        one.SegmentDescription = NUMBER.format(number)
        descriptions.append(one)
    return descriptions
