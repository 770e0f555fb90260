"""A real CT slice with a text to find in every place where an identity can hide."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom import config
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

TEXT = re.compile("can(ary|yra)", re.IGNORECASE)
UID_ROOT = "1.2.826.0.1.3680043.8.498.777"
DATE = "19610207"
WORDS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
BYTES = {"OB", "OW", "UN", "OB or OW"}
KEPT = {"SOPClassUID", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PixelRepresentation", "PhotometricInterpretation",
        "ImageType", "BurnedInAnnotation", "PixelData", "NumberOfFrames", "SpecificCharacterSet"}  # fmt: skip


def rows() -> list[int]:
    """The tags of PS3.15 Table E.1-1, edition 2026c; repeating groups by one of them."""
    from dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c import ALL_TAGS

    special = {0x50: 0x50000010, 0x60: 0x60004000}
    tags = {(t[0] << 16 | t[1]) if len(t) == 2 else special.get(t[0] >> 8, 0) for t in ALL_TAGS}
    return sorted(tag for tag in tags if tag)


def elements(tags: Iterable[int]) -> Iterator[DataElement]:
    """One element a tag, each with its own planted value, by its VR."""
    for n, tag in enumerate(tags):
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            vr = "LO"
        yield DataElement(Tag(tag), vr.split(" or ")[0], _value(vr, n))


def _value(vr: str, n: int) -> object:
    text = f"CANARY{n:05d}"
    if vr in WORDS:
        return text
    if vr in BYTES:
        return (text + " ").encode()
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.CodeValue, item.CodeMeaning, item.TextValue = text, text, text, text
        item.CodingSchemeDesignator = "99CANARY"
        return Sequence([item])
    return {
        "UI": f"{UID_ROOT}.{n}", "DA": DATE, "DT": DATE + "111213", "TM": "101112", "AS": "093Y",
        "AT": int.from_bytes(b"CANY", "little"), "FL": 1.5, "FD": 1.5, "DS": "1.5",
    }.get(vr, 1)  # fmt: skip


def planted(tags: Iterable[int], *, everywhere: bool = True) -> pydicom.FileDataset:
    """CT_small with an element of each tag at the top and two deep in a sequence that stays, and with odd places filled."""
    with config.disable_value_validation():
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.BurnedInAnnotation = "NO"
        tags = list(tags)
        inner, outer = Dataset(), Dataset()
        inner.update({e.tag: e for e in elements(tags) if e.tag.group not in (0, 2)})
        inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "121320", "DCM", "CANARYCODE"
        outer.ReferencedSOPClassUID, outer.ReferencedSOPInstanceUID = ds.SOPClassUID, f"{UID_ROOT}.9.1"
        outer.PurposeOfReferenceCodeSequence = [inner]
        own = {e.tag: e for e in elements(tags) if e.tag.group not in (0, 2)}
        ds.update({tag: e for tag, e in own.items() if e.keyword not in KEPT})
        ds.SourceImageSequence = [outer]
        if everywhere:
            _odd_places(ds)
    return ds


def _odd_places(ds: pydicom.FileDataset) -> None:
    ds.preamble = b"CANARYPREAMBLE".ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle = "CANARYAE"
    ds.file_meta.SendingApplicationEntityTitle = "CANARYSEND"
    ds.file_meta.ReceivingApplicationEntityTitle = "CANARYRECV"
    ds.file_meta.ImplementationVersionName = "CANARYIMPL"
    ds.file_meta.PrivateInformationCreatorUID = f"{UID_ROOT}.5"
    ds.file_meta.PrivateInformation = b"CANARYPRIVATE "
    ds.private_block(0x0099, "CANARYCREATOR", create=True).add_new(1, "LO", "CANARYPRIV")
    block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)  # on the safe list, but not as text
    block.add_new(0x0C, "LO", "CANARYBVALUE")
    block.add_new(0x0E, "UN", b"CANARYVECTORTEXT")
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60000011, "US", 8)
    ds.add_new(0x60000022, "LO", "CANARYOVERLAY")
    ds.add_new(0x60003000, "OW", b"CANARYOV")
    ds.add_new(0x50003000, "OW", b"CANARYCURVE ")
    ds.add_new(0xFFFCFFFC, "OB", b"CANARYPADDING ")
    ds.ContentSequence = [_text_item()]
    ds.EncapsulatedDocument = b"%PDF CANARYDOC "
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.PixelData = b"CANARYICONPIXELS"
    icon["PixelData"].VR = "OB"
    ds.IconImageSequence = [icon]
    ds.PixelData = ds.PixelData + b"CANARYTRAILING"
    ds.PatientAge = "093Y"


def _text_item() -> Dataset:
    item = Dataset()
    item.ValueType, item.TextValue = "TEXT", "CANARYREPORT"
    return item


def write(path: Path, ds: pydicom.FileDataset, trailer: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with config.disable_value_validation():
        ds.save_as(path)
    with open(path, "ab") as file:
        file.write(trailer)
    return path


def leaks(content: bytes) -> set[str]:
    """What of the planted values is in some bytes: texts in any encoding and case, UIDs, the date, the age."""
    forms = {content.decode("latin-1"), content.replace(b"\0", b"").decode("latin-1")}
    found = {hit for form in forms for hit in re.findall(r"can(?:ary|yra)\w*", form, re.IGNORECASE)}
    for name, needle in (("uid", UID_ROOT), ("date", DATE), ("age", "093Y")):
        if any(needle in form for form in forms):
            found.add(name)
    return found


def pixels_of(ds: Dataset) -> np.ndarray:
    return np.frombuffer(ds.PixelData, "<i2")[: ds.Rows * ds.Columns].reshape(ds.Rows, ds.Columns)
