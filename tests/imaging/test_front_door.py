"""Irregular folders: each volume that is read is truly in the folder, and every file is accounted for."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from dicom_checks import REAL_CT
from irregular import BUILDERS, build, is_true

from meddiff.imaging.dicom import find_series, read_series


@pytest.mark.parametrize("name", BUILDERS)
def test_every_volume_of_an_irregular_folder_is_a_true_one(tmp_path, name):
    truths = build(name, tmp_path / "folder")
    paths = sorted(path for path in (tmp_path / "folder").rglob("*") if path.is_file())
    series, refused = find_series(paths)
    volumes = [read_series(one.files, volume=one.volume) for one in series]
    assert all(is_true(one.array, one.geometry.affine, truths) for one in volumes)
    assert len({one.array.tobytes() for one in volumes}) == len(volumes)
    accounted = [path for one in series for path in one.files] + [one.path for one in refused]
    assert sorted(accounted) == paths
    _, expected, reasons = BUILDERS[name]
    assert (len(series), {one.reason for one in refused}) == (expected, reasons)


def test_there_are_at_least_22_irregular_folders():
    assert len(BUILDERS) - 1 >= 22


def test_the_judge_tells_a_wrong_volume_from_a_true_one(tmp_path):
    (truth,) = build("control", tmp_path / "folder")
    flipped = truth.affine @ np.diag([-1, 1, 1, 1])
    flipped[:3, 3] += truth.affine[:3, 0] * (truth.array.shape[0] - 1)
    assert is_true(truth.array, truth.affine, [truth])
    assert is_true(truth.array[::-1], flipped, [truth])
    assert not is_true(truth.array[::-1], truth.affine, [truth])
    assert not is_true(truth.array[..., 1:], truth.affine, [truth])
    assert not is_true(truth.array + 1, truth.affine, [truth])


def test_a_volume_is_the_same_whatever_else_is_installed():
    """ITK, SimpleITK, GDCM and MONAI may be there or not: the reader asks for none of them."""
    code = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "if sys.argv[2] == 'alone':\n"
        "    sys.modules.update(dict.fromkeys(('itk', 'SimpleITK', 'gdcm', 'monai', 'torch', 'dicom2nifti')))\n"
        "from meddiff.imaging.dicom import read_series\n"
        "volume = read_series(sorted(Path(sys.argv[1]).iterdir()))\n"
        "print(hashlib.sha256(volume.array.tobytes() + volume.geometry.affine.tobytes()).hexdigest())\n"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code, REAL_CT[0].parent, how], capture_output=True, text=True, check=True
        ).stdout
        for how in ("alone", "among others")
    ]
    volume = read_series(REAL_CT)
    own = hashlib.sha256(volume.array.tobytes() + volume.geometry.affine.tobytes()).hexdigest()
    assert digests == [f"{own}\n"] * 2
