from itertools import permutations, product

import numpy as np
import pytest
import torch

from meddiff.config import Augment, DataConfig, Percentile
from meddiff.data.transforms import augmentation, intensity_record, placed, preprocessing, to_meta, to_volume, undo
from meddiff.errors import ConfigError
from meddiff.imaging.geometry import LETTERS, Geometry
from meddiff.imaging.phantom import phantom
from meddiff.imaging.volume import Volume
from meddiff.intensity_config import Window

ORIENTATIONS = [
    "".join(LETTERS[a][s] for a, s in zip(axes, signs, strict=True))
    for axes in permutations(range(3))
    for signs in product((0, 1), repeat=3)
]


def settings(**changes):
    base = {"manifest": "x.jsonl", "spacing_mm": (2, 2, 3), "size": (16, 16), "intensity": Window(low=-1000, high=1000)}
    return DataConfig(**{**base, **changes})


def scan(orientation="LPS", spacing=(2.0, 2.0, 3.0)):
    array = np.random.default_rng(0).uniform(-900, 900, (8, 10, 12)).astype(np.float32)
    return Volume(array, Geometry.make(array.shape, spacing, orientation), "CT", "HU")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_scan_of_any_orientation_survives_the_round_trip_in_place_and_in_hu(orientation):
    """The spacing is the scan's own here: what is left is geometry and intensity, and both are exact."""
    volume = scan(orientation)
    spacing = [0.0, 0.0, 0.0]
    for i, letter in enumerate(orientation):
        axis = next(a for a, ends in enumerate(LETTERS) if letter in ends)
        spacing[axis] = volume.geometry.spacing_mm[i]
    compose = preprocessing(settings(spacing_mm=tuple(spacing)))
    data = compose({"image": to_meta(volume)})
    assert Geometry(data["image"].shape[1:], np.asarray(data["image"].affine)).orientation == "RAS"
    back = to_volume(undo(compose, data, "image", data["image"].as_tensor()), "CT", "HU")
    assert back.geometry.close(volume.geometry, 1e-4)
    np.testing.assert_allclose(back.array, volume.array, atol=1e-3)


def test_resampled_smooth_anatomy_returns_to_its_own_grid():
    volume = phantom(3, modality="mr", size=48).image
    compose = preprocessing(settings(spacing_mm=(3.0, 3.0, 4.0), intensity=Percentile(low=0, high=100)))
    data = compose({"image": to_meta(volume)})
    back = to_volume(undo(compose, data, "image", data["image"].as_tensor()), "MR", "a.u.")
    assert back.geometry.close(volume.geometry, 1e-3)
    inside = (slice(6, -6),) * 3
    assert np.corrcoef(back.array[inside].ravel(), volume.array[inside].ravel())[0, 1] > 0.98


def test_window_maps_its_limits_to_one_and_clips_beyond():
    array = np.array([-2000, -1000, 0, 1000, 3000], dtype=np.float32).reshape(5, 1, 1)
    volume = Volume(array, Geometry((5, 1, 1), np.eye(4)), "CT", "HU")
    image = preprocessing(settings(spacing_mm=(1, 1, 1)))({"image": to_meta(volume)})["image"]
    assert image.flatten().tolist() == [-1, -1, 0, 1, 1]
    assert intensity_record(image) == (0.001, 0.0)


def test_percentiles_are_those_of_the_volume():
    volume = scan()
    image = preprocessing(settings(intensity=Percentile(low=10, high=90)))({"image": to_meta(volume)})["image"]
    scale, offset = intensity_record(image)
    low, high = np.percentile(volume.array, [10, 90])
    np.testing.assert_allclose([scale * low + offset, scale * high + offset], [-1, 1], atol=1e-5)


def test_a_constant_volume_has_no_percentiles():
    volume = Volume(np.zeros((4, 4, 4), np.float32), Geometry.make((4, 4, 4), (2, 2, 3)))
    with pytest.raises(RuntimeError) as e:
        preprocessing(settings(intensity=Percentile()))({"image": to_meta(volume)})
    assert isinstance(e.value.__cause__, ConfigError)


def test_two_spacings_leave_the_distance_between_slices():
    image = preprocessing(settings(spacing_mm=(4, 4)))({"image": to_meta(scan())})["image"]
    np.testing.assert_allclose(image.pixdim, [4, 4, 3])


def test_coarser_sampling_averages_what_it_cannot_show():
    stripes = np.tile(np.array([-800, 800], dtype=np.float32), 32).reshape(64, 1, 1).repeat(8, 1).repeat(8, 2)
    volume = Volume(stripes, Geometry.make(stripes.shape, (1.0, 1.0, 1.0)), "CT", "HU")
    image = preprocessing(settings(spacing_mm=(4, 1, 1)))({"image": to_meta(volume)})["image"]
    assert image[0, 2:-2].abs().max() < 0.1  # bilinear sampling alone shows stripes of 0.8


def test_augmentation_follows_its_seed_and_keeps_the_background():
    act = augmentation(settings(augment=Augment(flip=True, rotate_deg=20, zoom=0.1, shift_mm=4)), 2)
    image = torch.full((1, 32, 32), -1.0)
    image[0, 8:20, 10:22] = 0.5
    results = []
    for seed in (1, 1, 2):
        act.set_random_state(seed=seed)
        results.append(torch.as_tensor(act({"image": image})["image"]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not torch.equal(results[0], results[2])
    assert all(r[0, 0, 0] == -1 for r in results)


def test_a_sagittal_slice_has_no_left_and_right_to_flip():
    with pytest.raises(ConfigError, match="sagittal slice does not have"):
        augmentation(settings(axis="sagittal", augment=Augment(flip=True)), 2)


@pytest.mark.parametrize(("axis", "shape"), [("axial", (4, 6, 1)), ("coronal", (4, 1, 6)), ("sagittal", (1, 4, 6))])
def test_a_generated_slice_lies_in_its_plane(axis, shape):
    volume = placed(np.zeros((4, 6), np.float32), (1.0, 2.0, 3.0), axis)
    assert volume.array.shape == shape
    assert volume.geometry.orientation == "RAS"
    np.testing.assert_allclose(volume.geometry.spacing_mm, (1, 2, 3))
