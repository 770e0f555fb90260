"""Repairs that a user asks for: what is made up is between its neighbours, and what was there stays."""

import numpy as np
import pytest
from irregular import ORIGIN, SPACING, STEP, Folder, build, plane

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series


def paths(folder):
    return sorted(folder.iterdir())


def test_a_missing_slice_becomes_the_mean_of_its_neighbours(tmp_path):
    build("missing slice", tmp_path / "a")
    build("control", tmp_path / "b")
    (series,), refused = find_series(paths(tmp_path / "a"), repairs=["fill-gaps"])
    assert (series.repairs, refused) == (("fill-gaps",), [])
    volume, whole = read_series(series.files, repairs=series.repairs), read_series(paths(tmp_path / "b"))
    assert volume.geometry.close(whole.geometry, 1e-6)
    assert series.geometry.close(whole.geometry, 1e-6)
    kept = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(volume.array[..., kept], whole.array[..., kept])
    np.testing.assert_array_equal(volume.array[..., 3], (whole.array[..., 2] + whole.array[..., 4]) / 2)


def test_two_missing_neighbours_are_weighted_by_their_distance(tmp_path):
    Folder(tmp_path).stack([0, 1, 2, 5, 6, 7, 8, 9])
    volume = read_series(paths(tmp_path), repairs=["fill-gaps"])
    low, high = volume.array[..., 2], volume.array[..., 5]
    np.testing.assert_allclose(volume.array[..., 3], low * 2 / 3 + high / 3, rtol=0, atol=1e-3)
    np.testing.assert_allclose(volume.array[..., 4], low / 3 + high * 2 / 3, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "ks",
    [[0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13], [0, 1, 3, 4, 6, 7, 9, 10], [0, 1, 2, 3.4, 4]],
    ids=["three", "over a quarter", "odd"],
)
def test_more_than_may_be_made_up_is_refused(tmp_path, ks):
    folder = Folder(tmp_path)
    for n, k in enumerate(ks):
        folder.add(n, place=ORIGIN + [0, 0, k * STEP])  # noqa: RUF005
    with pytest.raises(DicomError, match="irregular-spacing"):
        read_series(paths(tmp_path), repairs=["fill-gaps"])


@pytest.mark.parametrize(("name", "repair"), [("missing slice", "fill-gaps"), ("gantry tilt", "resample-tilt")])
def test_nothing_is_repaired_unless_it_is_asked_and_the_refusal_names_the_switch(tmp_path, name, repair):
    build(name, tmp_path / "a")
    other = {"fill-gaps", "resample-tilt"} - {repair}
    for allowed in ((), other):
        series, refused = find_series(paths(tmp_path / "a"), repairs=allowed)
        assert series == []
        assert f"--{repair}" in refused[0].detail


def test_a_regular_series_is_not_touched_by_repairs_that_may_be_made(tmp_path):
    build("control", tmp_path / "a")
    (series,), _ = find_series(paths(tmp_path / "a"), repairs=["fill-gaps", "resample-tilt"])
    assert series.repairs == ()
    one = read_series(series.files)
    np.testing.assert_array_equal(read_series(series.files, repairs=["fill-gaps", "resample-tilt"]).array, one.array)


def blob(at):
    """A smooth lump of 60 mm around a row, in stored numbers."""
    rows, columns = np.mgrid[:128, :128]
    return np.rint(2000 * np.exp(-((rows - at) ** 2 + (columns - 64) ** 2) / (2 * 15**2))).astype(np.int16)


@pytest.mark.parametrize("direction", [1, -1])
def test_an_upright_column_scanned_with_a_tilt_is_upright_again(tmp_path, direction):
    folder, drift = Folder(tmp_path), direction * 1.5
    for k in range(8):
        shift = drift * k / SPACING  # rows by which the table seems to move
        folder.add(k, pixels=blob(64 - shift), place=ORIGIN + [0, drift * k, STEP * k])  # noqa: RUF005
    (series,), _ = find_series(paths(tmp_path), repairs=["resample-tilt"])
    assert series.repairs == ("resample-tilt",)
    volume = read_series(series.files, repairs=series.repairs)
    assert volume.geometry.close(series.geometry, 1e-6)
    directions = volume.geometry.affine[:3, :3] / volume.geometry.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    assert volume.array.min() == -1024
    mass = volume.array + 1024
    rows = np.arange(mass.shape[1])[:, None]
    centre = (mass.sum(0) * rows).sum(0) / mass.sum((0, 1))
    at = [volume.geometry.affine @ [64, row, k, 1] for k, row in enumerate(centre)]
    truth = -(ORIGIN[1] + 64 * SPACING)  # RAS
    np.testing.assert_allclose([point[1] for point in at], truth, atol=0.05)


def test_a_tilt_leaves_no_pixel_behind(tmp_path):
    build("gantry tilt", tmp_path / "a")
    volume = read_series(paths(tmp_path / "a"), repairs=["resample-tilt"])
    grown = int(np.ceil(STEP * np.tan(np.radians(20)) * 5 / SPACING))
    assert volume.array.shape == (128, 128 + grown, 6)
    for k in (0, 5):  # the ends lie on whole rows but for less than a pixel
        assert abs(float(volume.array[..., k].max()) - float(plane(k).max() - 1024)) < 200
    np.testing.assert_array_equal(volume.array[:, :128, 0].T, plane(0) - 1024.0)


def test_an_unknown_repair_is_named():
    with pytest.raises(DicomError, match="no repair 'magic'; choose from fill-gaps, resample-tilt"):
        find_series([], repairs=["magic"])
