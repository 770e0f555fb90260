"""One slice of a CT, MR or PET volume as its header describes it, checked; the classic image (PS3.3 A.3, A.4, A.21) is one.

All header values are converted here, once, so that nothing bad surfaces later.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import (
    UID,
    CTImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from meddiff.imaging.body_parts import FACE_REMOVED, Face, may_show_face
from meddiff.imaging.dicom_header import BEFORE_PIXELS, Header, RefusedError, read_header
from meddiff.imaging.dicom_suv import suv_factor

MODALITY: dict[str, str] = {CTImageStorage: "CT", MRImageStorage: "MR", PositronEmissionTomographyImageStorage: "PT"}
COSINE_TOLERANCE = 1e-3  # how far row and column cosines may be from unit length and right angles
MAX_VOXELS = 2**31  # of one file, and of one volume
MAX_RATIO = 1000  # bytes of pixels for a byte of file; compressed scans reach 20, blank ones more, but are small
SMALL_BYTES = 64 << 20  # pixels that no ratio forbids
APART = ("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "Units")  # always two volumes
SPLIT_KEYS = (  # two volumes where they make two equal stacks of what lies twice at each place; the first that does
    "ImageType", "InversionTime", "TriggerTime", "DiffusionGradientOrientation", "FrameReferenceTime",
    "AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """What the header says of one plane of pixels, checked."""

    path: Path
    patient_id: str
    study_uid: str
    series_uid: str
    frame_uid: str  # of the frame of reference: positions of one frame can be compared
    modality: str
    unit: str
    description: str
    apart: tuple[str, ...]  # time point, echo, b value, unit: two volumes of one series differ in these
    further: tuple[str, ...]  # values of SPLIT_KEYS, which may tell volumes apart that lie at one place
    rows: int
    columns: int
    orientation: np.ndarray  # (2, 3): cosines of a row, of a column, LPS
    position: np.ndarray  # (3,) mm, LPS, centre of the first pixel
    pixel_spacing: tuple[float, float]  # mm between rows, between columns
    thickness: float | None  # mm; a lone slice's extent
    rescale: tuple[float, float]  # slope, intercept
    padding: tuple[int, int] | None  # stored values, both included, that are no measurement (PS3.3 C.7.5.1.1.2)
    inverted: int | None  # MONOCHROME1: lowest + highest stored value that the bits can hold
    face: Face
    frame: int = 0  # index among the frames of its file
    frames: int = 1
    tiles: int = 1  # along a side of the sheet, in a mosaic, where `frame` counts the tiles

    @property
    def name(self) -> str:
        """The file's name, with the frame where it has several."""
        return self.path.name if self.frames * self.tiles == 1 else f"{self.path.name}, frame {self.frame + 1}"


def classic(path: Path, header: Header, modality: str) -> Slice:
    """The slice that a single-frame image is; RefusedError where it is none."""
    check_image(header, header.text("ImageType"))
    check_length(header, 1)
    line = header.number("RescaleSlope"), header.number("RescaleIntercept")
    slope, intercept = rescale(modality, *line, header.text("RescaleType"))
    unit = {"CT": "HU", "PT": "SUVbw"}.get(modality, "a.u.")
    if modality == "PT":
        factor = suv_factor(read_header(path, whole=True))
        slope, intercept = slope * factor, intercept * factor
    thickness = (header.number("SliceThickness"), header.number("SpacingBetweenSlices"))
    return Slice(
        **common(path, header),
        modality=modality,
        unit=unit,
        apart=tuple(header.text(keyword) for keyword in APART),
        further=tuple(header.text(keyword) for keyword in SPLIT_KEYS),
        orientation=cosines(header.numbers("ImageOrientationPatient", 6)),
        position=header.numbers("ImagePositionPatient", 3),
        pixel_spacing=spacing(header.numbers("PixelSpacing", 2)),
        thickness=next((mm for mm in thickness if mm is not None and 0 < mm < np.inf), None),
        rescale=(slope, intercept),
        padding=padding(header),
        inverted=inversion(header, modality),
    )


def common(path: Path, header: Header) -> dict[str, Any]:
    """What all slices of one file share."""
    return {
        "path": path,
        "patient_id": header.text("PatientID"),
        "study_uid": header.text("StudyInstanceUID"),
        "series_uid": header.text("SeriesInstanceUID"),
        "frame_uid": header.text("FrameOfReferenceUID"),
        "description": header.text("SeriesDescription"),
        "rows": header.count("Rows"),
        "columns": header.count("Columns"),
        "face": face_of(header),
    }


def check_image(header: Header, image_type: str) -> None:
    """That there are grey pixels which belong to a volume."""
    if header.count("Rows") <= 0 or header.count("Columns") <= 0:
        raise RefusedError("no-pixels", "It has no Rows and Columns, and so no image; export it with its pixels.")
    if header.count("SamplesPerPixel", 1) != 1:
        raise RefusedError(
            "colour", "It is a colour image; a scan has one value a pixel. Remove it, or export the source."
        )
    kind = header.text("PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise RefusedError(
            "photometric", f"PhotometricInterpretation is {kind}; MONOCHROME1 and MONOCHROME2 are read. Convert it."
        )
    if "LOCALIZER" in image_type.split("\\"):
        raise RefusedError("localizer", "It is a localizer, not part of a volume; nothing is to be done.")


