import numpy as np
import pytest

from meddiff.errors import MetricError
from meddiff.metrics.tissue import compare_tissue, gather


def sets(n, value, spread=0.0, seed=0):
    """n images of 4 x 4 whose left half is a tissue of this value, the images differing by `spread`."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, 4, 4), int)
    labels[:, :2] = 1
    images = np.where(labels == 1, value + spread * rng.normal(size=(n, 1, 1)), -1000.0)
    return images, labels, [f"p{i}" for i in range(n)]


def compared(one, other):
    tissues = [gather(images, labels, 1) for images, labels, _ in (one, other)]
    return compare_tissue(*tissues, (one[0].size, other[0].size), (one[2], other[2]))


def test_tissues_differ_by_what_they_were_given():
    found = compared(sets(6, 40.0), sets(9, 52.0))
    assert (found.real, found.synthetic, found.difference) == (40, 52, 12)
    assert (found.low, found.high) == (12, 12)
    assert (found.real_share, found.real_images, found.synthetic_images) == (0.5, 6, 9)
    assert (found.real_std, found.synthetic_std) == (0, 0)


def test_the_interval_is_that_of_the_normal_law():
    found = compared(sets(200, 40.0, 10.0), sets(300, 52.0, 5.0, seed=1))
    half = 1.96 * np.sqrt(10**2 / 200 + 5**2 / 300)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    assert found.low < found.difference < found.high
    assert found.real_std == pytest.approx(10, rel=0.1)


def test_every_voxel_counts_once_however_many_an_image_has():
    images, labels, names = sets(2, 0.0)
    images[0][labels[0] == 1] = 30
    labels[1], images[1] = 0, 0
    labels[1, 0, 0], images[1, 0, 0] = 1, 3
    found = compared((images, labels, names), sets(2, 0.0))
    assert found.real == pytest.approx((8 * 30 + 3) / 9)


def test_a_tissue_that_is_nowhere_is_refused():
    images, labels, names = sets(3, 40.0)
    with pytest.raises(MetricError, match="No synthetic image"):
        compared((images, labels, names), (images, 0 * labels, names))
    with pytest.raises(MetricError, match="no image"):
        gather([], [], 1)
