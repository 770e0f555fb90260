"""What hides in pixel data: burned-in text, comments in a code stream, bytes behind the last pixel."""

import importlib
import re
import warnings
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_voi_lut
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes, RLELossless

from meddiff.errors import PrivacyError

TOMOGRAPHIC = {
    "CT",
    "MR",
    "PT",
    "NM",
}  # reconstructed, so that text comes in only by a later step, which ImageType tells
DRAWN = {"SEG", "RTDOSE", "RTSTRUCT"}  # computed values: no camera, no screen
CAPTURED = re.compile("SCREEN|CAPTURE|SECONDARY|SAVE|PASTED|REPORT|DOSE_INFO|3D_RENDER|RENDER")
PADDING = re.compile(b"\xff[\x80-\xcf\xd8-\xfe]")  # a marker: 0x00-0x7f are stuffed bytes, 0xd0-0xd7 restarts
MIN_CONFIDENCE, MIN_CHARACTERS = 70, 3  # of a word that tesseract takes for text
BRIGHT = 0.9  # of the display range
DECODABLE = JPEGTransferSyntaxes + JPEGLSTransferSyntaxes + JPEG2000TransferSyntaxes


class QuarantinedError(Exception):
    """This file may not leave; `reason` is a short code, and neither it nor `detail` tells anything of the file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def check_burned_in(dataset: Dataset, modality: str) -> None:
    """Quarantine what may show text, unless SOP class and BurnedInAnnotation say that it does not (PS3.15 E.3.1).

    NO is believed of every class on the allow-list; without it only tomographic images pass that are no capture of a
    screen, and label maps, doses and contours.
    """
    burned = str(dataset.get("BurnedInAnnotation", "")).strip()
    if burned == "YES":
        raise QuarantinedError(
            "burned-in-text", "BurnedInAnnotation is YES: text is part of the pixels. Mask it first."
        )
    if burned == "NO" or modality in DRAWN:
        return
    kind = dataset.get("ImageType") or []
    kinds = [kind] if isinstance(kind, str) else [str(one) for one in kind]
    if modality not in TOMOGRAPHIC or any(CAPTURED.search(one.upper()) for one in kinds):
        raise QuarantinedError(
            "burned-in-unknown",
            "A projection or a secondary image without BurnedInAnnotation NO may show a name. Look at it, and set the "
            "attribute, or leave it out.",
        )


def clean_pixels(dataset: Dataset, syntax: UID) -> bytes | None:
    """The pixel data without what is no pixel; None where there is none. Decoded values do not change."""
    if "PixelData" not in dataset:
        return None
    if any(
        element.tag.group >> 8 == 0x60 and element.tag.element == 0x0102 and element.value
        for element in _overlays(dataset)
    ):
        raise QuarantinedError("overlay-in-pixels", "An overlay lies in unused bits of the pixels. Export without it.")
    raw = dataset.PixelData
    if not syntax.is_compressed:
        return _native(dataset, raw)
    if syntax not in DECODABLE and syntax != RLELossless:
        raise QuarantinedError("video", "Video and other streams are not looked into. Export uncompressed.")
    frames = generate_frames(raw, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1))
    return encapsulate([frame if syntax == RLELossless else without_comments(frame) for frame in frames])


def without_comments(stream: bytes) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 code stream without comments, application data and what follows its end."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg(stream)
    if stream[:2] == b"\xff\x4f":
        return _jpeg2000(stream)
    raise QuarantinedError(
        "not-a-codestream", "The compressed pixels are in a wrapper that may hold text. Export again."
    )


def find_text(dataset: Dataset) -> bool:
    """Whether tesseract reads words in any frame; PrivacyError where it is not installed."""
    tesseract = require_ocr()
    return any(_has_words(tesseract, picture) for frame in _frames(dataset) for picture in _pictures(frame))


def _pictures(frame: np.ndarray) -> Iterator[np.ndarray]:
    """A frame as 8 bits for tesseract: as it is, and its brightest parts black on white, as text is drawn in white."""
    low, high = np.percentile(frame, (0.5, 99.9))
    grey = np.clip((frame - low) / max(high - low, 1e-6), 0, 1)
    for picture in (grey, grey < BRIGHT):
        yield np.kron((255 * picture).astype(np.uint8), np.ones((2, 2), np.uint8))  # small letters are read better


def _has_words(tesseract: Any, picture: np.ndarray) -> bool:
    found = tesseract.image_to_data(picture, config="--psm 11", output_type=tesseract.Output.DICT)
    return any(
        float(confidence) >= MIN_CONFIDENCE and len(re.sub(r"[^A-Za-z0-9]", "", word)) >= MIN_CHARACTERS
        for word, confidence in zip(found["text"], found["conf"], strict=True)
    )


def require_ocr() -> Any:
    """pytesseract with its program; PrivacyError with what to install."""
    try:
        tesseract = importlib.import_module("pytesseract")
        tesseract.get_tesseract_version()
    except Exception as error:  # the module is absent, or raises its own kind where the program is
        raise PrivacyError(
            "--ocr: tesseract is not there. Install it: `pip install 'meddiff[ocr]'`, and the program, for instance with "
            "`apt-get install tesseract-ocr`."
        ) from error
    return tesseract


def _overlays(dataset: Dataset) -> Any:
    return (dataset[tag] for tag in list(dataset.keys()) if tag.group >> 8 == 0x60 and tag.element == 0x0102)


def _native(dataset: Dataset, raw: bytes) -> bytes:
    numbers = [
        int(dataset.get(k) or d)
        for k, d in (("Rows", 0), ("Columns", 0), ("SamplesPerPixel", 1), ("NumberOfFrames", 1))
    ]
    bits = prod(numbers) * int(dataset.get("BitsAllocated", 0) or 0)
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        bits = bits * 2 // 3
    size = (bits + 7) // 8
    if size == 0 or len(raw) < size:
        raise QuarantinedError("truncated-pixels", "It has fewer pixels than its header says. Export it again.")
    return raw[:size] + b"\0" * (size % 2)


def _jpeg(stream: bytes) -> bytes:
    """ITU-T T.81 B.1: segments up to the scan, entropy-coded bytes up to the next marker, and so on to the end."""
    out, at = [stream[:2]], 2
    while at + 4 <= len(stream) or stream[at : at + 2] == b"\xff\xd9":
        marker = stream[at + 1]
        if stream[at] != 0xFF:
            break
        if marker == 0xD9:
            return b"".join([*out, b"\xff\xd9"])
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = stream[at:end]
        colour = (marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) == 16) or (
            marker == 0xE8 and segment[4:8] == b"mrfx" and len(segment) == 9
        )
        if not (marker == 0xFE or 0xE0 <= marker <= 0xEF) or colour:
            out.append(segment)
        if marker == 0xDA:
            following = PADDING.search(stream, end)
            stop = following.start() if following else len(stream)
            out.append(stream[end:stop])
            end = stop
        at = end
    raise QuarantinedError("damaged-stream", "The compressed pixels have no end. Export the file again.")


def _jpeg2000(stream: bytes) -> bytes:
    """ISO/IEC 15444-1 A.2: the main header without COM; a comment in a tile-part header is refused."""
    out, at = [stream[:2]], 2
    while stream[at : at + 2] != b"\xff\x90":
        if at + 4 > len(stream) or stream[at] != 0xFF:
            raise QuarantinedError("damaged-stream", "The compressed pixels have no tiles. Export the file again.")
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] != 0x64:
            out.append(stream[at:end])
        at = end
    first = at
    while stream[at : at + 2] == b"\xff\x90":
        data = stream.find(b"\xff\x93", at)
        length = int.from_bytes(stream[at + 6 : at + 10], "big")
        inside = at + 12
        while inside < data:
            if stream[inside : inside + 2] == b"\xff\x64":
                raise QuarantinedError(
                    "comment-in-tile", "A tile of the compressed pixels has a comment. Export again."
                )
            inside += 2 + int.from_bytes(stream[inside + 2 : inside + 4], "big")
        if not length:  # the last tile-part may say that it reaches to the end
            at = stream.rfind(b"\xff\xd9")
            break
        at += length
    if at < 0 or stream[at : at + 2] != b"\xff\xd9":
        raise QuarantinedError("damaged-stream", "The compressed pixels have no end. Export the file again.")
    return b"".join([*out, stream[first:at], b"\xff\xd9"])


def _frames(dataset: Dataset) -> np.ndarray:
    """The frames as a viewer shows them, (frames, rows, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = apply_voi_lut(dataset.pixel_array, dataset).astype(np.float32)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # native decoders panic with classes that are no Exception
        raise QuarantinedError(
            "pixels-not-decoded", "Its pixels cannot be decoded, so not be read for text."
        ) from error
    if int(dataset.get("SamplesPerPixel", 1)) > 1:
        array = array.mean(-1)
    return array.reshape(-1, *array.shape[-2:])
