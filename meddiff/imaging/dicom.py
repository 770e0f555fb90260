"""DICOM series in: classic single-frame CT, MR and PET images (PS3.3 A.3, A.4, A.21). Nothing is guessed.

Every file ends in a series that is a regular stack, or is refused with a reason. Order comes from ImagePositionPatient
along the slice normal, never from InstanceNumber or file names.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from meddiff.errors import DicomError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

MODALITIES = ("CT", "MR", "PT")
GAP_TOLERANCE = 0.01  # of the spacing: how far a gap may differ from the others ...
GAP_TOLERANCE_MM = 0.01  # ... or this much, whichever is more
SHIFT_TOLERANCE_MM = 0.05  # how far a slice may lie beside the normal through the first: a tilted gantry shifts each
COSINE_TOLERANCE = 1e-3  # how far row and column cosines may be from unit length and right angles
KEYWORDS = [
    "SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType",
    "SeriesDescription", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    "TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "RescaleSlope", "RescaleIntercept", "Units",
]  # fmt: skip


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


@dataclass(frozen=True)
class _Slice:
    path: Path
    header: Dataset
    orientation: np.ndarray  # (2, 3): cosines of a row, of a column, LPS
    position: np.ndarray  # (3,) mm, LPS, centre of the first pixel


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def find_series(paths: Sequence[Path]) -> tuple[list[Series], list[Refusal]]:
    """The volumes among some files, by their headers; every path is in exactly one series or one refusal."""
    groups: dict[tuple, list[_Slice]] = defaultdict(list)
    refused: list[Refusal] = []
    for path in sorted(set(paths)):
        try:
            found = _read_slice(path)
            groups[_key(found)].append(found)
        except _RefusedError as why:
            refused.append(Refusal(path, why.reason, why.detail))
    series = []
    for slices in groups.values():
        try:
            series.append(_stack(slices))
        except _RefusedError as why:
            refused += [Refusal(s.path, why.reason, why.detail) for s in slices]
    return sorted(series, key=lambda s: s.files[0]), sorted(refused, key=lambda r: r.path)


def read_series(files: Sequence[Path]) -> Volume:
    """The volume of one series: CT in HU by each slice's own rescale, RAS geometry, float32 (columns, rows, slices).

    DicomError where the files are not one regular stack, or the pixels cannot be decoded.
    """
    try:
        slices = [_read_slice(Path(path)) for path in files]
        if len({_key(s) for s in slices}) > 1:
            raise _RefusedError("several-series", "The files are of several series, orientations or sizes; scan their folder.")
        series = _stack(slices)
    except _RefusedError as why:
        raise DicomError(f"{files[0] if files else 'no files'}: {why.reason}: {why.detail}") from why
    array = np.stack([_pixels(path) for path in series.files], axis=-1)
    return Volume(array, series.geometry, series.modality, "HU" if series.modality == "CT" else "a.u.")


def _header(path: Path) -> Dataset:
    """The header up to the pixels; pydicom's warnings about odd values are silenced here, as each value used is checked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if read_file_meta_info(str(path)).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise _RefusedError("deflated", "A deflated file inflates without bound; convert it, for instance with dcmconv.")
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=KEYWORDS)
    except _RefusedError:
        raise
    except InvalidDicomError as e:
        raise _RefusedError("not-dicom", "It is not a DICOM file; leave it, or remove it from the folder.") from e
    except Exception as e:  # pydicom raises many kinds for damaged files, and all of them mean the same to the user
        raise _RefusedError("damaged-header", f"Its header cannot be read ({type(e).__name__}: {e}); export it again.") from e


def _read_slice(path: Path) -> _Slice:
    """One file's header, checked to be a slice of a kind that is read."""
    header = _header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_kind(header)
            return _Slice(path, header, *_placed(header))
    except (ValueError, TypeError, AttributeError, OverflowError) as e:
        raise _RefusedError("damaged-header", f"A value of its header cannot be read ({e}); export it again.") from e


def _check_kind(header: Dataset) -> None:
    modality = str(header.get("Modality") or "")
    name = pydicom.uid.UID(str(header.get("SOPClassUID") or "")).name or "unknown object"
    if "SOPClassUID" not in header:
        raise _RefusedError("not-an-image", "It names no SOP class (a DICOMDIR, or no image); nothing is to be done.")
    if int(header.get("NumberOfFrames") or 1) > 1 or "Enhanced" in name:
        raise _RefusedError("multi-frame", f"{name} with several frames is not read yet; export it as single-frame images.")
    if modality not in MODALITIES or "Image Storage" not in name:
        raise _RefusedError("not-a-scan", f"{name} of modality {modality or 'unknown'} is not read; CT, MR and PET images are.")
    if not header.get("Rows") or not header.get("Columns"):
        raise _RefusedError("no-pixels", "It has no Rows and Columns, and so no image; export it with its pixels.")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise _RefusedError("colour", "It is a colour image; a scan has one value a pixel. Remove it, or export the source.")
    if header.get("PhotometricInterpretation") != "MONOCHROME2":
        kind = header.get("PhotometricInterpretation")
        raise _RefusedError("photometric", f"PhotometricInterpretation is {kind}; only MONOCHROME2 is read. Convert it.")
    if "LOCALIZER" in [str(v).upper() for v in header.get("ImageType") or []]:
        raise _RefusedError("localizer", "It is a localizer, not part of a volume; nothing is to be done.")


