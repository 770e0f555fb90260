"""MedMNIST files: one .npz with `<split>_images` (N, H, W) or (N, D, H, W) uint8 and `<split>_labels` (N, L)."""

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError

import numpy as np

from meddiff.errors import ImageError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import MAX_RATIO
from meddiff.imaging.volume import Volume

BROKEN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    SyntaxError,
    RecursionError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    TokenError,  # numpy, of a header that is none
)
SMALL_BYTES = 256 << 20  # that an array may inflate to from however little
MAX_ROWS = 1 << 20  # of one split; the largest of MedMNIST has 165,466


def read_row(path: Path, key: str, index: int) -> Volume:
    """One image as float32 in a.u.: I = column, J = row, K = slice (1 for a 2D image), on `row_geometry`."""
    images = open_array(path, key)
    if not 0 <= index < len(images):
        raise ImageError(f"{path}: {key} has {len(images)} rows, row {index} was asked for. Scan the file again.")
    array = images[index].T.astype(np.float32)  # (I, J) or (I, J, K)
    array = array[..., None] if array.ndim == 2 else array  # (I, J, K)
    return Volume(np.ascontiguousarray(array), row_geometry(images.shape), "OT", "a.u.")


def row_geometry(shape: tuple[int, ...]) -> Geometry:
    """The grid of one row of an array (N, H, W) or (N, D, H, W): 1 mm voxels, columns to the left, rows to the back.

    That is how an axial slice is shown; MedMNIST itself keeps no millimetres and no directions.
    """
    size = (*shape[:0:-1], 1)[:3]  # (W, H, D or 1)
    return Geometry.make((size[0], size[1], size[2]), (1.0, 1.0, 1.0), orientation="LPS")


def image_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Split -> shape of its images, from the headers alone; ImageError where they are not grey uint8 images."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                if name.endswith("_images.npy"):
                    _check_size(path, file, name)
                    shapes[name.removesuffix("_images.npy")] = _grey(path, name, *_header(file, name))
    except BROKEN as error:
        raise ImageError(f"{path}: is not an .npz of arrays ({error}). Fetch the data set again.") from error
    if not shapes:
        raise ImageError(f"{path}: has no array such as train_images. Scan MedMNIST files only, or remove this one.")
    return shapes


def labels(path: Path, split: str, rows: int) -> np.ndarray:
    """The labels of one split, (N, L) integers; (N, 0) where the file has none."""
    with zipfile.ZipFile(path) as file:
        if f"{split}_labels.npy" not in file.namelist():
            return np.empty((rows, 0), dtype=np.int64)
    found = open_array(path, f"{split}_labels")
    if len(found) != rows or found.dtype.kind not in "iu":
        raise ImageError(
            f"{path}: {split}_labels is {found.dtype} {found.shape}, expected {rows} rows of integers. "
            "Fetch the data set again."
        )
    return found.reshape(rows, -1)


def open_array(path: Path, key: str) -> np.ndarray:
    """An array of the file, read-only, decoded once and kept while the file does not change; never unpickles."""
    return _open(path, key, path.stat().st_mtime_ns)


@lru_cache(maxsize=6)  # images and labels of three splits: an array is decoded once, not once a row
def _open(path: Path, key: str, changed_ns: int) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as file:
            _check_size(path, file, f"{key}.npy")
        with np.load(path, allow_pickle=False) as file:
            array = file[key]
    except BROKEN as error:
        raise ImageError(f"{path}: array {key!r} cannot be read ({error}). Fetch the data set again.") from error
    array.setflags(write=False)
    return array


def _check_size(path: Path, file: zipfile.ZipFile, name: str) -> None:
    """That the array is no larger than its entry, and the entry no implausible multiple of its bytes in the file."""
    shape, dtype = _header(file, name)
    entry, promised = file.getinfo(name), int(np.prod(shape, dtype=object)) * dtype.itemsize
    if promised > entry.file_size:
        raise ImageError(
            f"{path}: {name} promises {promised} bytes and holds {entry.file_size}. Fetch the data set again."
        )
    if promised > max(SMALL_BYTES, MAX_RATIO * entry.compress_size):
        raise ImageError(
            f"{path}: {entry.compress_size} bytes of {name} promise {promised}, more than {MAX_RATIO} for one. If it is real, "
            "store it uncompressed."
        )


def _header(file: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with file.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _grey(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    if len(shape) in (4, 5) and shape[-1] == 3:
        raise ImageError(f"{path}: {name} holds colour images {shape}, which are not read yet. Convert them to grey.")
    if shape and shape[0] > MAX_ROWS:
        raise ImageError(f"{path}: {name} has {shape[0]} rows; at most {MAX_ROWS} are read. Split the file.")
    if len(shape) not in (3, 4) or dtype != np.uint8:
        raise ImageError(f"{path}: {name} is {dtype} {shape}, expected uint8 (N, H, W) or (N, D, H, W).")
    return shape
