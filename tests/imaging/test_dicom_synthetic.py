import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_checks import OBLIQUE, ORIENTATIONS, errors_of, needs_dciodvfy, scan

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_synthetic import write_synthetic
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume


def sample(modality="CT", **where):
    image = scan(modality, **where)
    return Volume(image.array + np.float32(0.3), image.geometry, modality, image.unit)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_synthetic_series_comes_back_to_half_a_step_to_us_and_to_simpleitk(tmp_path, modality):
    image = sample(modality, turn=OBLIQUE)
    paths = write_synthetic(tmp_path, image, name="sample_00001")
    again = read_series(paths)
    step = float(pydicom.dcmread(paths[0]).RescaleSlope)
    assert step <= 2**-4
    assert np.abs(again.array - image.array).max() <= step / 2 + 1e-3  # float32 of thousands
    assert again.geometry.close(image.geometry, 1e-4)
    assert (again.modality, again.unit) == (modality, image.unit)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in paths])).T
    np.testing.assert_allclose(theirs, again.array, atol=1e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_every_voxel_keeps_its_place(tmp_path, orientation):
    image = scan(orientation=orientation, turn=OBLIQUE)
    again = read_series(write_synthetic(tmp_path, image, name="a"))
    index = np.indices(image.array.shape).reshape(3, -1)
    mm = image.geometry.affine @ np.vstack([index, np.ones(index.shape[1])])
    found = np.linalg.solve(again.geometry.affine, mm)[:3]
    np.testing.assert_allclose(found, np.rint(found), atol=1e-4)
    np.testing.assert_array_equal(again.array[tuple(np.rint(found).astype(int))], image.array.ravel())


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_slice_says_that_it_is_synthetic_and_claims_no_acquisition(tmp_path, modality):
    for path in write_synthetic(tmp_path, sample(modality), name="sample_00001"):
        ds = pydicom.dcmread(path)
        assert ds.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert ds.SeriesDescription == ds.StudyDescription == "synthetic, meddiff"
        assert "no patient" in ds.DerivationDescription
        assert str(ds.PatientName) == "SYNTHETIC^MEDDIFF"
        assert ds.PatientID.startswith("SYNTHETIC-")
        assert ds.ContributingEquipmentSequence[0].Manufacturer == "meddiff"
        assert ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        for keyword in (
            "PatientSex",
            "PatientBirthDate",
            "StudyDate",
            "StudyTime",
            "KVP",
            "EchoTime",
            "InstitutionName",
        ):
            assert not ds.get(keyword), keyword
        uids = [ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID]
        assert all(uid.startswith("2.25.") for uid in uids)


def test_the_same_sample_is_the_same_bytes_and_another_another_patient(tmp_path):
    a, b, c = (write_synthetic(tmp_path / d, sample(), name=n) for d, n in (("a", "x"), ("b", "x"), ("c", "y")))
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]
    series, refused = find_series([*a, *c])
    assert (len({one.patient_id for one in series}), len({one.study_uid for one in series}), refused) == (2, 2, [])


@needs_dciodvfy
@pytest.mark.parametrize("body_part", ["", "HEAD"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dciodvfy_finds_no_error_in_a_synthetic_series(tmp_path, modality, body_part):
    paths = write_synthetic(tmp_path, sample(modality, turn=OBLIQUE), name="sample_00001", body_part=body_part)
    assert errors_of(paths[0]) == errors_of(paths[-1]) == []


def test_what_cannot_be_a_series_is_refused(tmp_path):
    image = sample()
    with pytest.raises(DicomError, match="modality OT is not written"):
        write_synthetic(tmp_path, Volume(image.array, image.geometry), name="a")
    with pytest.raises(DicomError, match="cannot be stored"):
        write_synthetic(tmp_path, Volume(image.array * np.inf, image.geometry, "CT", "HU"), name="a")
    sheared = np.array(image.geometry.affine)
    sheared[0, 2] += 1
    with pytest.raises(DicomError, match="shear"):
        write_synthetic(tmp_path, Volume(image.array, Geometry(image.array.shape, sheared), "CT", "HU"), name="a")
    write_synthetic(tmp_path, image, name="a")
    with pytest.raises(DicomError, match="holds slices already"):
        write_synthetic(tmp_path, image, name="a")
