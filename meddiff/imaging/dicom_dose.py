"""RTDOSE: the planes of a dose grid as slices, placed by GridFrameOffsetVector and scaled to Gy (PS3.3 C.8.8.3)."""

from pathlib import Path

import numpy as np

from meddiff.imaging.dicom_header import Header, RefusedError
from meddiff.imaging.dicom_slice import Slice, check_image, check_length, common, cosines, spacing

RTDOSE = "RTDOSE"
UNITS = {"GY": "Gy", "RELATIVE": "relative"}
TYPES = {"PHYSICAL": "", "EFFECTIVE": " effective", "ERROR": " error"}  # what is no physical dose says so in its unit
START_TOLERANCE_MM = 0.01  # between the first plane of the absolute form and ImagePositionPatient
AXIAL = np.array([[1, 0, 0], [0, 1, 0]])


def dose(path: Path, header: Header) -> list[Slice]:
    """The planes of a dose grid; RefusedError where its scale or place is not told, or where it is a dose-volume histogram only.

    Each file of several planes is a volume of its own; single planes are stacked as other slices are.
    """
    n = header.count("NumberOfFrames", 1)
    check_image(header, "")
    check_length(header, n)
    if header.text("PhotometricInterpretation") != "MONOCHROME2":
        raise RefusedError("photometric", "PhotometricInterpretation of a dose is MONOCHROME1. Export it again.")
    unit, scale = _unit(header), header.number("DoseGridScaling")
    if scale is None or not 0 < scale < np.inf:
        raise RefusedError(
            "no-dose",
            f"DoseGridScaling is {'missing' if scale is None else scale}; its dose is unknown. Export it again.",
        )
    orientation = cosines(header.numbers("ImageOrientationPatient", 6))
    start = header.numbers("ImagePositionPatient", 3)
    offsets = np.zeros(1) if n == 1 else _offsets(header.numbers("GridFrameOffsetVector", n), orientation, start)
    normal = np.cross(*orientation)
    thickness = header.number("SliceThickness")
    return [
        Slice(
            **common(path, header),
            modality=RTDOSE,
            unit=unit,
            apart=(header.text("DoseSummationType"), "" if n == 1 else str(path)),
            further=(),
            orientation=orientation,
            position=start + offset * normal,
            pixel_spacing=spacing(header.numbers("PixelSpacing", 2)),
            thickness=thickness if thickness is not None and 0 < thickness < np.inf else None,
            rescale=(scale, 0.0),
            padding=None,
            inverted=None,
            frame=k,
            frames=n,
        )
        for k, offset in enumerate(offsets)
    ]


def _unit(header: Header) -> str:
    units, kind = header.text("DoseUnits"), header.text("DoseType")
    if units not in UNITS or kind not in TYPES:
        raise RefusedError(
            "no-dose",
            f"DoseUnits are {units or 'missing'} and DoseType is {kind or 'missing'}; {' or '.join(UNITS)} and "
            f"{', '.join(TYPES)} are read. Export it again.",
        )
    return UNITS[units] + TYPES[kind]


def _offsets(vector: np.ndarray, orientation: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Millimetres of each plane from the first along the normal, of either form (PS3.3 C.8.8.3.2).

    Whether they are even is for the stack to say, as of all slices.
    """
    steps = np.diff(vector)
    if not (steps > 0).all() and not (steps < 0).all():
        raise RefusedError(
            "irregular-spacing", "GridFrameOffsetVector neither rises nor falls throughout. Export the dose again."
        )
    axial = any(np.abs(orientation - sign * AXIAL).max() < 1e-6 for sign in (1, -1))
    if vector[0] != 0 and not (axial and abs(vector[0] - start[2]) <= START_TOLERANCE_MM):
        raise RefusedError(
            "no-geometry",
            f"GridFrameOffsetVector starts at {vector[0]:g}; 0 is expected, or in an axial dose the z of "
            f"ImagePositionPatient, {start[2]:g}. Export the dose again.",
        )
    return vector - vector[0]
