"""Files of the cache: arrays that are mapped into memory, written whole, and known to be as they were written."""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from meddiff.data.files import digest_file
from meddiff.errors import ManifestError, RunError

TOGETHER_BYTES = 1 << 20  # of an array that are read ahead in one piece, also where only a part of them is asked for


class Kept(BaseModel):
    """One array of an entry, as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int  # bytes
    changed_ns: int  # time of modification

    @classmethod
    def of(cls, path: Path) -> "Kept":
        """The file as it is now."""
        state = path.stat()
        return cls(sha256=digest_file(path), size=state.st_size, changed_ns=state.st_mtime_ns)

    def untouched(self, path: Path) -> bool:
        """Whether the file has the size and the time that it was written with."""
        state = path.stat()
        return (state.st_size, state.st_mtime_ns) == (self.size, self.changed_ns)


def open_array(path: Path) -> np.ndarray:
    """An array of the cache, memory-mapped, never unpickled; ManifestError where it is missing or damaged."""
    try:
        # "c": changes never reach the file; torch takes no read-only array
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except Exception as e:  # numpy raises what it likes at a header that is none
        raise ManifestError(
            f"{path}: this file of the cache cannot be read ({' '.join(str(e).split())[:200]}). Remove it; it is made again "
            "from the scan."
        ) from e


def read_ahead(part: np.ndarray) -> None:
    """Tell the system which view of an array of the cache is read next, so that it is fetched at once and not page by page."""
    whole = part
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    if not isinstance(whole.base, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED") or not part.size:  # Windows has none
        return
    within = whole.offset % mmap.ALLOCATIONGRANULARITY
    for begin, end in pieces(part, whole):
        page = (begin + within) - (begin + within) % mmap.PAGESIZE
        whole.base.madvise(mmap.MADV_WILLNEED, page, end + within - page)


def pieces(part: np.ndarray, whole: np.ndarray) -> Iterator[tuple[int, int]]:
    """The bytes of `whole` that a view of it, not empty, lies in: one piece, or one for each of its planes where they lie far apart."""
    first = part.ctypes.data - whole.ctypes.data
    (apart, planes), *rest = sorted(zip(part.strides, part.shape, strict=True), reverse=True)
    reach = part.itemsize + sum((n - 1) * stride for stride, n in rest)
    if (planes - 1) * apart + reach <= TOGETHER_BYTES:
        yield first, first + (planes - 1) * apart + reach
        return
    for plane in range(planes):
        yield first + plane * apart, first + plane * apart + reach


def write_array(path: Path, array: np.ndarray) -> None:
    """An array of the cache, whole or not there."""
    write_cached(path, lambda file: np.save(file, array, allow_pickle=False))


def write_cached(path: Path, fill: Callable) -> None:
    """A file under its final name only when whole; two processes may write the same one. RunError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as e:
        raise RunError(
            f"{path}: this file of the cache cannot be written ({e}). What was prepared before it stays. Free space, or choose "
            "another place with data.cache or $MEDDIFF_CACHE."
        ) from e
