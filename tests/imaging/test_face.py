from pathlib import Path

import nilearn.datasets
import numpy as np
import pytest

from meddiff.imaging.face import FaceError, face_mask, without_face
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.phantom import phantom
from meddiff.imaging.volume import Volume

TEMPLATES = Path(nilearn.datasets.__file__).parent / "data"
WHOLE_HEAD = Path("/usr/share/mricron/templates/ch2.nii.gz")


@pytest.mark.parametrize("modality", ["ct", "mr"])
@pytest.mark.parametrize(("size", "slices"), [(64, None), (96, 24)])
def test_no_brain_voxel_of_a_phantom_is_touched(modality, size, slices):
    truth = phantom(0, modality=modality, size=size, slices=slices)
    mask = face_mask(truth.image)
    assert not mask[np.isin(truth.label.array, (1, 2, 3, 4))].any()
    assert mask[truth.label.array == 5].any()  # scalp, that is skin


def test_no_brain_voxel_of_the_mni_head_is_touched():
    image = read_nifti(TEMPLATES / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", modality="MR")
    tissue = [read_nifti(TEMPLATES / f"mni_icbm152_{t}_tal_nlin_sym_09a_converted.nii.gz").array for t in ("gm", "wm")]
    out, mask = without_face(image)
    brain = sum(tissue) > 0.1 * max(t.max() for t in tissue)
    assert brain.sum() > 1_500_000  # mm3
    np.testing.assert_array_equal(out.array[brain], image.array[brain])
    assert mask.any()


@pytest.mark.skipif(not WHOLE_HEAD.exists(), reason="the head with a face is in Debian's mricron-data")
def test_the_face_of_a_whole_head_goes_and_its_brain_stays():
    image = read_nifti(WHOLE_HEAD, modality="MR")
    brain = read_nifti(WHOLE_HEAD.with_name("ch2bet.nii.gz"), modality="MR").array > 0
    mask = face_mask(image)
    assert not (mask & brain).any()
    head = image.array > 30
    assert (mask & head).sum() > 0.08 * (head & ~brain).sum()


def test_the_mask_is_before_and_below_the_brain_in_any_orientation():
    truth = phantom(0, modality="ct", size=64)
    expected = face_mask(truth.image)
    turned = np.flip(truth.image.array.transpose(2, 0, 1), axis=1).copy()  # axes S, L, A
    affine = truth.image.geometry.affine
    new = np.eye(4)
    new[:3, 0], new[:3, 1], new[:3, 2] = affine[:3, 2], -affine[:3, 0], affine[:3, 1]
    new[:3, 3] = affine[:3, 3] + affine[:3, 0] * (truth.image.array.shape[0] - 1)
    mask = face_mask(Volume(turned, Geometry(turned.shape, new), "CT", "HU"))
    np.testing.assert_array_equal(np.flip(mask, axis=1).transpose(1, 2, 0), expected)


@pytest.mark.parametrize("array", [np.zeros((40, 40, 40)), np.random.default_rng(0).normal(size=(40, 40, 40))])
def test_what_is_no_head_is_told(array):
    volume = Volume(array.astype(np.float32), Geometry.make((40, 40, 40), (4.0, 4.0, 4.0), "RAS"), "MR", "a.u.")
    with pytest.raises(FaceError, match=r"is found.*--strip-face"):
        face_mask(volume)
