"""An image computed from a DICOM series, as a series of its own beside it: same patient, study, slices and places."""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes

from meddiff.errors import DicomError
from meddiff.imaging.dicom_source import MAKER, VERSION, Source, own_equipment, read_source
from meddiff.imaging.dicom_values import Stored, quantised
from meddiff.imaging.dicom_write import check_room, digest, file_meta, put_pixels, save, uid
from meddiff.imaging.reorder import reordered
from meddiff.imaging.volume import Volume

SERIES_NUMBER = 2000  # above those of a scanner
KEPT_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0054)  # who, when, how acquired, where; no private ones
NOT_KEPT = (  # of these groups: what is said of the source's instance, or of the machine that made it
    "InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "DerivationDescription", "DerivationCodeSequence",
    "SourceImageSequence", "ReferencedImageSequence", "ReferencedPerformedProcedureStepSequence", "StationName",
    "DeviceSerialNumber", "DateOfLastCalibration", "TimeOfLastCalibration", "DeviceUID", "ImageComments",
    "ReferencedRawDataSequence", "SOPInstanceStatus", "IconImageSequence",
)  # fmt: skip
EQUIPMENT = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
KEPT_OF_PIXELS = (  # of group 0028, which is written anew
    "PixelSpacing", "PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription", "WindowCenter", "WindowWidth",
    "WindowCenterWidthExplanation", "VOILUTFunction", "BurnedInAnnotation", "RecognizableVisualFeatures",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod", "CorrectedImage",
)  # fmt: skip


def write_derived(
    folder: Path,
    volume: Volume,  # in the unit of the source (CT: HU), on its grid, axes in any order
    source: Sequence[Path],  # the files of the series that it was computed from
    *,
    series_description: str,
    derivation: str,  # what was done, in words: DerivationDescription
) -> list[Path]:
    """Write `slice_0001.dcm`, ... in the order along the slice normal, one for each image of the source; returns their paths.

    Values come back to half of RescaleSlope, see `quantised`. UIDs follow from the content and the source, dates are the
    source's: the same arguments give the same bytes. The headers hold the source's patient: no less identity than before.

    GeometryError where the grid is not the source's; DicomError for another modality, values that are not finite, a
    source that nothing can refer to, or a folder that holds slices already.
    """
    check_room(folder)
    origin = read_source(source)
    modality = origin.series.modality
    if volume.modality != modality:
        raise DicomError(f"{folder}: the volume is {volume.modality}, its source {modality}; give the right source.")
    stored = quantised(folder, reordered(volume, origin.series.geometry), modality)
    content = hashlib.sha256(np.ascontiguousarray(stored.numbers).tobytes()).hexdigest()
    images = [str(header.SOPInstanceUID) for header in origin.headers]
    line = (stored.slope, stored.intercept)
    seed = digest(content, line, origin.series.uid, images, series_description, derivation, VERSION)
    paths = []
    for k in range(len(origin.headers)):
        ds = _slice(origin, k, stored, seed)
        ds.SeriesDescription, ds.DerivationDescription = series_description, derivation
        path = folder / f"slice_{k + 1:04d}.dcm"
        save(ds, path)
        paths.append(path)
    return paths


def _slice(origin: Source, k: int, stored: Stored, seed: object) -> FileDataset:
    header, modality = origin.headers[k], origin.series.modality
    instance = uid(seed, "instance", k)
    ds = FileDataset("", {}, file_meta=file_meta(header.SOPClassUID, instance), preamble=bytes(128))
    for element in header:
        kept = element.tag.group in KEPT_GROUPS and element.keyword not in NOT_KEPT
        if kept or element.keyword in KEPT_OF_PIXELS:
            ds.add(deepcopy(element))  # assigning to a shared element would change the source's header
    ds.SOPInstanceUID, ds.SeriesInstanceUID = instance, uid(seed, "series")
    ds.SeriesNumber = SERIES_NUMBER + int(header.get("SeriesNumber") or 0)
    ds.InstanceNumber = k + 1
    # PS3.3 C.8.9.4.1.1: the second value of PET is always PRIMARY; what follows is of the way the slices lie
    ds.ImageType = ["DERIVED", "PRIMARY" if modality == "PT" else "SECONDARY", *_flavour(header, modality)]
    ds.SourceImageSequence = [_reference(header)]
    ds.ContributingEquipmentSequence = [
        *header.get("ContributingEquipmentSequence", []),
        *([_scanner(header)] if header.Manufacturer else []),
        own_equipment("Computed the pixels from those of the source images"),
    ]
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = MAKER, MAKER, VERSION
    if not header.get("BodyPartExamined") and "ImageLaterality" not in header and "Laterality" not in header:
        ds.Laterality = ""  # of type 2 where the body part may be one of a pair (PS3.3 C.7.3.1)
    stored.describe(ds, modality)
    put_pixels(ds, stored.numbers[:, :, k])
    return ds


def _flavour(header: Dataset, modality: str) -> list[str]:
    """The third value of ImageType and what follows; CT and MR must have one (PS3.3 C.8.2.1.1.1, C.8.3.1.1.1)."""
    words = header.get("ImageType") or []
    kept = [] if isinstance(words, str) else [str(word) for word in words[2:]]
    return kept or {"CT": ["AXIAL"], "MR": ["OTHER"]}.get(modality, [])


def _reference(header: Dataset) -> Dataset:
    """PS3.3 table 10-3, with its purpose."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _scanner(header: Dataset) -> Dataset:
    """The source's own equipment as contributing equipment (PS3.3 C.12.1.1.5), its values as they stand."""
    item = Dataset()
    for keyword in EQUIPMENT:
        if keyword in header:
            item.add(deepcopy(header[keyword]))
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.AcquisitionEquipment)]
    return item
