from functools import cache

import numpy as np
import pytest
from nilearn.datasets import load_mni152_template

from meddiff.errors import ImageError
from meddiff.imaging.noise_level import white_noise_sigma

RNG = np.random.default_rng


@cache
def head(resolution=2):
    """The MNI152 head in model units, its background exactly -1."""
    values = load_mni152_template(resolution=resolution).get_fdata()
    return np.clip(values / np.percentile(values, 99.5), 0, 1) * 2 - 1


def axial(volume):
    return volume[:, :, volume.shape[2] // 2]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("resolution", [1, 2])
def test_white_noise_on_a_real_head_is_read_within_a_tenth(resolution, share):
    clean = axial(head(resolution))
    read = [white_noise_sigma(clean + 2 * share * RNG(draw).normal(size=clean.shape)) for draw in range(10)]
    assert np.mean(read) == pytest.approx(2 * share, rel=0.1)
    # the median of the slice's flattest thousand places scatters by 2 % at 1 mm, of its flattest few hundred by 4 % at 2 mm
    assert read == pytest.approx([2 * share] * 10, rel=0.15)


def test_the_level_is_in_the_unit_of_the_image():
    noisy = axial(head()) + 0.2 * RNG(0).normal(size=axial(head()).shape)
    assert white_noise_sigma(1000 * noisy + 24) == pytest.approx(1000 * white_noise_sigma(noisy))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_a_volume_is_read_along_all_three_axes(share):
    clean = head()[:, :, 30:60]
    assert white_noise_sigma(clean + 2 * share * RNG(1).normal(size=clean.shape)) == pytest.approx(2 * share, rel=0.1)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_exactly_constant_background_does_not_bias(share):
    clean = axial(head())
    noisy = [clean + 2 * share * RNG(draw).normal(size=clean.shape) for draw in range(10)]
    read = [white_noise_sigma(np.where(clean <= -1, -1, n)) for n in noisy]
    assert np.mean(read) == pytest.approx(2 * share, rel=0.1)
    assert np.mean(read) == pytest.approx(np.mean([white_noise_sigma(n) for n in noisy]), rel=0.02)


def test_ramps_are_not_noise():
    i, j = np.mgrid[:200, :200].astype(float)
    noise = 0.1 * RNG(3).normal(size=i.shape)
    assert white_noise_sigma(5 * i - 3 * j + noise) == pytest.approx(white_noise_sigma(noise), rel=0.05)
    assert white_noise_sigma(noise) == pytest.approx(0.1, rel=0.03)


def test_a_single_thin_slice_is_read_in_its_plane():
    noise = 0.1 * RNG(4).normal(size=(80, 1, 90))
    assert white_noise_sigma(noise) == white_noise_sigma(noise[:, 0])


def test_images_that_tell_no_level_are_refused():
    with pytest.raises(ImageError, match="only 0 places"):
        white_noise_sigma(np.full((40, 40), 3.0))
    with pytest.raises(ImageError, match="at least 2 axes of 4 voxels"):
        white_noise_sigma(np.zeros((3, 80)))
    with pytest.raises(ImageError, match="NaN or infinite"):
        white_noise_sigma(np.full((40, 40), np.nan))
