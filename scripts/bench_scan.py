"""DICOM headers a second: our scan against `pydicom.dcmread(stop_before_pixels=True)` in a loop, in the same run.

    python scripts/bench_scan.py [--quick] [--json FILE]

The files are copies of pydicom's real CT_small.dcm, each in its own place of a series. Medians over interleaved rounds; ours
includes the start of the second process where there is work for it, the grouping and the geometry of the series.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file

from meddiff.imaging.dicom import find_series

SERIES = 100  # slices


def copies(folder: Path, n: int) -> list[Path]:
    """`n` slices in series of SERIES."""
    slice_ = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    paths = []
    for k in range(n):
        slice_.SeriesInstanceUID = f"2.25.{1000 + k // SERIES}"
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = f"2.25.{1_000_000 + k}"
        slice_.ImagePositionPatient = [-158.1, -179.0, -75.7 - 5 * (k % SERIES)]
        paths.append(folder / f"{k:06d}.dcm")
        slice_.save_as(paths[-1])
    return paths


def seconds(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 files and 3 rounds instead of 20,000 and 3")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args()
    files, rounds = (2000, 3) if options.quick else (20_000, 3)
    workers = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        paths = copies(Path(name), files)
        found, refused = find_series(paths)
        assert (sum(len(one.files) for one in found), refused) == (files, [])
        ways = {
            "pydicom_loop": lambda: [pydicom.dcmread(path, stop_before_pixels=True) for path in paths],
            "ours_1_process": lambda: find_series(paths),
            f"ours_{workers}_processes": lambda: find_series(paths, workers=workers),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, read in ways.items():
                taken[way].append(seconds(read))
    rate = {way: files / statistics.median(times) for way, times in taken.items()}
    figures = {f"{way}_headers_per_s": round(value) for way, value in rate.items()}
    best = rate[f"ours_{workers}_processes"]
    figures |= {
        "files": files,
        "scan_1_vs_pydicom": round(rate["ours_1_process"] / rate["pydicom_loop"], 2),
        "scan_vs_pydicom": round(best / rate["pydicom_loop"], 2),
        f"scan_{workers}_vs_1": round(best / rate["ours_1_process"], 2),
    }
    for key, value in figures.items():
        print(f"{key:32} {value}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
