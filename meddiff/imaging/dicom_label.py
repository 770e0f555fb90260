"""A label map in DICOM, whichever of its kinds, on the grid of its image."""

from collections.abc import Sequence
from pathlib import Path

from pydicom.uid import RTStructureSetStorage

from meddiff.errors import DicomError
from meddiff.imaging.dicom_header import RefusedError, read_header
from meddiff.imaging.dicom_rtstruct import read_rtstruct
from meddiff.imaging.dicom_seg_read import read_seg
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume


def read_label(path: Path, grid: Geometry, regions: Sequence[str] = ()) -> tuple[Volume, dict[int, str]]:
    """The label map of a SEG or RTSTRUCT, of all its regions or of these, and their names; DicomError or GeometryError as theirs."""
    try:
        kind = read_header(path).sop_class
    except RefusedError as e:
        raise DicomError(f"{path}: {e.detail}") from e
    return (read_rtstruct if kind == RTStructureSetStorage else read_seg)(path, grid, regions)
