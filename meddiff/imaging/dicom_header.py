"""The header of one DICOM file up to its pixels: the values that a scan asks for, as plain Python, and nothing else.

The usual file (PS3.10, little endian) is walked over in one buffer, which takes a fifth of pydicom's time. Whatever is unusual
in it, and every file whose sequences are needed, goes to pydicom.
"""

import io
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from meddiff.imaging.dicom_walk import elements

KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SeriesDate", "AcquisitionDate", "AcquisitionDateTime",
    "SeriesTime", "AcquisitionTime", "ContentTime", "Modality", "Manufacturer", "SeriesDescription", "PatientID",
    "PatientWeight", "SliceThickness", "InversionTime", "EchoTime", "EchoNumbers", "SpacingBetweenSlices", "TriggerTime",
    "DiffusionBValue", "DiffusionGradientOrientation", "StudyInstanceUID", "SeriesInstanceUID", "AcquisitionNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "TemporalPositionIdentifier",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "BitsAllocated",
    "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept",
    "RescaleSlope", "RescaleType", "CorrectedImage", "FrameReferenceTime", "Units", "DecayCorrection", "SUVType",
    "BodyPartExamined", "DeidentificationMethod", "AttenuationCorrected", "DecayCorrected", "DecayCorrectionDateTime",
    "DoseUnits", "DoseType", "DoseSummationType", "GridFrameOffsetVector", "DoseGridScaling",
)  # fmt: skip
SEQUENCES = (  # what makes a file one for pydicom where it is needed
    "RadiopharmaceuticalInformationSequence", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence", "StructureSetROISequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
TAGS = {int(tag_for_keyword(keyword) or 0): keyword for keyword in KEYWORDS}
SPECIFIC = [*map(pydicom.tag.Tag, TAGS), *(pydicom.tag.Tag(keyword) for keyword in SEQUENCES)]
KIND = {keyword: dictionary_VR(tag) for tag, keyword in TAGS.items()}
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d"}
BUFFERS = (1 << 16, 1 << 20)  # bytes of the file that the walk looks at, and where these are too few
BEFORE_PIXELS = {  # bytes of the pixels' tag, VR and length, for the uncompressed syntaxes (PS3.5 section 7.1)
    ImplicitVRLittleEndian: 8,
    ExplicitVRLittleEndian: 12,
    ExplicitVRBigEndian: 12,
}
Scalar = str | int | float


class RefusedError(Exception):
    """This file, or this stack, is no volume; `reason` is a short code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it crosses processes
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says before its pixels; a keyword without a value is not there."""

    values: Mapping[str, tuple[Scalar, ...]]
    syntax: str  # transfer syntax UID
    rest: int  # bytes from the tag of the pixels to the end of the file; 0 where there are none
    dataset: Dataset | None = None  # pydicom's, where it was asked

    @property
    def sop_class(self) -> UID:
        """What kind of object it is, unchecked; empty where it does not say."""
        return UID(self.text("SOPClassUID"), pydicom.config.IGNORE)

    def text(self, keyword: str) -> str:
        """The value as text, several joined by a backslash; "" where there is none."""
        return "\\".join(map(str, self.values.get(keyword, ())))

    def numbers(self, keyword: str, n: int) -> np.ndarray:
        """(n,) float64; RefusedError where there are not n finite ones."""
        numbers = np.array(self.values.get(keyword, ()), dtype=np.float64)
        if numbers.size != n or not np.isfinite(numbers).all():
            raise RefusedError(
                "no-geometry", f"{keyword} is missing or is not {n} numbers; its place is unknown. Export it again."
            )
        return numbers

    def number(self, keyword: str) -> float | None:
        """The first value as a number; None where there is none."""
        value = self.values.get(keyword)
        return float(value[0]) if value else None

    def count(self, keyword: str, default: int = 0) -> int:
        """The first value as a whole number."""
        value = self.values.get(keyword)
        return int(value[0]) if value else default


class BoundedFile(io.BufferedReader):
    """A file that makes room for no more than it holds, whatever length a damaged element claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def read_header(path: Path, *, whole: bool = False) -> Header:
    """The values of KEYWORDS in one file; with `whole` from pydicom, with the sequences.

    RefusedError for a file that is no DICOM file, is deflated, or is damaged before its pixels. pydicom's warnings about odd
    values are silenced, as each value in use is checked.
    """
    try:
        with BoundedFile(path) as file:
            _refuse_program(file.read(132))
            file.seek(0)
            for buffer in () if whole else BUFFERS:
                found = _walk(file.read(buffer), file.size)
                file.seek(0)
                if found is not None:
                    return found
                if file.size <= buffer:
                    break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _parsed(file)
    except RefusedError:
        raise
    except InvalidDicomError as e:
        raise RefusedError(
            "not-dicom", "It is not a DICOM file (PS3.10); leave it, or remove it from the folder."
        ) from e
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # pydicom raises many kinds for damaged files, and all of them mean the same to the user
        why = " ".join(str(e).split())[:200]
        raise RefusedError(
            "damaged-header", f"Its header cannot be read ({type(e).__name__}: {why}); export it again."
        ) from e


def _parsed(file: BoundedFile) -> Header:
    """The header as pydicom reads it; what is deflated is refused before, as pydicom inflates it without a bound."""
    read_preamble(file, False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    _refuse_deflated(str(meta.get("TransferSyntaxUID", "")))
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(SPECIFIC))
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    values: dict[str, tuple[Scalar, ...]] = {}
    for element in dataset:
        keyword = keyword_for_tag(element.tag)
        if keyword in KIND and not element.is_empty:
            values[keyword] = plain(element.value)
    return Header(values, syntax, file.size - file.tell(), dataset)


def plain(value: object) -> tuple[Scalar, ...]:
    """A value of pydicom as numbers and texts; ValueError for bytes, which nothing says how to read."""
    if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue":
        return tuple(one for item in value for one in plain(item))  # type: ignore[attr-defined]
    if isinstance(value, bool | bytes | Dataset):
        raise ValueError("a value of another kind than its tag has")
    if isinstance(value, int):
        return (int(value),)
    return (float(value),) if isinstance(value, float) else (_component(str(value)),)


def _refuse_program(start: bytes) -> None:
    """PS3.10 7.1 leaves the first 128 bytes to whoever writes the file: it may be a program as well as an image."""
    if start[128:] == b"DICM" and start.startswith((b"MZ", b"\x7fELF", b"#!")):
        raise RefusedError(
            "program",
            "It begins as a program does, and can be run as one; have it looked at, or clear its first 128 bytes.",
        )


def _refuse_deflated(syntax: str) -> None:
    if syntax == DeflatedExplicitVRLittleEndian:
        raise RefusedError("deflated", "A deflated file inflates without bound; convert it, for instance with dcmconv.")


def _walk(data: bytes, size: int) -> Header | None:
    """The header, from the first bytes of the file; None where pydicom has to look."""
    if data[128:132] != b"DICM":
        return None
    meta, position = elements(data, 132, implicit=False, wanted={0x00020010}, meta=True)
    if position is None or 0x00020010 not in meta:
        return None
    syntax = meta[0x00020010][1].decode("ascii", "replace").strip("\0 ")
    _refuse_deflated(syntax)
    if syntax == ExplicitVRBigEndian:
        return None
    found, position = elements(data, position, implicit=syntax == ImplicitVRLittleEndian, wanted=TAGS)
    if position is None or (position == len(data) and len(data) < size):
        return None
    try:
        signed = found.get(0x00280103, ("US", b""))[1][:1] == b"\1"
        values = {TAGS[tag]: _value(TAGS[tag], vr, raw, signed) for tag, (vr, raw) in found.items()}
    except (ValueError, struct.error):
        return None
    return Header({keyword: value for keyword, value in values.items() if value}, syntax, size - position)


def _value(keyword: str, vr: str, raw: bytes, signed: bool) -> tuple[Scalar, ...]:
    """One value as `plain` gives it; ValueError where it takes pydicom to say."""
    vr = vr or KIND[keyword]
    if vr == "US or SS":
        vr = "SS" if signed else "US"
    if vr in BINARY:
        return struct.unpack(f"<{len(raw) // struct.calcsize(BINARY[vr])}{BINARY[vr]}", raw)
    if vr not in ("CS", "DA", "DS", "IS", "LO", "SH", "TM", "DT", "UI"):
        raise ValueError(vr)
    if b"\x1b" in raw or not raw.isascii():
        raise ValueError("a character set")
    text = raw.decode("ascii").rstrip("\0 ")
    if not text:
        return ()
    parts = text.split("\\")
    if vr == "DS":
        return tuple(map(_decimal, parts))
    if vr == "IS":
        return tuple(map(int, parts))
    return tuple(map(_component, parts))


def _decimal(text: str) -> float:
    if not text.strip() or "_" in text:
        raise ValueError(text)
    return float(text)


def _component(text: str) -> str:
    return text.strip("\0 ")
