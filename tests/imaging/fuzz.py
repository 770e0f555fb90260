"""Damaged files, and a process of its own that reads them under limits of time and memory.

python fuzz.py        reads paths from stdin and answers each with a line of JSON
"""

import contextlib
import gzip
import json
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.data import get_testdata_file

SECONDS, BYTES = 2.0, 1 << 30  # that one file may take
DICOM = ("CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm",
         "MR_small_implicit.dcm", "image_dfl.dcm", "emri_small.dcm", "emri_small_jpeg_2k_lossless.dcm", "liver_1frame.dcm")  # fmt: skip


def originals() -> dict[str, bytes]:
    """Real DICOM files in ten encodings, and NIfTI-1 and -2, plain and gzipped; name -> content."""
    import nibabel as nib

    found = {name: Path(get_testdata_file(name, download=False)).read_bytes() for name in DICOM}
    array = np.arange(20 * 24 * 16, dtype=np.float32).reshape(20, 24, 16)
    for name, kind in (("one", nib.Nifti1Image), ("two", nib.Nifti2Image)):
        plain = kind(array, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()
        found |= {f"{name}.nii": plain, f"{name}.nii.gz": gzip.compress(plain, mtime=0)}
    return found


def damaged(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`n` files (name, content), the same for the same seed: bytes changed, blocks cut, repeated, blanked or exchanged."""
    rng = np.random.default_rng(seed)
    sources = originals()
    for k in range(n):
        name = list(sources)[k % len(sources)]
        content = bytearray(sources[name])
        for _ in range(int(rng.integers(1, 4))):
            head = min(len(content), 3000) if rng.random() < 0.6 else len(content)
            at, size = int(rng.integers(0, max(head, 1))), int(rng.integers(1, 200))
            match int(rng.integers(0, 6)):
                case 0 | 1:
                    for where in rng.integers(0, max(head, 1), int(rng.integers(1, 20))):
                        if where < len(content):
                            content[where] = int(rng.integers(0, 256))
                case 2:
                    del content[at : at + size]
                case 3:
                    content[at:at] = content[at : at + size]
                case 4:
                    content[at : at + size] = bytes([int(rng.choice([0, 255]))]) * size
                case 5:
                    del content[at:]
        yield f"{k:04d}-{name}", bytes(content)


class Reader:
    """A process that reads one file after another; it is started again where it had to be ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def __call__(self, path: Path) -> dict:
        """outcome: read, refused, crash, timeout or died; with the seconds and the most bytes resident so far."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.process.stdout.readline()  # it is ready
        start = time.monotonic()
        try:
            print(path, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return self._end("died", start)
        if not select.select([self.process.stdout], [], [], 5 * SECONDS)[0]:
            return self._end("timeout", start)
        line = self.process.stdout.readline()
        return json.loads(line) if line else self._end("died", start)

    def _end(self, outcome: str, start: float) -> dict:
        self.close()
        return {"outcome": outcome, "seconds": time.monotonic() - start, "bytes": 0, "why": ""}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> None:
    from meddiff.imaging.dicom import find_series, read_series
    from meddiff.imaging.nifti import read_nifti

    if ".nii" in path.name:
        read_nifti(path)
        return
    series, refused = find_series([path])
    if refused:
        from meddiff.errors import DicomError

        raise DicomError(refused[0].reason)
    for one in series:
        read_series(one.files, volume=one.volume)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def most_resident() -> int:
    """Bytes that this process had in memory at most; ru_maxrss would count the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def serve() -> None:
    """Answer each path on stdin; memory beyond the limit cannot be had."""
    import warnings

    from meddiff.errors import MeddiffError
    from meddiff.imaging import dicom, nifti  # noqa: F401

    warnings.simplefilter("ignore")
    tell("ready")
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    for line in sys.stdin:
        start = time.monotonic()
        outcome, why = "read", ""
        try:
            read(Path(line.rstrip("\n")))
        except MeddiffError as error:
            outcome, why = "refused", str(error)
        except BaseException as error:  # what must not be: it is told, not hidden
            outcome, why = "crash", f"{type(error).__name__}: {error}"
        answer = {"outcome": outcome, "seconds": time.monotonic() - start, "bytes": most_resident(), "why": why}
        tell(json.dumps(answer))


if __name__ == "__main__":
    serve()
