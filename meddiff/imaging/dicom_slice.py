"""One DICOM file as a slice of a CT, MR or PET volume (PS3.3 A.3, A.4, A.21), or the reason why it is none.

All header values are converted here, once: pydicom converts lazily, so that a bad value would otherwise surface later.
"""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from meddiff.errors import DicomError

MODALITY = {CTImageStorage: "CT", MRImageStorage: "MR", PositronEmissionTomographyImageStorage: "PT"}
BEFORE_PIXELS = {  # bytes of the pixels' tag, VR and length, for the uncompressed syntaxes (PS3.5 section 7.1)
    ImplicitVRLittleEndian: 8,
    ExplicitVRLittleEndian: 12,
    ExplicitVRBigEndian: 12,
}
COSINE_TOLERANCE = 1e-3  # how far row and column cosines may be from unit length and right angles
KEYWORDS = [
    "SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType",
    "SeriesDescription", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "Units", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "BitsAllocated",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """What the header of one single-frame image says, checked."""

    path: Path
    patient_id: str
    study_uid: str
    series_uid: str
    frame_uid: str  # of the frame of reference: positions of one frame can be compared
    modality: str
    description: str
    apart: tuple[str, ...]  # time point, echo, b value, unit: two volumes of one series differ in these
    rows: int
    columns: int
    orientation: np.ndarray  # (2, 3): cosines of a row, of a column, LPS
    position: np.ndarray  # (3,) mm, LPS, centre of the first pixel
    pixel_spacing: tuple[float, float]  # mm between rows, between columns
    thickness: float | None  # mm; a lone slice's extent
    rescale: tuple[float, float]  # slope, intercept


class RefusedError(Exception):
    """This file, or this stack, is no volume; `reason` is a short code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_slice(path: Path) -> Slice:
    """One file's header up to the pixels; RefusedError where it is no slice of a kind that is read.

    pydicom's warnings about odd values are silenced, as each value in use is checked.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if read_file_meta_info(str(path)).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise RefusedError(
                    "deflated", "A deflated file inflates without bound; convert it, for instance with dcmconv."
                )
            with open(path, "rb") as file:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=KEYWORDS)
                rest = os.fstat(file.fileno()).st_size - file.tell()
            modality = _modality(header)
            _check_image(header)
            _check_length(header, rest)
            return _checked(path, header, modality)
    except RefusedError:
        raise
    except InvalidDicomError as e:
        raise RefusedError(
            "not-dicom", "It is not a DICOM file (PS3.10); leave it, or remove it from the folder."
        ) from e
    except Exception as e:  # pydicom raises many kinds for damaged files, and all of them mean the same to the user
        raise RefusedError(
            "damaged-header", f"Its header cannot be read ({type(e).__name__}: {e}); export it again."
        ) from e


