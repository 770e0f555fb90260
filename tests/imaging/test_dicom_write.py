import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_checks import ORIENTATIONS, WHO, rotation

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_write import uid, write_series
from meddiff.imaging.geometry import LPS, Geometry
from meddiff.imaging.volume import Volume


def volume(modality="CT", orientation="LPS", shape=(4, 5, 6), turn=(0.0, 0.0, 0.0), spacing=(0.7, 1.1, 2.5)):
    low = -1024 if modality == "CT" else 0
    array = np.random.default_rng(1).integers(low, 3000, shape).astype(np.float32)
    grid = Geometry.make(shape, spacing, orientation)
    return Volume(array, Geometry(shape, rotation(*turn) @ grid.affine), modality, "HU" if modality == "CT" else "a.u.")


def write(folder, scan, seed=0):
    return write_series(folder, scan, identity=WHO, series_description="PLANTED SERIES", uid_seed=seed)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("turn", [(0, 0, 0), (0.3, -0.2, 0.5), (1.2, 0.7, -2.9)])
def test_series_survives_a_round_trip_to_the_same_values_and_place(tmp_path, modality, turn):
    scan = volume(modality, turn=turn)
    again = read_series(write(tmp_path, scan))
    np.testing.assert_array_equal(again.array, scan.array)
    assert again.geometry.close(scan.geometry, 1e-4)
    assert (again.modality, again.unit, again.array.dtype) == (modality, scan.unit, np.float32)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_the_patient_in_all_48_orientations(tmp_path, orientation):
    scan = volume(orientation=orientation, shape=(3, 4, 5), turn=(0.1, 0.2, -0.1))
    again = read_series(write(tmp_path, scan))
    index = np.indices(scan.array.shape).reshape(3, -1)
    mm = scan.geometry.affine @ np.vstack([index, np.ones(index.shape[1])])
    found = (np.linalg.inv(again.geometry.affine) @ mm)[:3]
    np.testing.assert_allclose(found, np.rint(found), atol=1e-4)
    np.testing.assert_array_equal(again.array[tuple(np.rint(found).astype(int))], scan.array[tuple(index)])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_oblique_series_is_the_same_volume_to_simpleitk(tmp_path, modality):
    scan = volume(modality, turn=(0.3, -0.2, 0.5))
    image = sitk.ReadImage([str(path) for path in write(tmp_path, scan)])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, scan.array)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(LPS @ lps, scan.geometry.affine, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_uids(tmp_path):
    a, b, c = (write(tmp_path / name, volume(), seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    uids = [{pydicom.dcmread(p)[k].value for p in s for k in ("SOPInstanceUID", "SeriesInstanceUID")} for s in (a, c)]
    assert len(uids[0]) == len(a) + 1
    assert not uids[0] & uids[1]


def test_a_uid_is_valid_and_follows_from_what_it_names():
    assert all(uid(7, "instance", k).is_valid and uid(7, "instance", k).startswith("2.25.") for k in range(100))
    assert uid(7, "series") == uid(7, "series") != uid(7, "study")
    assert uid(1, 23) != uid(12, 3)


def test_hounsfield_units_are_stored_with_the_intercept_of_ct(tmp_path):
    header = pydicom.dcmread(write(tmp_path, volume())[0])
    assert (header.RescaleIntercept, header.RescaleSlope, header.RescaleType) == (-1024, 1, "HU")
    assert header.pixel_array.min() >= 0


def test_values_are_rounded_to_whole_numbers(tmp_path):
    scan = volume()
    again = read_series(write(tmp_path, Volume(scan.array + np.float32(0.3), scan.geometry, "CT", "HU")))
    np.testing.assert_array_equal(again.array, scan.array)


def test_the_identity_is_written_where_readers_look_for_it(tmp_path):
    paths = write(tmp_path, volume())
    header = pydicom.dcmread(paths[0])
    assert (header.PatientName, header.PatientID) == ("PHANTOM^PLANTED", "PLANTED-1")
    assert (header.PatientBirthDate, header.InstitutionName) == ("19700101", "PLANTED HOSPITAL")
    (series,), refused = find_series(paths)
    assert (series.patient_id, series.description, refused) == ("PLANTED-1", "PLANTED SERIES", [])
    assert series.files == tuple(paths)


@pytest.mark.parametrize("value", [np.nan, np.inf, 40_000.0, -40_000.0])
def test_values_that_16_bits_cannot_hold_are_refused(tmp_path, value):
    scan = volume()
    scan.array[0, 0, 0] = value
    with pytest.raises(DicomError, match="do not fit 16 bits"):
        write(tmp_path, scan)


def test_a_negative_mr_value_is_refused(tmp_path):
    scan = volume("MR")
    scan.array[0, 0, 0] = -1
    with pytest.raises(DicomError, match="values from -1 to"):
        write(tmp_path, scan)


def test_a_shear_is_refused(tmp_path):
    affine = np.eye(4)
    affine[0, 2] = 0.2
    with pytest.raises(DicomError, match="shear"):
        write(tmp_path, Volume(np.zeros((2, 2, 2), np.float32), Geometry((2, 2, 2), affine), "CT", "HU"))


def test_another_modality_is_refused(tmp_path):
    with pytest.raises(DicomError, match="modality OT is not written"):
        write(tmp_path, Volume(np.zeros((2, 2, 2), np.float32), Geometry((2, 2, 2), np.eye(4))))
