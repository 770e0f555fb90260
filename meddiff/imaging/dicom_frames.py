"""Enhanced CT and MR: the frames of one file as slices, by their functional groups (PS3.3 C.7.6.16)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
)

from meddiff.imaging.dicom_header import Header, RefusedError, plain
from meddiff.imaging.dicom_slice import (
    Slice,
    check_image,
    check_length,
    cosines,
    inversion,
    padding,
    rescale,
    spacing,
)

ENHANCED = {
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
}
HOUNSFIELD = ("", "[hnsf'U]", "HU")  # UCUM
APART = (  # what tells the volumes of one file apart: functional group, attribute
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "StackID"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionDirectionality"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
)
FURTHER = (  # and what may do so where frames lie at one place
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
)


def enhanced(path: Path, header: Header) -> list[Slice]:
    """The frames of an enhanced image, in the order of the file; RefusedError where their place is not told.

    `header` is pydicom's (`read_header(..., whole=True)`).
    """
    uid = header.sop_class
    modality = ENHANCED[uid]
    dataset = header.dataset
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or []) if dataset else []
    n = header.count("NumberOfFrames", 1)
    if header.text("Modality") != modality or not groups or len(groups) != n:
        raise RefusedError(
            "multi-frame",
            f"{uid.name} of modality {header.text('Modality') or 'unknown'} has {n} frames and functional groups for "
            f"{len(groups)}; their places are unknown. Export it again.",
        )
    check_image(header, header.text("ImageType"))
    check_length(header, n)
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), Dataset()) if dataset else Dataset()
    return [_frame(path, header, modality, shared, group, k) for k, group in enumerate(groups)]


def _frame(path: Path, header: Header, modality: str, shared: Dataset, group: Dataset, k: int) -> Slice:
    def find(sequence: str, keyword: str) -> tuple[Any, ...]:
        """An attribute of a functional group, of the frame or of all frames."""
        for level in (group, shared):
            for item in level.get(sequence) or []:
                value = item.get(keyword)
                if value is not None and value != "":
                    return plain(value)
        return ()

    def text(sequence: str, keyword: str) -> str:
        return "\\".join(map(str, find(sequence, keyword)))

    def place(sequence: str, keyword: str, n: int) -> np.ndarray:
        return Header({keyword: find(sequence, keyword)}, "", 0).numbers(keyword, n)

    if "LOCALIZER" in text(f"{modality}ImageFrameTypeSequence", "FrameType").split("\\"):
        raise RefusedError("localizer", "It is a localizer, not part of a volume; nothing is to be done.")
    slope, intercept = (
        next(iter(find("PixelValueTransformationSequence", keyword)), None)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    thickness = [
        *find("PixelMeasuresSequence", "SliceThickness"),
        *find("PixelMeasuresSequence", "SpacingBetweenSlices"),
    ]
    unit = next(_units(group, shared), "")
    if modality == "CT":
        unit = "HU" if unit in HOUNSFIELD else unit
    return Slice(
        path=path,
        patient_id=header.text("PatientID"),
        study_uid=header.text("StudyInstanceUID"),
        series_uid=header.text("SeriesInstanceUID"),
        frame_uid=header.text("FrameOfReferenceUID"),
        description=header.text("SeriesDescription"),
        modality=modality,
        unit=unit if modality == "CT" else "a.u.",
        apart=(*(text(*where) for where in APART), unit),
        further=tuple(text(*where) for where in FURTHER),
        rows=header.count("Rows"),
        columns=header.count("Columns"),
        orientation=cosines(place("PlaneOrientationSequence", "ImageOrientationPatient", 6)),
        position=place("PlanePositionSequence", "ImagePositionPatient", 3),
        pixel_spacing=spacing(place("PixelMeasuresSequence", "PixelSpacing", 2)),
        thickness=next((float(mm) for mm in thickness if 0 < float(mm) < np.inf), None),
        rescale=rescale(modality, slope, intercept, text("PixelValueTransformationSequence", "RescaleType")),
        padding=padding(header),
        inverted=inversion(header, modality),
        frame=k,
        frames=header.count("NumberOfFrames", 1),
    )


def _units(group: Dataset, shared: Dataset) -> Iterator[str]:
    """UCUM codes of what the numbers measure (PS3.3 C.7.6.16.2.11), where the file says it."""
    for level in (group, shared):
        for mapping in level.get("RealWorldValueMappingSequence") or []:
            for code in mapping.get("MeasurementUnitsCodeSequence") or []:
                yield str(code.get("CodeValue") or "")
