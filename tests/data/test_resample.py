import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from meddiff.data.resample import Resampled, interpolated

SHEARED = np.array([[0.9, -0.3, 0.1, -12.0], [0.3, 1.1, 0.2, 7.0], [-0.1, 0.1, 2.4, 30.0], [0, 0, 0, 1]])
OBLIQUE = SHEARED.copy()
OBLIQUE[:3, :3] = np.linalg.qr(SHEARED[:3, :3])[0] * (0.9, 1.1, 2.4)


def scan(shape=(2, 9, 11, 7), affine=OBLIQUE):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=torch.from_numpy(affine))


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("spacing", [(1.5, 0.7, 2.0), (0.4, 3.0, 5.0), (float("nan"), 1.3, float("nan"))])
def test_any_spacing_of_any_grid_is_that_of_monai(spacing, nearest, affine):
    theirs = Spacingd(("image",), spacing, mode="nearest" if nearest else "bilinear", padding_mode="border")
    expected = theirs({"image": scan(affine=affine)})["image"]
    found = Resampled(("image",), spacing, nearest=nearest)({"image": scan(affine=affine)})["image"]
    torch.testing.assert_close(found.affine, expected.affine)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_the_inverse_is_back_on_the_grid_it_came_from(affine):
    image = scan(affine=affine)
    act = Resampled(("image",), (0.8, 0.9, 1.1))
    there = act({"image": image})
    back = act.inverse(there)["image"]
    torch.testing.assert_close(back.affine, image.affine)
    assert back.shape == image.shape
    assert not back.applied_operations


def test_nothing_is_said_and_the_image_that_was_given_is_as_it_was():
    image = scan()
    act = Resampled(("image",), (0.8, 0.9, 1.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        act.inverse(act({"image": image}))
    torch.testing.assert_close(image.affine, torch.from_numpy(OBLIQUE))
    assert not image.applied_operations


def test_a_ramp_stays_a_ramp_there_and_back():
    ramp = torch.arange(20.0)[None, :, None, None].expand(1, 20, 3, 3)
    fine = interpolated(ramp, 1, 77, 0.25)
    torch.testing.assert_close(fine[0, :, 0, 0], torch.arange(77) * 0.25)
    torch.testing.assert_close(interpolated(fine, 1, 20, 4.0), ramp)


def test_positions_beyond_the_last_voxel_take_its_value():
    values = torch.tensor([1.0, 5.0]).view(1, 2, 1, 1)
    assert interpolated(values, 1, 4, 0.6).flatten().tolist() == pytest.approx([1, 3.4, 5, 5])


def test_a_grid_of_the_same_spacing_is_left_alone():
    image = scan()
    same = Resampled(("image",), np.linalg.norm(OBLIQUE[:3, :3], axis=0))({"image": image})["image"]
    assert torch.equal(same.as_tensor(), image.as_tensor())
