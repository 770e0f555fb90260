"""A generated image as a DICOM series that nobody can take for a patient's."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from meddiff.imaging.dicom_source import MAKER, VERSION, own_equipment
from meddiff.imaging.dicom_values import quantised
from meddiff.imaging.dicom_write import Identity, check_axes, check_room, digest, image_slice, put_pixels, save
from meddiff.imaging.volume import Volume

DESCRIPTION = "synthetic, meddiff"
DERIVATION = "Synthetic image, drawn from a generative model; it shows no patient."


def write_synthetic(
    folder: Path,
    volume: Volume,  # CT in HU, or MR
    *,
    name: str,  # of the sample, for instance "sample_00001"; another name, another patient
    series_description: str = DESCRIPTION,
    body_part: str = "",  # a defined term of PS3.16 annex L; empty where it is unknown
) -> list[Path]:
    """Write `slice_0001.dcm`, ... and return their paths, in the order of the volume's third axis.

    Marked by DERIVED, SECONDARY, ContributingEquipmentSequence, the descriptions, and a patient called SYNTHETIC^MEDDIFF.
    (The attribute SyntheticData of 2024 has to wait: validators take its tag for an error.) Nothing is copied from anyone:
    no dates, no acquisition parameters. UIDs follow from the name and the content: the same arguments give the same bytes.
    Values come back to half of RescaleSlope, see `quantised`.

    DicomError for another modality, axes that are not at right angles, values that are not finite, or a folder that holds
    slices already.
    """
    check_axes(folder, volume)
    check_room(folder)
    paths = []
    for name_of_file, ds in synthetic_slices(
        folder, volume, name=name, series_description=series_description, body_part=body_part
    ):
        save(ds, folder / name_of_file)
        paths.append(folder / name_of_file)
    return paths


def synthetic_slices(
    what: object,  # names the volume in errors
    volume: Volume,
    *,
    name: str,
    series_description: str = DESCRIPTION,
    body_part: str = "",
) -> Iterator[tuple[str, Dataset]]:
    """The files of `write_synthetic` in memory, each with its name."""
    check_axes(what, volume)
    stored = quantised(what, volume.array, volume.modality)
    content = hashlib.sha256(np.ascontiguousarray(stored.numbers).tobytes()).hexdigest()
    line = (stored.slope, stored.intercept)
    seed = digest("synthetic", name, content, line, volume.geometry.affine.tolist(), VERSION)
    identity = Identity(patient_name="SYNTHETIC^MEDDIFF", patient_id=f"SYNTHETIC-{seed[:12].upper()}")
    for k in range(volume.array.shape[2]):
        ds = image_slice(volume, k, identity, seed)
        ds.ImageType = ["DERIVED", "SECONDARY", ds.ImageType[2]]
        ds.SeriesDescription, ds.StudyDescription, ds.DerivationDescription = (
            series_description,
            DESCRIPTION,
            DERIVATION,
        )
        ds.ImageComments = f"{series_description}: {name}"
        ds.ManufacturerModelName, ds.SoftwareVersions = MAKER, VERSION
        ds.ContributingEquipmentSequence = [own_equipment(DERIVATION)]
        ds.BurnedInAnnotation = "NO"
        ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.StudyID = ""
        if body_part:
            ds.BodyPartExamined = body_part
        else:
            ds.Laterality = ""  # of type 2 where the body part may be one of a pair (PS3.3 C.7.3.1)
        ds.AcquisitionNumber = None
        del ds.InstitutionName
        if volume.modality == "CT":
            ds.KVP = None
        else:  # research mode, the one defined term that claims no sequence (PS3.3 C.8.3.1.1.2)
            ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType = "RM", "NONE", ""
            ds.RepetitionTime = ds.EchoTime = ds.EchoTrainLength = None
        stored.describe(ds, volume.modality)
        put_pixels(ds, stored.numbers[:, :, k])
        yield f"slice_{k + 1:04d}.dcm", ds
