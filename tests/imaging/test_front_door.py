"""Irregular folders: each volume that is read is truly in the folder, and every file is accounted for."""

import numpy as np
import pytest
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
