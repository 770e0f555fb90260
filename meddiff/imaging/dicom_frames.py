"""Enhanced CT, MR and PET: the frames of one file as slices, by their functional groups (PS3.3 C.7.6.16)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)

from meddiff.imaging.dicom_header import KIND, Header, RefusedError, plain
from meddiff.imaging.dicom_slice import (
    Slice,
    check_image,
    check_length,
    common,
    cosines,
    inversion,
    padding,
    rescale,
    spacing,
)
from meddiff.imaging.dicom_suv import enhanced_suv_factor, suv_factor

ENHANCED = {
    EnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    EnhancedMRImageStorage: "MR",
    LegacyConvertedEnhancedMRImageStorage: "MR",
    EnhancedPETImageStorage: "PT",
    LegacyConvertedEnhancedPETImageStorage: "PT",
}
HOUNSFIELD = ("", "[hnsf'U]", "HU")  # UCUM
SUV_BW = ("{SUVbw}g/ml", "g/ml{SUVbw}")  # UCUM; PS3.16 CID 85, and as it was
ACTIVITY = ("Bq/ml", "Bq/mL")
APART = (  # what tells the volumes of one file apart: functional group, attribute
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "StackID"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionDirectionality"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("RespiratorySynchronizationSequence", "NominalPercentageOfRespiratoryPhase"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("PETFrameTypeSequence", "FrameType"),
)
FURTHER = (  # and what may do so where frames lie at one place
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("FrameContentSequence", "FrameAcquisitionDateTime"),
)
UNASSIGNED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")
Find = Callable[[str, str], tuple[Any, ...]]


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
    slices = []
    for k, group in enumerate(groups):
        try:
            slices.append(_frame(path, header, modality, shared, group, k))
        except RefusedError as why:
            raise RefusedError(why.reason, f"Frame {k + 1} of {n}: {why.detail}") from why
    return slices


def _frame(path: Path, header: Header, modality: str, shared: Dataset, group: Dataset, k: int) -> Slice:
    def find(sequence: str, keyword: str) -> tuple[Any, ...]:
        """An attribute of a functional group, of the frame or of all frames."""
        for item in _items(sequence, group, shared):
            value = item.get(keyword)
            if value is not None and value != "":
                return plain(value)
        return ()

    def text(sequence: str, keyword: str) -> str:
        return "\\".join(map(str, find(sequence, keyword)))

    def place(sequence: str, keyword: str, n: int) -> np.ndarray:
        return Header({keyword: find(sequence, keyword)}, "", 0).numbers(keyword, n)

    kind = "PETFrameTypeSequence" if modality == "PT" else f"{modality}ImageFrameTypeSequence"
    if "LOCALIZER" in text(kind, "FrameType").split("\\"):
        raise RefusedError("localizer", "It is a localizer, not part of a volume; nothing is to be done.")
    thickness = [
        *find("PixelMeasuresSequence", "SliceThickness"),
        *find("PixelMeasuresSequence", "SpacingBetweenSlices"),
    ]
    unit, line = _quantity(header, modality, shared, group, find)
    return Slice(
        **common(path, header),
        modality=modality,
        unit=unit,
        apart=tuple(text(*where) for where in APART),
        further=tuple(text(*where) for where in FURTHER),
        orientation=cosines(place("PlaneOrientationSequence", "ImageOrientationPatient", 6)),
        position=place("PlanePositionSequence", "ImagePositionPatient", 3),
        pixel_spacing=spacing(place("PixelMeasuresSequence", "PixelSpacing", 2)),
        thickness=next((float(mm) for mm in thickness if 0 < float(mm) < np.inf), None),
        rescale=line,
        padding=padding(header),
        inverted=inversion(header, modality),
        frame=k,
        frames=header.count("NumberOfFrames", 1),
    )


def _items(sequence: str, group: Dataset, shared: Dataset) -> list[Dataset]:
    """The items of a functional group, the frame's own before those of all frames."""
    return [item for level in (group, shared) for item in level.get(sequence) or []]


def _quantity(
    header: Header, modality: str, shared: Dataset, group: Dataset, find: Find
) -> tuple[str, tuple[float, float]]:
    """The unit of a frame, with slope and intercept to it (PS3.3 C.7.6.16.2.9 and C.7.6.16.2.11)."""
    mappings = _mappings(_items("RealWorldValueMappingSequence", group, shared))
    if modality == "PT" and header.sop_class == EnhancedPETImageStorage:
        return "SUVbw", _suv(header, mappings, find)
    slope, intercept = (
        next(iter(find("PixelValueTransformationSequence", keyword)), None)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    line = rescale(
        modality, slope, intercept, "\\".join(map(str, find("PixelValueTransformationSequence", "RescaleType")))
    )
    if modality == "PT":
        factor = suv_factor(_as_before_conversion(header, shared, group))
        return "SUVbw", (line[0] * factor, line[1] * factor)
    if modality == "MR":
        return "a.u.", line
    if not mappings or any(unit in HOUNSFIELD for unit in mappings):
        return "HU", line
    unit, mapping = next(iter(mappings.items()))
    return unit, _mapped(mapping)


def _mappings(items: list[Dataset]) -> dict[str, Dataset]:
    """Unit (UCUM) -> its mapping; RefusedError where one unit has several, each for a range of stored numbers."""
    found: dict[str, Dataset] = {}
    for item in items:
        codes = item.get("MeasurementUnitsCodeSequence") or [Dataset()]
        unit = str(codes[0].get("CodeValue") or "")
        if unit in found:
            raise RefusedError(
                "no-rescale",
                f"RealWorldValueMappingSequence maps to {unit or 'no unit'} in pieces. Export it with one line.",
            )
        found[unit] = item
    return found


def _mapped(mapping: Dataset) -> tuple[float, float]:
    """Slope and intercept from stored numbers to real ones; a table of values is refused."""
    slope, intercept = mapping.get("RealWorldValueSlope"), mapping.get("RealWorldValueIntercept")
    if slope is None or intercept is None:
        raise RefusedError("no-rescale", "RealWorldValueSlope or RealWorldValueIntercept is missing. Export it again.")
    return rescale("", float(slope), float(intercept), "")


def _suv(header: Header, mappings: dict[str, Dataset], find: Find) -> tuple[float, float]:
    """Slope and intercept from the stored numbers of an enhanced PET frame to SUVbw."""
    for unit, mapping in mappings.items():
        if unit in SUV_BW:
            return _mapped(mapping)
    found = next((mapping for unit, mapping in mappings.items() if unit in ACTIVITY), None)
    if found is None:
        raise RefusedError(
            "no-suv",
            f"MeasurementUnitsCodeSequence is {', '.join(filter(None, mappings)) or 'missing'}; {ACTIVITY[0]} or {SUV_BW[0]} "
            "in RealWorldValueMappingSequence is read. Export it with the tags of the scanner.",
        )
    slope, intercept = _mapped(found)
    factor = enhanced_suv_factor(header, find("RadiopharmaceuticalUsageSequence", "RadiopharmaceuticalAgentNumber"))
    return slope * factor, intercept * factor


def _as_before_conversion(header: Header, shared: Dataset, group: Dataset) -> Header:
    """The header of the single image that a legacy converted frame was (PS3.3 C.7.6.16.2.25)."""
    merged, values = Dataset(), dict(header.values)
    merged.update(header.dataset or Dataset())
    for item in (one for sequence in UNASSIGNED for one in _items(sequence, group, shared)):
        merged.update(item)
        for element in item:
            if element.keyword in KIND and not element.is_empty:
                values[element.keyword] = plain(element.value)
    return Header(values, header.syntax, header.rest, merged)
