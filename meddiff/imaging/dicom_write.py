"""A volume as a classic DICOM series, one file a slice, with the modules its IOD asks for (PS3.3 A.3 CT, A.4 MR)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from meddiff.errors import DicomError
from meddiff.imaging.volume import Volume

IMPLEMENTATION = "2.25.178351267803943265211049302216451347001"  # identifies meddiff as the writer (PS3.10 section 7.1)
CT_INTERCEPT = -1024  # HU of a stored 0
RIGHT_ANGLE_TOLERANCE = 1e-4  # cosine between two voxel axes


@dataclass(frozen=True)
class Identity:
    """Whose the images claim to be."""

    patient_name: str
    patient_id: str
    birth_date: str = ""  # YYYYMMDD
    institution: str = ""


def uid(seed: object, *what: object) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that follows from the seed and what it names."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *what))).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big') >> 1}")


def write_series(
    folder: Path,
    volume: Volume,  # CT in HU, or MR; stored in 16 bits, rounded to whole numbers
    *,
    identity: Identity,
    series_description: str,
    uid_seed: object,  # the same seed, the same UIDs and bytes
    body_part: str = "HEAD",  # a defined term of PS3.16 annex L
) -> list[Path]:
    """Write `slice_0001.dcm`, ... and return their paths, in the order of the volume's third axis.

    A reader orders slices along the normal (PS3.3 C.7.6.2): a left-handed grid comes back with its third axis reversed.
    DicomError for another modality, axes that are not at right angles, values that 16 bits cannot hold, or a folder that
    holds slices already.
    """
    if volume.modality not in ("CT", "MR"):
        raise DicomError(f"{folder}: a series of modality {volume.modality} is not written; CT and MR are.")
    axes = volume.geometry.affine[:3, :3] / volume.geometry.spacing_mm
    if np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT_ANGLE_TOLERANCE:
        raise DicomError(f"{folder}: the grid has a shear, which slices cannot hold; resample it, or write NIfTI.")
    intercept = CT_INTERCEPT if volume.modality == "CT" else 0
    stored = np.rint(volume.array) - intercept
    lowest = -32768 if volume.modality == "CT" else 0
    if not (stored.min() >= lowest and stored.max() <= 32767):  # so that NaN is refused too
        raise DicomError(
            f"{folder}: values from {volume.array.min():g} to {volume.array.max():g} do not fit 16 bits "
            f"with intercept {intercept}; scale them, or write NIfTI."
        )
    if any(folder.glob("slice_*.dcm")):
        raise DicomError(
            f"{folder}: holds slices already, and two series must not mix; choose a new folder, or empty it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(volume.array.shape[2]):
        dataset = _slice(volume, stored[:, :, k], k, identity, (series_description, body_part), uid_seed, intercept)
        path = folder / f"slice_{k + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _slice(
    volume: Volume, stored: np.ndarray, k: int, identity: Identity, words: tuple[str, str], seed: object, intercept: int
) -> FileDataset:
    description, body_part = words
    is_ct = volume.modality == "CT"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if is_ct else MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid(seed, "instance", k)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "MEDDIFF"  # pydicom would put its version: other bytes with each release
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.SpecificCharacterSet = "ISO_IR 192"
    _patient_and_study(ds, identity, seed)
    ds.Modality = volume.modality
    ds.SeriesInstanceUID = uid(seed, "series")
    ds.SeriesNumber = 1
    ds.BodyPartExamined = body_part
    ds.SeriesDescription = description
    ds.FrameOfReferenceUID = uid(seed, "frame")
    ds.PositionReferenceIndicator = ""
    ds.PatientPosition = "HFS"
    ds.Manufacturer = "meddiff"
    ds.InstitutionName = identity.institution
    ds.InstanceNumber = k + 1
    ds.AcquisitionNumber = 1
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if is_ct else ["ORIGINAL", "PRIMARY", "OTHER"]
    _plane(ds, volume, k)
    if is_ct:
        ds.KVP = 120
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = intercept, 1, "HU"
    else:
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", ""
        ds.MRAcquisitionType, ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "3D", 8, 3, 1
    _pixels(ds, stored)
    return ds


def _patient_and_study(ds: Dataset, identity: Identity, seed: object) -> None:
    ds.PatientName = identity.patient_name
    ds.PatientID = identity.patient_id
    ds.PatientBirthDate = identity.birth_date
    ds.PatientSex = "O"
    ds.StudyInstanceUID = uid(seed, "study")
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200101", "120000", "1", ""
    ds.ReferringPhysicianName = ""


def _plane(ds: Dataset, volume: Volume, k: int) -> None:
    """PS3.3 C.7.6.2: cosines of a row (towards growing column index) first; PixelSpacing between rows first."""
    lps, spacing = volume.geometry.lps(), volume.geometry.spacing_mm
    along_row, along_column = lps[:3, 0] / spacing[0], lps[:3, 1] / spacing[1]
    position = lps[:3, 3] + lps[:3, 2] * k
    ds.ImageOrientationPatient = [_decimal(v) for v in (*along_row, *along_column)]
    ds.ImagePositionPatient = [_decimal(v) for v in position]
    ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    ds.SliceThickness = _decimal(spacing[2])
    ds.SliceLocation = _decimal(float(position @ np.cross(along_row, along_column)))
    if volume.modality == "MR":
        ds.SpacingBetweenSlices = _decimal(spacing[2])


def _pixels(ds: Dataset, stored: np.ndarray) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Columns, ds.Rows = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = np.ascontiguousarray(stored.T).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"


def _decimal(value: float) -> str:
    """At most 16 characters (PS3.5 section 6.2, DS), to at least nine significant digits."""
    value = float(value) + 0.0  # no negative zero
    for digits in range(15, 8, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.8g}"
