from itertools import permutations, product

import numpy as np
import pytest

from meddiff.errors import GeometryError
from meddiff.imaging.geometry import LETTERS, Geometry
from meddiff.imaging.volume import Volume

ORIENTATIONS = [
    "".join(LETTERS[a][s] for a, s in zip(axes, signs, strict=True))
    for axes in permutations(range(3))
    for signs in product((0, 1), repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_of_the_48_orientations_is_told_apart_and_centred(orientation):
    grid = Geometry.make((4, 5, 6), (1.0, 2.0, 3.0), orientation)
    assert grid.orientation == orientation
    np.testing.assert_allclose(grid.spacing_mm, (1, 2, 3))
    np.testing.assert_allclose(grid.corners_mm().mean(0), 0, atol=1e-12)
    assert grid.voxel_ml == pytest.approx(0.006)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_small_tilt_does_not_change_the_orientation(orientation):
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    grid = Geometry.make((4, 5, 6), (1.0, 2.0, 3.0), orientation)
    assert Geometry(grid.shape, tilt @ grid.affine).orientation == orientation


def test_lps_and_ras_differ_in_two_signs():
    grid = Geometry.make((4, 5, 6), (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(grid.lps(), np.diag([-1, -1, 1, 1]) @ grid.affine)
    assert Geometry.from_lps(grid.shape, grid.lps()).close(grid, 0)


def test_grids_are_close_within_the_tolerance_at_every_corner():
    grid = Geometry.make((100, 5, 6), (1.0, 1.0, 1.0))
    stretched = grid.affine.copy()
    stretched[0, 0] += 1e-4
    assert not grid.close(Geometry(grid.shape, stretched))
    assert grid.close(Geometry(grid.shape, stretched), tolerance_mm=0.011)
    assert not grid.close(Geometry.make((100, 5, 7), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4, 4), np.eye(4), "three axes"),
        ((4, 0, 4), np.eye(4), "three axes"),
        ((4, 4, 4), np.eye(3), "finite"),
        ((4, 4, 4), np.diag([1, 1, np.nan, 1]), "finite"),
        ((4, 4, 4), np.diag([1, 1, 0, 1]), "singular"),
        ((4, 4, 4), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
    ],
)
def test_what_is_no_grid_is_refused(shape, affine, message):
    with pytest.raises(GeometryError, match=message):
        Geometry(shape, affine)


def test_the_affine_cannot_be_changed_behind_our_back():
    affine = np.eye(4)
    grid = Geometry((2, 2, 2), affine)
    affine[0, 0] = 5
    assert grid.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 5


def test_array_and_geometry_must_agree():
    with pytest.raises(GeometryError, match=r"\(2, 2, 3\)"):
        Volume(np.zeros((2, 2, 3)), Geometry((2, 2, 2), np.eye(4)))


def test_repr_says_what_a_reader_wants_to_know():
    volume = Volume(np.zeros((2, 3, 4), np.float32), Geometry.make((2, 3, 4), (1, 1, 2.5)), "CT", "HU")
    assert repr(volume) == "Volume(CT, float32, 0 to 0 HU, Geometry(2 x 3 x 4 voxels, 1 x 1 x 2.5 mm, RAS))"
