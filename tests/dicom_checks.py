"""What the tests of written DICOM share: a validator, a real series, and a scan in any order of axes."""

import shutil
import subprocess
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
import pytest

from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import LETTERS, Geometry
from meddiff.imaging.volume import Volume

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
REAL_CT = sorted((TEST_FILES / "dicomdirtests" / "98892001" / "CT5N").iterdir())
WHO = Identity("PHANTOM^PLANTED", "PLANTED-1", "19700101", "PLANTED HOSPITAL")
ORIENTATIONS = [
    "".join(LETTERS[a][s] for a, s in zip(axes, signs, strict=True))
    for axes in permutations(range(3))
    for signs in product((0, 1), repeat=3)
]
OBLIQUE = (0.3, -0.2, 0.5)
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")


def errors_of(path):
    """The lines of dciodvfy that are errors."""
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert said.strip(), "dciodvfy names at least the kind of object"
    return [line for line in said.splitlines() if line.startswith("Error")]


def rotation(x, y, z):
    turns = []
    for axis, angle in enumerate((x, y, z)):
        turn = np.eye(4)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turns.append(turn)
    return turns[0] @ turns[1] @ turns[2]


def scan(modality="CT", orientation="LPS", shape=(4, 5, 6), turn=(0.0, 0.0, 0.0)):
    array = np.random.default_rng(1).integers(0, 3000, shape).astype(np.float32)
    grid = Geometry.make(shape, (0.7, 1.1, 2.5), orientation)
    return Volume(array, Geometry(shape, rotation(*turn) @ grid.affine), modality, "HU" if modality == "CT" else "a.u.")


def write(folder, volume):
    return write_series(folder, volume, identity=WHO, series_description="PLANTED SERIES", uid_seed=0)


def rearranged(volume, axes, flips):
    """The same voxels at the same places, in another index order."""
    affine = np.array(volume.geometry.affine)
    array = volume.array.transpose(axes)
    affine[:3, :3] = affine[:3, list(axes)]
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Volume(np.flip(array, flips), Geometry(array.shape, affine), volume.modality, volume.unit)


ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in ((), (0, 2))]
