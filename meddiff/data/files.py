"""Files by content and by name: digests, names that survive a move, writing that is whole or not at all."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; hashed once as long as its size and time of change stay."""
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the concatenated binary SHA-256 digests of the files, in order; hex."""
    return combine(digest_file(path) for path in paths)


def combine(digests: Iterable[str]) -> str:
    """SHA-256 over the concatenated binary form of hex digests; hex."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def absolute(path: Path) -> Path:
    """Absolute and without `..`; links are kept, so that a linked folder keeps the name the user knows it by."""
    return Path(os.path.abspath(path))


def portable(path: Path, folder: Path | None) -> str:
    """POSIX name of a file: relative to `folder` if below it or below its parent, else (or without one) absolute."""
    path = absolute(path)
    if folder is None:
        return path.as_posix()
    folder = absolute(folder)
    beside = folder.parent if folder.parent != Path(folder.anchor) else folder  # everything is below the root
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_relative_to(beside) else path.as_posix()


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines as in `write_whole`; the folder is made when it is not there."""
    write_whole(path, "".join(line + "\n" for line in lines).encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, then take its place: the file is whole or not there, also after a power cut."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk: a renamed file keeps its new name after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=65536)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
