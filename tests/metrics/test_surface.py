import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from meddiff.errors import GeometryError
from meddiff.metrics.surface import surface_distances, surface_per_label

SPACING = (0.7, 1.1, 3.0)


def blobs(seed, shape=(14, 12, 10)):
    smooth = np.random.default_rng(seed).normal(size=shape)
    for axis in range(len(shape)):
        smooth = smooth + np.roll(smooth, 1, axis) + np.roll(smooth, 2, axis)
    return smooth > smooth.mean()


def box(offset=(0, 0, 0), shape=(24, 20, 16)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(5 + o, 10 + o) for o in offset)] = True
    return mask


def by_hand(a, b, spacing):
    """All pairs of surface points, straight from the definition."""

    def points(mask):
        padded = np.pad(mask, 1)
        inner = np.logical_and.reduce([np.roll(padded, s, i) for i in range(mask.ndim) for s in (-1, 1)])
        return (np.argwhere(padded & ~inner) - 1) * spacing

    p, q = points(a), points(b)
    d = np.linalg.norm(p[:, None] - q[None], axis=-1)
    there, back = d.min(1), d.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize("axes", [2, 3])
def test_distances_are_those_of_all_pairs_of_surface_points(axes):
    a, b = (blobs(seed, (14, 12, 10)[:axes]) for seed in (0, 1))
    np.testing.assert_allclose(surface_distances(a, b, SPACING[:axes]), by_hand(a, b, SPACING[:axes]), rtol=1e-12)


def test_distances_are_those_of_monai():
    a, b = blobs(2), blobs(3)
    one, other = (torch.from_numpy(m)[None, None].float() for m in (a, b))
    found = surface_distances(a, b, SPACING)
    hd95 = compute_hausdorff_distance(one, other, True, percentile=95, spacing=SPACING)
    assd = compute_average_surface_distance(one, other, True, symmetric=True, spacing=SPACING)
    assert found.hd95_mm == pytest.approx(hd95.item(), rel=1e-6)
    assert found.assd_mm == pytest.approx(assd.item(), rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 4])
def test_a_plate_moved_by_k_voxels_along_its_normal_is_k_spacings_away(axis, k):
    a = np.zeros((12, 12, 12), bool)
    a[(slice(None),) * axis + (3,)] = True
    found = surface_distances(a, np.roll(a, k, axis), SPACING)
    assert found == pytest.approx((k * SPACING[axis],) * 2)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_point_moved_by_k_voxels_is_k_spacings_away(axis):
    a = np.zeros((12, 12, 12), bool)
    a[3, 4, 5] = True
    assert surface_distances(a, np.roll(a, 6, axis), SPACING) == pytest.approx((6 * SPACING[axis],) * 2)


def test_a_box_moved_by_k_voxels_has_that_hausdorff_distance_and_a_smaller_mean():
    found = surface_distances(box(), box((4, 0, 0)), SPACING)
    assert found.hd95_mm == pytest.approx(4 * SPACING[0])
    assert 0 < found.assd_mm < found.hd95_mm


def test_distances_are_symmetric_scale_with_the_spacing_and_ignore_where_both_lie():
    a, b = blobs(4), blobs(5)
    found = surface_distances(a, b, SPACING)
    assert surface_distances(b, a, SPACING) == pytest.approx(found)
    assert surface_distances(a, b, [2.5 * s for s in SPACING]) == pytest.approx([2.5 * f for f in found])
    margin = [(3, 1), (0, 5), (2, 2)]
    assert surface_distances(np.pad(a, margin), np.pad(b, margin), SPACING) == pytest.approx(found)


def test_axes_and_their_spacings_may_be_reordered_together():
    a, b = blobs(6), blobs(7)
    turned = surface_distances(a.transpose(2, 0, 1), b.transpose(2, 0, 1), (SPACING[2], *SPACING[:2]))
    assert turned == pytest.approx(surface_distances(a, b, SPACING))


def test_a_slice_of_a_volume_is_two_dimensional():
    a, b = blobs(8, (14, 12)), blobs(9, (14, 12))
    assert surface_distances(a[..., None], b[..., None], SPACING) == surface_distances(a, b, SPACING[:2])


def test_what_is_missed_is_a_diagonal_away_and_what_is_rightly_absent_is_not_away():
    mask, empty = box(shape=(20, 20, 10)), np.zeros((20, 20, 10), bool)
    far = surface_distances(mask, empty, (3, 4, 0.1))
    assert far == pytest.approx((np.sqrt(60**2 + 80**2 + 1),) * 2)
    assert surface_distances(empty, mask, (3, 4, 0.1)) == far
    assert surface_distances(empty, empty, (3, 4, 0.1)) == (0, 0)
    assert surface_distances(mask, mask, (3, 4, 0.1)) == (0, 0)


def test_no_two_voxels_are_further_apart_than_a_missed_structure():
    a, b = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    a[0, 0, 0] = b[-1, -1, -1] = True
    assert surface_distances(a, b, SPACING) < surface_distances(a, np.zeros_like(a), SPACING)


def test_every_label_has_both_distances():
    a, b = box().astype(int) * 3, box((0, 2, 0)).astype(int) * 3
    found = surface_per_label(a, b, {"lesion": 3, "absent": 1}, SPACING)
    assert list(found) == ["hd95_mm/lesion", "assd_mm/lesion", "hd95_mm/absent", "assd_mm/absent"]
    assert found["hd95_mm/lesion"] == pytest.approx(2 * SPACING[1])
    assert found["assd_mm/absent"] == 0


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, float("nan"))])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    with pytest.raises(GeometryError, match="3 positive voxel sizes"):
        surface_distances(box(), box(), spacing)