def check_length(header: Header, frames: int) -> None:
    """That the pixels are there and not more than memory holds. Compressed ones show only when they are decoded."""
    if header.rest == 0:
        raise RefusedError("no-pixels", "It ends before its pixels, or never had any; copy or export it again.")
    voxels = frames * header.count("Rows") * header.count("Columns")
    needed = voxels * header.count("BitsAllocated", 16) // 8
    before = BEFORE_PIXELS.get(UID(header.syntax, IGNORE))
    if voxels > MAX_VOXELS:
        raise RefusedError(
            "too-large", f"It claims {voxels} voxels; at most {MAX_VOXELS} are read. Export a part of it."
        )
    if before is not None and header.rest < before + needed:
        raise RefusedError(
            "truncated",
            f"It ends {before + needed - header.rest} bytes before its last pixel does; copy or export it again.",
        )
    if needed > max(SMALL_BYTES, MAX_RATIO * header.rest):
        raise RefusedError(
            "too-large",
            f"It claims {needed} bytes of pixels in {header.rest} bytes of file, more than {MAX_RATIO} for one. "
            "If it is real, export it uncompressed.",
        )


def cosines(numbers: np.ndarray) -> np.ndarray:
    """(2, 3) unit vectors at right angles; RefusedError where the numbers are none."""
    orientation = numbers.reshape(2, 3)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > COSINE_TOLERANCE:
        raise RefusedError(
            "no-geometry",
            f"ImageOrientationPatient {orientation.ravel().tolist()} is not two unit vectors at right angles. "
            "Export it again.",
        )
    return orientation


def spacing(numbers: np.ndarray) -> tuple[float, float]:
    """Millimetres between rows, between columns."""
    between_rows, between_columns = numbers.tolist()
    if min(between_rows, between_columns) <= 0:
        raise RefusedError(
            "no-geometry", f"PixelSpacing is {between_rows}, {between_columns}; above 0 is needed. Export it again."
        )
    return between_rows, between_columns


def rescale(modality: str, slope: float | None, intercept: float | None, kind: str) -> tuple[float, float]:
    """Slope and intercept; CT must have both (PS3.3 C.8.2.1), as nothing else makes its numbers HU.

    A type that names another quantity than HU is refused; US, unspecified, is what ITK writes into every CT.
    """
    if modality == "CT" and (slope is None or intercept is None or kind not in ("", "HU", "US")):
        raise RefusedError(
            "no-hu",
            f"A CT image needs RescaleSlope and RescaleIntercept to HU; found {slope}, {intercept}, type {kind or 'HU'}. "
            "Export it again.",
        )
    numbers = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if not np.isfinite(numbers).all() or numbers[0] == 0:
        raise RefusedError(
            "no-rescale", f"RescaleSlope {slope} and RescaleIntercept {intercept} give no value. Export it again."
        )
    return numbers


def padding(header: Header) -> tuple[int, int] | None:
    """The stored values that stand for no measurement; a value of the wrong sign is taken by its bits."""
    values = [header.values.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if values[0] is None:
        return None
    span = 1 << header.count("BitsAllocated", 16)
    highest = span // 2 - 1 if header.count("PixelRepresentation") else span - 1
    ends = [int(value[0]) % span for value in values if value]
    ends = [end - span if end > highest else end for end in ends]
    return min(ends), max(ends)


def inversion(header: Header, modality: str) -> int | None:
    """Lowest + highest stored value of a MONOCHROME1 image, whose low values are bright; None where nothing is to be inverted.

    PET has no such images (PS3.3 C.8.9.4.1.2): they are refused.
    """
    if header.text("PhotometricInterpretation") == "MONOCHROME2":
        return None
    if modality == "PT":
        raise RefusedError("photometric", "PhotometricInterpretation of a PET image is MONOCHROME1. Export it again.")
    return -1 if header.count("PixelRepresentation") else (1 << header.count("BitsStored", 16)) - 1


def face_of(header: Header) -> Face:
    """Whether a scan may show a face: by the part of the body, and by what de-identification wrote into the file."""
    if not may_show_face(header.text("BodyPartExamined")):
        return "not applicable"
    return "removed" if FACE_REMOVED in header.values.get("DeidentificationMethod", ()) else "kept"


def modality_of(header: Header) -> str:
    """CT, MR or PT of a classic image; RefusedError for what is no scan."""
    uid = header.sop_class
    modality, stated = MODALITY.get(uid), header.text("Modality") or "unknown"
    if modality is None or stated != modality:
        raise RefusedError(
            "not-a-scan",
            f"{uid.name} of modality {stated} is not read, only images of CT, MR and PET and doses are; leave it out.",
        )
    if header.count("NumberOfFrames", 1) > 1:
        raise RefusedError(
            "multi-frame", f"{uid.name} cannot hold several frames; export it as an enhanced or as single-frame images."
        )
    return modality
