"""DICOM: series found by their headers, wherever the files lie and whatever they are called."""

import logging
from collections.abc import Sequence
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found
from meddiff.imaging.dicom import Refusal, find_series

log = logging.getLogger(__name__)


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folder itself, where a file in it may be DICOM."""
    return [folder] if any(_may_be_dicom(path) for path in files) else []


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """One case per series. A series without PatientID goes under its study, which is one patient's at least."""
    series, refused = find_series([path for path in files if _may_be_dicom(path)])
    nameless = sum(not one.patient_id.strip() for one in series)
    if nameless:
        log.warning(
            "%s: %d series have no PatientID; they are split by study, so one patient's studies may come into "
            "different splits",
            root,
            nameless,
        )
    return [
        Found(
            "dicom",
            one.patient_id.strip() or one.study_uid,
            (Channel(one.modality, one.files, series=True),),
            geometry=one.geometry,
        )
        for one in series
    ], refused


def _may_be_dicom(path: Path) -> bool:
    """PS3.10 section 7.1: `DICM` after a preamble of 128 bytes; older files are known by their names only."""
    if path.suffix.lower() in ("", ".dcm", ".dicom", ".ima") or path.suffix[1:].isdigit():
        return True
    try:
        with open(path, "rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM"
    except OSError:
        return False
