"""DICOM: series found by their headers, wherever the files lie and whatever they are called; SEG and RTSTRUCT as label maps."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found, Reading, refuse
from meddiff.errors import DicomError
from meddiff.imaging.dicom import Refusal, Series, find_series
from meddiff.imaging.dicom_dir import is_directory, read_directory
from meddiff.imaging.dicom_dose import RTDOSE
from meddiff.imaging.dicom_file import References, references
from meddiff.imaging.dicom_header import RefusedError
from meddiff.imaging.dicom_person import person

LABELS = ("segmentation", "contours")  # why files that may be label maps are in no series

log = logging.getLogger(__name__)


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folder itself, where a file in it may be DICOM."""
    return [folder] if any(_may_be_dicom(path) for path in files) else []


def find(root: Path, files: Sequence[Path], reading: Reading | None = None) -> tuple[list[Found], list[Refusal]]:
    """One case per volume. A series without PatientID goes under its study, which is one patient's at least."""
    how = reading or Reading()
    paths = [path for path in files if _may_be_dicom(path)]
    series, refused = find_series(paths, repairs=how.repairs, workers=how.workers, progress=how.progress)
    nameless = sum(not one.patient_id.strip() for one in series)
    if nameless:
        log.warning(
            "%s: %d series have no PatientID; they are split by study, so one patient's studies may come into "
            "different splits",
            root,
            nameless,
        )
    inverted = sum(one.inverted for one in series)
    if inverted:
        log.warning(
            "%s: %d series are MONOCHROME1; their stored values are inverted before the rescale", root, inverted
        )
    labels, refused = _labels(series, refused)
    found = [
        Found(
            "dicom",
            one.patient_id.strip() or one.study_uid,
            (Channel(one.modality, one.files, series=True, volume=one.volume),),
            labels.get(at),
            classes=person(one.files[0], how.record) if how.record else {},
            geometry=one.geometry,
            unit=one.unit,
            repairs=one.repairs,
            face=one.face,
        )
        for at, one in enumerate(series)
    ]
    return found, [_directory(one) if is_directory(one.path) else one for one in refused]


def _labels(series: Sequence[Series], refused: Sequence[Refusal]) -> tuple[dict[int, Path], list[Refusal]]:
    """The SEG or RTSTRUCT of each series that has exactly one, by the number of the series; the other refusals."""
    left = [one for one in refused if one.reason not in LABELS]
    fitting: dict[int, list[Path]] = defaultdict(list)
    for path in (one.path for one in refused if one.reason in LABELS):
        try:
            own = references(path)
        except RefusedError as why:
            left += refuse([path], why.reason, why.detail)
            continue
        at = [k for k, one in enumerate(series) if _fits(one, own)]
        if len(at) == 1:
            fitting[at[0]].append(path)
        else:
            left += refuse(
                [path],
                "label-ambiguous" if at else "label-without-image",
                f"It fits {len(at)} of the images found, and one is needed; scan it with its image only.",
            )
    labels = {}
    for k, paths in fitting.items():
        if len(paths) > 1:
            left += refuse(paths, "label-ambiguous", f"{len(paths)} segmentations are of one image; keep one.")
        elif series[k].repairs:
            left += refuse(
                paths, "label-repaired", "Its image needs a repair that a label map cannot follow; complete the series."
            )
        else:
            labels[k] = paths[0]
    return labels, sorted(left, key=lambda one: one.path)


def _fits(one: Series, own: References) -> bool:
    """Whether a segmentation is of this series: by name, and in no other frame of reference (PS3.3 C.7.4.1).

    A dose, which is in the frame of reference of its image, must be named.
    """
    if one.patient_id != own.patient_id:
        return False
    known = bool(one.frame_uid and own.frame_uid)
    if known and one.frame_uid != own.frame_uid:
        return False
    return one.uid in own.series if own.series else known and one.modality != RTDOSE


def _directory(refusal: Refusal) -> Refusal:
    """What a DICOMDIR among the files says of files that are not there."""
    try:
        named = read_directory(refusal.path)
    except DicomError:
        return refusal
    if named.outside:
        return replace(
            refusal,
            reason="outside-folder",
            detail=f"It names {len(named.outside)} files outside its folder, for instance {named.outside[0]}, which are not read.",
        )
    if named.missing:
        return replace(
            refusal,
            reason="missing-file",
            detail=f"It names {len(named.missing)} files that are not there, for instance {named.missing[0]}; copy the medium again.",
        )
    return refusal


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