def _placed(header: Dataset) -> tuple[np.ndarray, np.ndarray]:
    wanted = {"ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2}
    values = {}
    for keyword, n in wanted.items():
        value = header.get(keyword)
        if value is None or np.size(value) != n or not np.isfinite(np.array(value, dtype=float)).all():
            raise _RefusedError("no-geometry", f"{keyword} is missing or is not {n} numbers; its place is unknown. Export it again.")
        values[keyword] = np.array(value, dtype=float)
    orientation = values["ImageOrientationPatient"].reshape(2, 3)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > COSINE_TOLERANCE:
        raise _RefusedError("no-geometry", f"ImageOrientationPatient {orientation.ravel().tolist()} is not two unit vectors.")
    if values["PixelSpacing"].min() <= 0:
        raise _RefusedError("no-geometry", f"PixelSpacing {values['PixelSpacing'].tolist()} is not above 0; export it again.")
    return orientation, values["ImagePositionPatient"]


def _key(found: _Slice) -> tuple:
    """What all slices of a volume have in common."""
    header = found.header
    text = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows", "Columns")
    apart = ("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "Units")
    return (
        *(str(header.get(keyword) or "") for keyword in (*text, *apart)),
        tuple(np.round(found.orientation.ravel(), 3) + 0.0),
        tuple(np.round(np.array(header.PixelSpacing, dtype=float), 4)),
    )


def _stack(slices: list[_Slice]) -> Series:
    """The slices as one regular volume, or the reason why not."""
    first = slices[0]
    row, column = first.orientation
    normal = np.cross(row, column)
    slices = sorted(slices, key=lambda s: float(s.position @ normal))
    header = slices[0].header
    places = np.array([s.position for s in slices])
    gaps = np.diff(places @ normal)
    if len(gaps) and gaps.min() < GAP_TOLERANCE_MM:
        at = int(np.argmin(gaps))
        raise _RefusedError(
            "duplicate-position",
            f"{slices[at].path.name} and {slices[at + 1].path.name} lie at the same place: copies, or several time points "
            "without a tag that tells them apart. Remove one of them.",
        )
    step = float(np.median(gaps)) if len(gaps) else _thickness(header)
    _check_gaps(slices, gaps, step)
    beside = places - places[0]
    beside -= np.outer(beside @ normal, normal)
    shift = float(np.linalg.norm(beside, axis=1).max())
    if shift > SHIFT_TOLERANCE_MM:
        angle = float(np.degrees(np.arctan2(np.linalg.norm(beside[-1]), (places[-1] - places[0]) @ normal)))
        raise _RefusedError(
            "gantry-tilt",
            f"Slices are shifted by up to {shift:.2f} mm in their own plane (a tilt of {angle:.1f} degrees): the stack is not "
            "a rectangular grid. Resample it, for instance with dcm2niix, or leave the series out.",
        )
    between = (places[-1] - places[0]) / len(gaps) if len(gaps) else normal * step
    spacing = np.array(header.PixelSpacing, dtype=float)  # between rows, between columns
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = row * spacing[1], column * spacing[0], between, places[0]
    return Series(
        uid=str(header.get("SeriesInstanceUID") or ""),
        patient_id=str(header.get("PatientID") or ""),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        modality=str(header.Modality),
        description=str(header.get("SeriesDescription") or ""),
        files=tuple(s.path for s in slices),
        geometry=Geometry.from_lps((int(header.Columns), int(header.Rows), len(slices)), lps),
    )


def _check_gaps(slices: list[_Slice], gaps: np.ndarray, step: float) -> None:
    wrong = np.flatnonzero(np.abs(gaps - step) > max(GAP_TOLERANCE * step, GAP_TOLERANCE_MM))
    if not len(wrong):
        return
    at = int(wrong[0])
    many = round(float(gaps[at] / step), 2)
    guess = "a slice is missing" if many.is_integer() and len(wrong) < len(gaps) / 2 else "the spacing is irregular"
    raise _RefusedError(
        "irregular-spacing",
        f"Slices {at + 1} ({slices[at].path.name}) and {at + 2} ({slices[at + 1].path.name}) are {gaps[at]:.3f} mm apart, the "
        f"others {step:.3f} mm; {guess}. Complete the series, or leave it out.",
    )


def _thickness(header: Dataset) -> float:
    """The extent of a lone slice."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.get(keyword)
        if value is not None and float(value) > 0:
            return float(value)
    raise _RefusedError("single-slice", "It is alone in its series and has no SliceThickness; its extent is unknown. Leave it out.")


def _pixels(path: Path) -> np.ndarray:
    """One slice, (columns, rows) float32, rescaled (PS3.3 C.11.1); DicomError where it cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            stored = dataset.pixel_array
            slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # native decoders panic with classes that are no Exception
        syntax = getattr(getattr(locals().get("dataset"), "file_meta", None), "TransferSyntaxUID", None)
        plugins = re.search(r"missing|install|plugin|handler", str(e), re.IGNORECASE)
        remedy = "pip install 'pylibjpeg[all]' pyjpegls" if plugins else "the file is damaged; export it again"
        raise DicomError(f"{path}: its pixels cannot be decoded (transfer syntax {syntax}; {e}). Remedy: {remedy}.") from e
    if stored.ndim != 2:
        raise DicomError(f"{path}: has pixels of shape {stored.shape}, one slice was expected; export it as single frames.")
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32).T
