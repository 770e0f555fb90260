import numpy as np
import pytest
import torch

from meddiff.errors import GeometryError, MetricError
from meddiff.metrics.overlap import dice, dice_per_label, iou


def maps(seed, high=4, shape=(9, 8, 7)):
    return np.random.default_rng(seed).integers(0, high, shape)


def test_dice_and_iou_of_known_masks():
    a, b = np.array([[1, 1, 1, 0]]), np.array([[0, 1, 1, 1]])
    assert repr(dice(a, b)) == repr(2 / 3)  # a plain float, as JSON needs
    assert iou(a, b) == 1 / 2


@pytest.mark.parametrize("metric", [dice, iou])
def test_overlap_is_symmetric_and_one_for_equals(metric):
    a, b = maps(0, 2), maps(1, 2)
    assert metric(a, b) == metric(b, a)
    assert metric(a, a) == 1


def test_dice_follows_from_iou():
    a, b = maps(2, 2), maps(3, 2)
    assert dice(a, b) == pytest.approx(2 * iou(a, b) / (1 + iou(a, b)))


@pytest.mark.parametrize("metric", [dice, iou])
def test_empty_masks_have_results(metric):
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert (metric(empty, empty), metric(empty, full), metric(full, empty)) == (1, 0, 0)


def test_every_label_is_measured_by_itself():
    a, b = maps(4), maps(5)
    found = dice_per_label(torch.from_numpy(a), torch.from_numpy(b), {"grey": 2, "absent": 9})
    assert found == {"dice/grey": dice(a == 2, b == 2), "dice/absent": 1}


def test_a_probability_is_no_mask():
    with pytest.raises(MetricError, match=r"0 and 1; found values from 0\.5 to 0\.5"):
        dice(np.full(4, 0.5), np.ones(4))


def test_two_grids_are_refused():
    with pytest.raises(GeometryError, match=r"\(3, 3\) and \(3, 4\)"):
        dice(np.zeros((3, 3)), np.zeros((3, 4)))
