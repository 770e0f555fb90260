"""A volume as a classic DICOM series, one file a slice, with the modules its IOD asks for (PS3.3 A.3 CT, A.4 MR)."""

import hashlib
import io
import os
import warnings
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


def digest(*what: object) -> str:
    """SHA-256 of what makes an object, as the seed of its UIDs."""
    return hashlib.sha256(repr(what).encode()).hexdigest()


def save(dataset: Dataset, path: Path) -> None:
    """The dataset as a file (PS3.10) that has its final name only when it is whole on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(encoded(dataset))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def encoded(dataset: Dataset) -> bytes:
    """The bytes of the dataset as a file (PS3.10)."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's about odd values of a source, which they repeat
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def file_meta(sop_class: str, instance: str) -> FileMetaDataset:
    """The head of an uncompressed file (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "MEDDIFF"  # pydicom would put its version: other bytes with each release
    return meta


def check_room(folder: Path) -> None:
    """DicomError where the folder holds slices already."""
    if any(folder.glob("slice_*.dcm")):
        raise DicomError(
            f"{folder}: holds slices already, and two series must not mix; choose a new folder, or empty it."
        )


def check_axes(what: object, volume: Volume) -> None:
    """DicomError for another modality than CT and MR, and for axes that are not at right angles."""
    if volume.modality not in ("CT", "MR"):
        raise DicomError(f"{what}: a series of modality {volume.modality} is not written; CT and MR are.")
    axes = volume.geometry.affine[:3, :3] / volume.geometry.spacing_mm
    if np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT_ANGLE_TOLERANCE:
        raise DicomError(f"{what}: the grid has a shear, which slices cannot hold; resample it, or write NIfTI.")


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
    check_axes(folder, volume)
    intercept = CT_INTERCEPT if volume.modality == "CT" else 0
    stored = np.rint(volume.array) - intercept
    lowest = -32768 if volume.modality == "CT" else 0
    if not (stored.min() >= lowest and stored.max() <= 32767):  # so that NaN is refused too
        raise DicomError(
            f"{folder}: values from {volume.array.min():g} to {volume.array.max():g} do not fit 16 bits "
            f"with intercept {intercept}; scale them, or write NIfTI."
        )
    check_room(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(volume.array.shape[2]):
        dataset = image_slice(volume, k, identity, uid_seed)
        dataset.SeriesDescription, dataset.BodyPartExamined = series_description, body_part
        if volume.modality == "CT":
            dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = intercept, 1, "HU"
        put_pixels(dataset, stored[:, :, k])
        path = folder / f"slice_{k + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def image_slice(volume: Volume, k: int, identity: Identity, seed: object) -> FileDataset:
    """The header of one slice, as a scanner would write it: all modules but what depends on the pixels."""
    is_ct = volume.modality == "CT"
    meta = file_meta(CTImageStorage if is_ct else MRImageStorage, uid(seed, "instance", k))
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = meta.MediaStorageSOPClassUID
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.SpecificCharacterSet = "ISO_IR 192"
    _patient_and_study(ds, identity, seed)
    ds.Modality = volume.modality
    ds.SeriesInstanceUID = uid(seed, "series")
    ds.SeriesNumber = 1
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
    else:
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", ""
        ds.MRAcquisitionType, ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "3D", 8, 3, 1
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
    ds.ImageOrientationPatient = [decimal(v) for v in (*along_row, *along_column)]
    ds.ImagePositionPatient = [decimal(v) for v in position]
    ds.PixelSpacing = [decimal(spacing[1]), decimal(spacing[0])]
    ds.SliceThickness = decimal(spacing[2])
    ds.SliceLocation = decimal(float(position @ np.cross(along_row, along_column)))
    if volume.modality == "MR":
        ds.SpacingBetweenSlices = decimal(spacing[2])


def put_pixels(ds: Dataset, stored: np.ndarray) -> None:
    """Stored values of one slice, (columns, rows), as 16-bit pixels (PS3.3 C.7.6.3)."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Columns, ds.Rows = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = np.ascontiguousarray(stored.T).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"


def decimal(value: float) -> str:
    """A number in at most 16 characters (PS3.5 section 6.2, DS), to at least nine significant digits."""
    value = float(value) + 0.0  # no negative zero
    for digits in range(15, 8, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    return f"{value:.8g}"
