"""One file of a hospital's folder: what it is, where it goes under its new name, and what of it may go there."""

import io
import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from meddiff.data.layouts.found import nifti_stem
from meddiff.data.layouts.pairs import LABEL
from meddiff.errors import ImageError
from meddiff.imaging.body_parts import FACE_REMOVED, may_show_face
from meddiff.imaging.dicom_write import IMPLEMENTATION
from meddiff.privacy.clean import Cleaner
from meddiff.privacy.keyed import Keyed
from meddiff.privacy.pixels import DRAWN, TOMOGRAPHIC, QuarantinedError, check_burned_in, clean_pixels, find_text
from meddiff.privacy.tables import allowed

HEADER = [
    "SOPClassUID", "SOPInstanceUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "BodyPartExamined",
]  # fmt: skip
SUFFIX = re.compile(
    r"(?P<stem>.+?)(?P<suffix>_(?:\d{4}|T1w?|T2w?|T1c|T1ce|FLAIR|PD|CT|MR|PET|ADC|DWI))?", re.IGNORECASE
)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Look:
    """What the header of a file says, for grouping; what identifies is in it by its new name only, but for the path."""

    path: Path
    target: str  # below the output, from pseudonyms and new UIDs
    group: str  # of the files that one volume may be made of
    kind: str  # name of the SOP class, or NIfTI
    modality: str
    face: bool  # a head, or what may be one


def look(path: Path, root: Path, keyed: Keyed) -> Look:
    """The header of a file; QuarantinedError for what is no image that can be de-identified."""
    stem = nifti_stem(path)
    return _look_nifti(path, root, stem, keyed) if stem else _guarded(lambda: _look_dicom(path, keyed))


def read(path: Path) -> FileDataset:
    """The whole data set, without its preamble and meta information being of any further use."""
    return _guarded(lambda: pydicom.dcmread(path))


def deidentified(
    dataset: FileDataset, keyed: Keyed, *, retain_device: bool, ocr: bool, blank: np.ndarray | None = None
) -> tuple[bytes, Cleaner]:
    """The bytes of the new file, and the cleaner with its counts; QuarantinedError where it may not leave.

    `blank` (rows, columns) marks pixels of a single-frame image that get its lowest stored value.
    """

    def make() -> tuple[bytes, Cleaner]:
        rules = allowed(str(dataset.SOPClassUID))
        assert rules is not None, "looked at before"
        check_burned_in(dataset, rules.modality)
        if ocr and "PixelData" in dataset and find_text(dataset):
            raise QuarantinedError(
                "text-found", "tesseract reads words in its pixels. Look at it, and mask or leave it out."
            )
        if blank is not None:
            _blank(dataset, blank)
        syntax = UID(dataset.file_meta.TransferSyntaxUID)
        pixels = clean_pixels(dataset, syntax)
        study = str(dataset.StudyInstanceUID)
        cleaner = Cleaner(rules, keyed, keyed.person(str(dataset.get("PatientID") or ""), study), retain_device)
        out = cleaner(dataset)
        if blank is not None:
            out.DeidentificationMethod = [out.DeidentificationMethod, FACE_REMOVED]
        if pixels is not None:
            out["PixelData"].value = pixels
            out["PixelData"].is_undefined_length = syntax.is_compressed
        return _bytes(out, syntax), cleaner

    return _guarded(make)


def _look_nifti(path: Path, root: Path, stem: str, keyed: Keyed) -> Look:
    """The name's words for modality and label stay, so that the files of one case still find each other."""
    label = LABEL.fullmatch(stem)
    match = SUFFIX.fullmatch(label["stem"] if label else stem)
    assert match is not None
    where = "/".join((*path.parent.relative_to(root).parts, match["stem"]))
    ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    name = keyed.name(where) + (match["suffix"] or "") + ("_label" if label else "")
    return Look(path, f"nifti/{name}{ending}", name, "NIfTI", "label" if label else "MR", not label)


def _look_dicom(path: Path, keyed: Keyed) -> Look:
    if read_file_meta_info(str(path)).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise QuarantinedError(
            "deflated", "A deflated file inflates without bound; convert it, for instance with dcmconv."
        )
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER)
    rules = allowed(str(header.get("SOPClassUID", "")))
    if rules is None:
        raise QuarantinedError(
            "sop-class",
            "Objects of its kind (reports, documents, screen captures, ultrasound, ...) cannot be cleaned. Leave it out.",
        )
    study, series, instance = (str(header.get(f"{k}InstanceUID") or "") for k in ("Study", "Series", "SOP"))
    if not (study and series and instance):
        raise QuarantinedError("no-uid", "It has no UID of study, series or instance. Export it again.")
    person = keyed.person(str(header.get("PatientID") or ""), study)
    group = f"{person.name}/{keyed.uid(study)}/{keyed.uid(series)}"
    face = rules.modality in TOMOGRAPHIC | DRAWN and may_show_face(str(header.get("BodyPartExamined") or ""))
    kind = UID(str(header.SOPClassUID)).name
    return Look(path, f"{group}/{keyed.uid(instance)}.dcm", group, kind, rules.modality, face)


def _blank(dataset: Dataset, where: np.ndarray) -> None:
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    stored = dataset.pixel_array.copy()
    stored[where] = stored.min()
    little = dataset.file_meta.TransferSyntaxUID.is_little_endian
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<" if little else ">")).tobytes()


def _bytes(out: Dataset, syntax: UID) -> bytes:
    """A file with an empty preamble and fresh meta information (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = out.SOPClassUID
    meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    meta.TransferSyntaxUID = syntax if syntax.is_transfer_syntax else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "MEDDIFF"
    file = FileDataset("", out, file_meta=meta, preamble=bytes(128))
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _guarded(act: Callable[[], Result]) -> Result:
    """What `act` gives; its errors without their text, which may quote a value. pydicom's warnings and log do so too."""
    quoting = logging.getLogger("pydicom")
    before, quoting.disabled = quoting.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return act()
    except (QuarantinedError, ImageError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except InvalidDicomError:
        raise QuarantinedError("not-dicom", "It is not a DICOM file (PS3.10).") from None
    except OSError as error:
        raise QuarantinedError("unreadable", f"It cannot be read (error {error.errno}).") from None
    except (
        BaseException
    ) as error:  # pydicom raises many kinds; native decoders panic with classes that are no Exception
        raise QuarantinedError("damaged", f"It cannot be read as an image ({type(error).__name__}).") from None
    finally:
        quoting.disabled = before
