"""Irregular folders through MONAI's, SimpleITK's and our reader, side by side.

    python scripts/compare_readers.py [--json FILE]

The folders are those of tests/imaging/irregular.py, each with its true volumes. "right": all of these were returned; "part":
some of them; "refused": none, with a reason; "WRONG": a volume that is not in the folder. Three rows are a matter of rules, those
of docs/data.md: stored values of MONOCHROME1, padding and PET count as wrong where nothing says what they are. Needs the test extra.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from meddiff.errors import MeddiffError
from meddiff.imaging.dicom import find_series, read_series

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "imaging"))
from irregular import BUILDERS, LPS, Truth, build, is_true

Volumes = list[tuple[np.ndarray, np.ndarray]]


def monai(folder: Path) -> Volumes:
    """MONAI's PydicomReader, its default for a folder."""
    from monai.data import PydicomReader
    from monai.transforms import LoadImage

    image = LoadImage(reader=PydicomReader(), image_only=True)(folder)
    return [(np.asarray(image), np.asarray(image.affine))]


def simpleitk(folder: Path) -> Volumes:
    """SimpleITK's series reader, for each series that it names."""
    found: Volumes = []
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid))
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        found.append((sitk.GetArrayFromImage(image).T, LPS @ affine))
    if not found:
        raise ValueError("no series")
    return found


def ours(folder: Path) -> Volumes:
    series, refused = find_series([path for path in folder.rglob("*") if path.is_file()])
    if not series:
        raise MeddiffError(", ".join(sorted({one.reason for one in refused})))
    volumes = [read_series(one.files, volume=one.volume) for one in series]
    return [(one.array, one.geometry.affine) for one in volumes]


def outcome(read: Callable[[Path], Volumes], folder: Path, truths: list[Truth]) -> str:
    """What a reader makes of a folder, in a word."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # none of them tells a wrong volume from a right one
            volumes = read(folder)
    except Exception as error:  # every reader has its own kinds
        return f"refused ({error})" if isinstance(error, MeddiffError) else f"refused ({type(error).__name__})"
    if not all(is_true(array, affine, truths) for array, affine in volumes):
        return "WRONG"
    return "right" if len(volumes) == len(truths) else "part"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the outcomes here")
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    readers = {"MONAI": monai, "SimpleITK": simpleitk, "meddiff": ours}
    rows = {}
    print(f"{'folder':28} {'MONAI':24} {'SimpleITK':24} meddiff")
    for name in BUILDERS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "folder"
            truths = build(name, folder)
            rows[name] = {reader: outcome(read, folder, truths) for reader, read in readers.items()}
        print(f"{name:28} {rows[name]['MONAI']:24} {rows[name]['SimpleITK']:24} {rows[name]['meddiff']}")
    wrong = {reader: sum(row[reader].startswith("WRONG") for row in rows.values()) for reader in readers}
    print(
        f"{'wrong volumes, of ' + str(len(rows)):28} {wrong['MONAI']:<24} {wrong['SimpleITK']:<24} {wrong['meddiff']}"
    )
    if options.json:
        Path(options.json).write_text(json.dumps({"outcomes": rows, "wrong": wrong}, indent=2))


if __name__ == "__main__":
    main()
