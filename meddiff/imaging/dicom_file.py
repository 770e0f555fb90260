"""Files to slices: one, or many side by side; what is found does not depend on how many processes look."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import (
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

from meddiff.imaging.dicom_dose import dose
from meddiff.imaging.dicom_frames import ENHANCED, enhanced
from meddiff.imaging.dicom_header import RefusedError, read_header
from meddiff.imaging.dicom_mosaic import mosaic
from meddiff.imaging.dicom_slice import Slice, classic, modality_of

BATCH = 64  # files that a process takes at a time
PATIENCE_S = 1.0  # to start other processes takes a good part of this
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # newer than pydicom's list
OTHERS = {
    SegmentationStorage: ("segmentation", "It is a segmentation of images that are not here; scan it with its images."),
    LABEL_MAP_STORAGE: ("segmentation", "It is a segmentation of images that are not here; scan it with its images."),
    RTStructureSetStorage: (
        "contours",
        "It holds contours (RTSTRUCT) on images that are not here; scan it with its images.",
    ),
}


@dataclass(frozen=True)
class Refusal:
    """One file that is in no series, and why."""

    path: Path
    reason: str  # a short code
    detail: str  # a sentence, with the remedy


def read_slices(path: Path) -> list[Slice]:
    """The slices of one file, by its header; RefusedError where it holds none of a kind that is read."""
    header = read_header(path)
    uid = header.sop_class
    if not uid:
        raise RefusedError("not-an-image", "It names no SOP class (a DICOMDIR, or no image); nothing is to be done.")
    if uid in OTHERS:
        raise RefusedError(*OTHERS[uid])
    try:
        if uid in ENHANCED:
            return enhanced(path, read_header(path, whole=True))
        if uid == RTDoseStorage:
            return dose(path, header)
        modality = modality_of(header)
        if modality == "MR" and "MOSAIC" in header.text("ImageType").split("\\"):
            return mosaic(path, header)
        return [classic(path, header, modality)]
    except (RefusedError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # a value of another kind than its tag has, wherever it surfaces
        why = " ".join(str(e).split())[:200]
        raise RefusedError(
            "damaged-header", f"Its header cannot be read ({type(e).__name__}: {why}); export it again."
        ) from e


@dataclass(frozen=True)
class References:
    """What a segmentation, in voxels or in contours, says that it belongs to."""

    patient_id: str
    frame_uid: str  # of the frame of reference; empty where it names none
    series: frozenset[str]  # SeriesInstanceUIDs; empty where it names none


def references(path: Path) -> References:
    """Patient, frame of reference and series of a SEG or RTSTRUCT.

    RefusedError where its header is damaged, or where its ROIs are in several frames of reference.
    """
    header = read_header(path, whole=True)
    dataset, frame = header.dataset or Dataset(), header.text("FrameOfReferenceUID")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's about odd values
            if header.sop_class == RTStructureSetStorage:
                frame, named = _contoured(dataset)
            else:
                named = list(dataset.get("ReferencedSeriesSequence") or [])
            series = frozenset(str(one.get("SeriesInstanceUID") or "") for one in named) - {""}
    except (RefusedError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # pydicom raises many kinds for damaged elements
        why = " ".join(str(e).split())[:200]
        raise RefusedError(
            "damaged-header", f"What it refers to cannot be read ({type(e).__name__}: {why}); export it again."
        ) from e
    return References(header.text("PatientID"), frame, series)


def _contoured(dataset: Dataset) -> tuple[str, list[Dataset]]:
    """The one frame of reference that the ROIs are in, and the items that name its series (PS3.3 C.8.8.5)."""
    items = dataset.get("ReferencedFrameOfReferenceSequence") or []
    rois = dataset.get("StructureSetROISequence") or []
    frames = {str(one.get("ReferencedFrameOfReferenceUID") or "") for one in rois} - {""}
    frames = frames or {str(one.get("FrameOfReferenceUID") or "") for one in items} - {""}
    if len(frames) > 1:
        raise RefusedError(
            "label-ambiguous", f"Its ROIs are in {len(frames)} frames of reference; export one structure set for each."
        )
    frame = "".join(frames)
    named = [
        series
        for item in items
        if str(item.get("FrameOfReferenceUID") or "") == frame
        for study in item.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    ]
    return frame, named


def read_all(
    paths: Sequence[Path], workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> tuple[list[Slice], list[Refusal]]:
    """The slices of all files, in the order of the paths, and the files that hold none.

    Up to `workers` processes read the headers, where there are enough to be worth it; `progress` is told (files read, files to read).
    """
    batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
    slices: list[Slice] = []
    refused: list[Refusal] = []
    done = 0
    for batch, (found, rest) in zip(batches, _results(batches, workers), strict=True):
        slices += found
        refused += rest
        done += len(batch)
        if progress:
            progress(done, len(paths))
    return slices, refused


def _results(batches: Sequence[Sequence[Path]], workers: int) -> Iterator[tuple[list[Slice], list[Refusal]]]:
    """What each batch holds, in order; by this process alone until the rest is expected to take longer than PATIENCE_S."""
    start = time.monotonic()
    for done, batch in enumerate(batches):
        taken = time.monotonic() - start
        if workers > 1 and done and taken / done * (len(batches) - done) > PATIENCE_S:
            yield from _together(batches[done:], workers)
            return
        yield _batch(batch)


def _together(batches: Sequence[Sequence[Path]], workers: int) -> Iterator[tuple[list[Slice], list[Refusal]]]:
    """What each batch holds, in order: this process reads on from the first while others start, and then take from the last."""
    pool = ProcessPoolExecutor(workers - 1, mp_context=get_context("spawn"))  # fork copies locks of threads
    try:
        futures = [pool.submit(_batch, batch) for batch in reversed(batches)]
        for batch, future in zip(batches, reversed(futures), strict=True):
            try:
                yield _batch(batch) if future.cancel() else future.result()
            except (
                BrokenProcessPool
            ):  # one was killed, for instance for memory: the batch may have nothing to do with it
                yield _batch(batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(paths: Sequence[Path]) -> tuple[list[Slice], list[Refusal]]:
    slices: list[Slice] = []
    refused: list[Refusal] = []
    for path in paths:
        try:
            slices += read_slices(path)
        except RefusedError as why:
            refused.append(Refusal(path, why.reason, why.detail))
    return slices, refused