def read_pixels(found: Slice) -> np.ndarray:
    """The rescaled values of one slice, (rows, columns) float32 (PS3.3 C.11.1); padding stays as it is stored.

    DicomError where the pixels cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(found.path)
            syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    except Exception as e:
        raise DicomError(f"{found.path}: cannot be read ({type(e).__name__}: {e}). Copy or export it again.") from e
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # native decoders panic with classes that are no Exception
        why = " ".join(str(e).split()).rstrip(".")  # pydicom's list of plug-ins, on one line
        raise DicomError(
            f"{found.path}: its pixels ({syntax.name or 'unknown syntax'}) cannot be decoded: {why}. {_remedy(syntax)}"
        ) from e
    if stored.shape != (found.rows, found.columns):
        raise DicomError(
            f"{found.path}: its pixels have shape {stored.shape}, its header says {(found.rows, found.columns)}. "
            "Export it again."
        )
    slope, intercept = found.rescale
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def _remedy(syntax: UID) -> str:
    try:
        if get_decoder(syntax).is_available:
            return "The file is damaged; export it again."
    except NotImplementedError:
        return "This transfer syntax is not supported; convert the file, for instance with dcmconv or gdcmconv."
    return "The codec is missing: pip install 'pylibjpeg[all]' pyjpegls"


def _modality(header: Dataset) -> str:
    uid = UID(str(header.get("SOPClassUID") or ""))
    if not uid:
        raise RefusedError("not-an-image", "It names no SOP class (a DICOMDIR, or no image); nothing is to be done.")
    stated = str(header.get("Modality") or "unknown")
    modality = MODALITY.get(uid)
    if (modality is None and stated in MODALITY.values() and "Enhanced" in uid.name) or (
        modality is not None and int(header.get("NumberOfFrames") or 1) > 1
    ):
        raise RefusedError(
            "multi-frame", f"{uid.name} with several frames is not read yet; export it as single-frame images."
        )
    if modality is None or stated != modality:
        raise RefusedError(
            "not-a-scan", f"{uid.name} of modality {stated} is not read, only CT, MR and PET images are; leave it out."
        )
    return modality


def _check_image(header: Dataset) -> None:
    if not header.get("Rows") or not header.get("Columns"):
        raise RefusedError("no-pixels", "It has no Rows and Columns, and so no image; export it with its pixels.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise RefusedError(
            "colour", "It is a colour image; a scan has one value a pixel. Remove it, or export the source."
        )
    kind = header.get("PhotometricInterpretation")
    if kind != "MONOCHROME2":
        raise RefusedError("photometric", f"PhotometricInterpretation is {kind}; only MONOCHROME2 is read. Convert it.")
    if "LOCALIZER" in np.atleast_1d(header.get("ImageType") or []).tolist():
        raise RefusedError("localizer", "It is a localizer, not part of a volume; nothing is to be done.")


def _check_length(header: Dataset, rest: int) -> None:
    """That the pixels are there: `rest` is how many bytes follow the header. Compressed ones show only when decoded."""
    if rest == 0:
        raise RefusedError("no-pixels", "It ends before its pixels, or never had any; copy or export it again.")
    before = BEFORE_PIXELS.get(header.file_meta.TransferSyntaxUID)
    needed = int(header.Rows) * int(header.Columns) * int(header.get("BitsAllocated") or 16) // 8
    if before is not None and rest < before + needed:
        raise RefusedError(
            "truncated", f"It ends {before + needed - rest} bytes before its last pixel does; copy or export it again."
        )


def _checked(path: Path, header: Dataset, modality: str) -> Slice:
    orientation = _numbers(header, "ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > COSINE_TOLERANCE:
        raise RefusedError(
            "no-geometry",
            f"ImageOrientationPatient {orientation.ravel().tolist()} is not two unit vectors at right angles. "
            "Export it again.",
        )
    between_rows, between_columns = _numbers(header, "PixelSpacing", 2).tolist()
    if min(between_rows, between_columns) <= 0:
        raise RefusedError(
            "no-geometry", f"PixelSpacing is {between_rows}, {between_columns}; above 0 is needed. Export it again."
        )
    thickness = [header.get(keyword) for keyword in ("SliceThickness", "SpacingBetweenSlices")]
    return Slice(
        path=path,
        patient_id=_text(header, "PatientID"),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        frame_uid=_text(header, "FrameOfReferenceUID"),
        modality=modality,
        description=_text(header, "SeriesDescription"),
        apart=tuple(
            _text(header, k)
            for k in ("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "Units")
        ),
        rows=int(header.Rows),
        columns=int(header.Columns),
        orientation=orientation,
        position=_numbers(header, "ImagePositionPatient", 3),
        pixel_spacing=(between_rows, between_columns),
        thickness=next((float(mm) for mm in thickness if mm is not None and 0 < float(mm) < np.inf), None),
        rescale=_rescale(header, modality),
    )


def _rescale(header: Dataset, modality: str) -> tuple[float, float]:
    """Slope and intercept; CT must have both (PS3.3 C.8.2.1), as nothing else makes its numbers HU.

    A type that names another quantity than HU is refused; US, unspecified, is what ITK writes into every CT.
    """
    kind = _text(header, "RescaleType") or "HU"
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if modality == "CT" and (slope is None or intercept is None or kind not in ("HU", "US")):
        raise RefusedError(
            "no-hu",
            f"A CT image needs RescaleSlope and RescaleIntercept to HU; found {slope}, {intercept}, type {kind}. "
            "Export it again.",
        )
    numbers = float(1 if slope is None else slope), float(0 if intercept is None else intercept)
    if not np.isfinite(numbers).all() or numbers[0] == 0:
        raise RefusedError(
            "no-rescale", f"RescaleSlope {slope} and RescaleIntercept {intercept} give no value. Export it again."
        )
    return numbers


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(float(value)) if isinstance(value, float) else str(value)


def _numbers(header: Dataset, keyword: str, n: int) -> np.ndarray:
    value = header.get(keyword)
    numbers = np.array([] if value is None else value, dtype=np.float64).ravel()
    if numbers.size != n or not np.isfinite(numbers).all():
        raise RefusedError(
            "no-geometry", f"{keyword} is missing or is not {n} numbers; its place is unknown. Export it again."
        )
    return numbers
