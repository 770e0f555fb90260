"""Pixels of slices as values: decoded within bounds, MONOCHROME1 inverted, padding filled, rescaled (PS3.3 C.11.1)."""

import struct
import warnings
from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from meddiff.errors import DicomError
from meddiff.imaging.dicom_header import BoundedFile
from meddiff.imaging.dicom_slice import MAX_VOXELS, Slice

FILL = {"HU": -1024.0}  # where a CT measured nothing, as air; 0 in every other unit
JPEG_FAMILY = (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes)
START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}  # JPEG, JPEG-LS


def read_planes(slices: Sequence[Slice]) -> np.ndarray:
    """The values of slices of one size, (slices, rows, columns) float32; DicomError where one cannot be decoded."""
    first = slices[0]
    voxels = len(slices) * first.rows * first.columns
    if voxels > MAX_VOXELS:
        raise DicomError(f"{first.path.parent}: {voxels} voxels; at most {MAX_VOXELS} are read. Scan a part of it.")
    planes = np.empty((len(slices), first.rows, first.columns), dtype=np.float32)
    path, stored = None, np.empty(0)
    for k, one in enumerate(slices):
        if one.path != path:
            path, stored = one.path, _stored(one)
        planes[k] = values(one, _plane(one, stored))
    return planes


def values(one: Slice, plane: np.ndarray) -> np.ndarray:
    """Stored numbers as quantities, (rows, columns) float32."""
    slope, intercept = one.rescale
    shown = plane.astype(np.float64)
    if one.inverted is not None:
        shown = one.inverted - shown
    shown = shown * slope + intercept
    if one.padding is not None:
        low, high = one.padding
        shown[(plane >= low) & (plane <= high)] = FILL.get(one.unit, 0.0)
    return shown.astype(np.float32)


def _plane(one: Slice, stored: np.ndarray) -> np.ndarray:
    if one.tiles > 1:
        row, column = divmod(one.frame, one.tiles)
        return stored[0, row * one.rows :][: one.rows, column * one.columns :][:, : one.columns]
    return stored[one.frame]


def _stored(one: Slice) -> np.ndarray:
    """All frames of a file, (frames, rows, columns)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with BoundedFile(one.path) as file:
                dataset = pydicom.dcmread(file)
            syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "")))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        raise DicomError(f"{one.path}: cannot be read ({type(e).__name__}: {e}). Copy or export it again.") from e
    rows, columns = one.rows * one.tiles, one.columns * one.tiles
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if syntax in JPEG_FAMILY:
                _check_codestreams(dataset, one.frames, rows, columns)
            stored = dataset.pixel_array
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:  # native decoders panic with classes that are no Exception
        why = " ".join(str(e).split()).rstrip(".")  # pydicom's list of plug-ins, on one line
        raise DicomError(
            f"{one.path}: its pixels ({syntax.name or 'unknown syntax'}) cannot be decoded: {why}. {_remedy(syntax)}"
        ) from e
    expected = (rows, columns) if one.frames == 1 else (one.frames, rows, columns)
    if stored.shape != expected and stored.shape != (1, *expected):
        raise DicomError(
            f"{one.path}: its pixels have shape {stored.shape}, its header says {expected}. Export it again."
        )
    return stored.reshape(one.frames, rows, columns)


def _check_codestreams(dataset: Dataset, frames: int, rows: int, columns: int) -> None:
    """That no frame is larger than its header says, as a decoder makes room for what the frame says of itself."""
    for frame in generate_frames(dataset.PixelData, number_of_frames=frames):
        size = codestream_size(frame)
        if size != (rows, columns):
            raise ValueError(f"a frame says that it is {size}, the header {(rows, columns)}")


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream claims; None where it has no such header.

    JPEG 2000: SIZ follows SOC (ISO 15444-1, A.5.1). JPEG: the first start of frame (ISO 10918-1, B.2.2).
    """
    siz = frame.find(b"\xff\x4f\xff\x51")
    if siz >= 0 and len(frame) >= siz + 24:
        width, height, left, top = struct.unpack_from(">4I", frame, siz + 8)
        return height - top, width - left
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], struct.unpack_from(">H", frame, position + 2)[0]
        if marker in START_OF_FRAME:
            height, width = struct.unpack_from(">HH", frame, position + 5)
            return height, width
        position += 1 if marker == 0xFF else 2 + length
    return None


def _remedy(syntax: UID) -> str:
    try:
        if get_decoder(syntax).is_available:
            return "The file is damaged; export it again."
    except NotImplementedError:
        return "This transfer syntax is not supported; convert the file, for instance with dcmconv or gdcmconv."
    return "The codec is missing: pip install 'pylibjpeg[all]' pyjpegls"
