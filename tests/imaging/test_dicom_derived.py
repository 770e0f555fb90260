import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_checks import OBLIQUE, ORDERS, REAL_CT, errors_of, needs_dciodvfy, rearranged, scan, write
from pydicom.uid import PositronEmissionTomographyImageStorage

from meddiff.errors import DicomError, GeometryError
from meddiff.imaging.dicom import read_series
from meddiff.imaging.dicom_derived import write_derived
from meddiff.imaging.dicom_values import quantised
from meddiff.imaging.geometry import LPS, Geometry
from meddiff.imaging.volume import Volume


def derive(folder, volume, source):
    words = {"series_description": "Denoised by meddiff", "derivation": "Gaussian noise of 12 HU removed"}
    return write_derived(folder, volume, source, **words)


def restored(image):
    noise = np.random.default_rng(2).normal(0, 10, image.array.shape).astype(np.float32)
    return Volume(image.array + noise, image.geometry, image.modality, image.unit)


def headers(paths):
    return [pydicom.dcmread(path) for path in paths]


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "series", scan(turn=OBLIQUE))


@pytest.mark.parametrize("source", ["real CT", "CT", "MR"])
def test_values_come_back_to_half_a_step_at_the_same_place_to_us_and_to_simpleitk(tmp_path, source):
    files = REAL_CT if source == "real CT" else write(tmp_path / "series", scan(source, turn=OBLIQUE))
    image = read_series(files)
    clean = restored(image)
    paths = derive(tmp_path / "out", clean, files)
    again = read_series(paths)
    step = float(headers(paths)[0].RescaleSlope)
    assert step < 0.1
    assert np.abs(again.array - clean.array).max() <= step / 2 + 1e-3  # float32 of thousands
    assert again.geometry.close(image.geometry, 1e-9)
    theirs = sitk.ReadImage([str(path) for path in paths])
    np.testing.assert_allclose(sitk.GetArrayFromImage(theirs).T, again.array, atol=1e-3)
    lps = np.eye(4)
    lps[:3, :3] = np.array(theirs.GetDirection()).reshape(3, 3) * theirs.GetSpacing()
    lps[:3, 3] = theirs.GetOrigin()
    np.testing.assert_allclose(LPS @ lps, image.geometry.affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_whole_numbers_are_kept_as_they_are(tmp_path, modality):
    image = scan(modality)
    paths = derive(tmp_path / "out", image, write(tmp_path / "series", image))
    np.testing.assert_array_equal(read_series(paths).array, image.array)
    assert ("RescaleSlope" in headers(paths)[0]) == (modality == "CT")


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_any_order_of_axes_and_of_files_gives_the_same_bytes(tmp_path, files, axes, flips):
    clean = restored(read_series(files))
    plain = derive(tmp_path / "a", clean, files)
    other = derive(tmp_path / "b", rearranged(clean, axes, flips), files[::-1])
    assert [p.read_bytes() for p in plain] == [p.read_bytes() for p in other]


def test_each_slice_refers_to_the_one_it_came_from_and_keeps_its_place_and_patient(tmp_path):
    image = read_series(REAL_CT)
    paths = derive(tmp_path / "out", restored(image), REAL_CT)
    sources = {ds.SOPInstanceUID: ds for ds in headers(REAL_CT)}
    found = headers(paths)
    assert len({ds.SOPInstanceUID for ds in found}) == len(sources) == 5
    for ds in found:
        source = sources.pop(ds.SourceImageSequence[0].ReferencedSOPInstanceUID)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID", "PatientID",
                        "PatientName", "StudyInstanceUID", "StudyDate", "KVP", "ConvolutionKernel", "WindowCenter"):  # fmt: skip
            assert ds[keyword].value == source[keyword].value, keyword
        assert ds.ImageType == ["DERIVED", "SECONDARY", "AXIAL"]
        assert (ds.SeriesDescription, ds.DerivationDescription) == (
            "Denoised by meddiff",
            "Gaussian noise of 12 HU removed",
        )
        assert ds.SOPInstanceUID.startswith("2.25.")
        assert ds.SeriesInstanceUID.startswith("2.25.")
        assert [item.Manufacturer for item in ds.ContributingEquipmentSequence] == ["GE MEDICAL SYSTEMS", "meddiff"]
        assert ds.Manufacturer == "meddiff"


def test_nothing_private_and_nothing_of_the_old_pixels_is_kept(tmp_path, files):
    for path in files:
        header = pydicom.dcmread(path)
        header.private_block(0x0029, "SECRET", create=True).add_new(1, "LO", "private text")
        header.add_new(0x60003000, "OW", bytes(4))
        header.add_new("SmallestImagePixelValue", "SS", 3)
        header.add_new("PixelPaddingValue", "SS", -5)
        header.InstanceCreationDate = "20240101"
        header.save_as(path)
    for ds in headers(derive(tmp_path / "out", restored(read_series(files)), files)):
        assert not any(element.tag.is_private or element.tag.group == 0x6000 for element in ds)
        assert not {"SmallestImagePixelValue", "PixelPaddingValue", "InstanceCreationDate"} & set(ds.dir())


def test_odd_values_of_the_source_are_kept_and_reach_no_log(tmp_path, files, caplog, capfd):
    for path in files:
        header = pydicom.dcmread(path)
        header.PatientName, header.AcquisitionDateTime, header.StationName = "PLANTED^SOMEONE", "20200101", "HERE"
        header.save_as(path)
        content = path.read_bytes().replace(b"PLANTED^SOMEONE", b"PLANTED=A=B=C=D").replace(b"20200101", b"PLANTED!")
        path.write_bytes(content)
    paths = derive(tmp_path / "out", restored(read_series(files)), files)
    content = paths[0].read_bytes()
    assert b"PLANTED=A=B=C=D" in content
    assert b"PLANTED!" in content
    assert pydicom.dcmread(paths[0]).ContributingEquipmentSequence[0].StationName == "HERE"
    assert "PLANTED" not in caplog.text + "".join(capfd.readouterr())


@needs_dciodvfy
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("source", ["real CT", "CT", "MR"])
def test_dciodvfy_finds_no_error_in_a_derived_series(tmp_path, source, whole):
    files = REAL_CT if source == "real CT" else write(tmp_path / "series", scan(source, turn=OBLIQUE))
    image = read_series(files)
    for path in derive(tmp_path / "out", image if whole else restored(image), files)[::4]:
        assert errors_of(path) == []


def test_pet_keeps_an_intercept_of_0_and_its_image_type(tmp_path, files):
    for path in files:
        header = pydicom.dcmread(path)
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        header.Modality, header.Units, header.RescaleIntercept, header.ImageType = (
            "PT",
            "GML",
            0,
            ["ORIGINAL", "PRIMARY"],
        )
        header.save_as(path)
    image = read_series(files)
    clean = Volume(image.array * np.float32(7.3), image.geometry, "PT", image.unit)
    paths = derive(tmp_path / "out", clean, files)
    ds = headers(paths)[0]
    assert (ds.RescaleIntercept, ds.ImageType, ds.Units) == (0, ["DERIVED", "PRIMARY"], "GML")
    assert np.abs(read_series(paths).array - clean.array).max() <= float(ds.RescaleSlope) / 2 + 1e-2


@pytest.mark.parametrize("low", [-1e6, -1024.5, 0, 0.1, 1e-6, 3e4])
@pytest.mark.parametrize("span", [0, 1e-5, 1, 4095.3, 65535, 1e7])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_every_range_of_values_comes_back_to_half_a_step(low, span, modality):
    values = np.linspace(low, low + span, 60).reshape(3, 4, 5)
    stored = quantised("x", values, modality)
    off = np.abs(stored.numbers * stored.slope + stored.intercept - values).max()
    assert off <= stored.slope / 2 * (1 + 1e-9)
    assert modality != "PT" or stored.intercept == 0


def test_a_range_with_fractions_uses_more_than_half_of_the_16_bits():
    stored = quantised("x", np.random.default_rng(0).uniform(-1000, 3000, (9, 9, 9)), "CT")
    assert int(stored.numbers.max()) - int(stored.numbers.min()) > 32767
    assert stored.slope == 2**-4


def test_what_cannot_be_a_derived_series_is_refused(tmp_path, files):
    clean = restored(read_series(files))
    shifted = np.array(clean.geometry.affine)
    shifted[2, 3] += 1
    with pytest.raises(GeometryError, match="is not on the grid"):
        derive(tmp_path / "out", Volume(clean.array, Geometry(clean.array.shape, shifted), "CT", "HU"), files)
    with pytest.raises(DicomError, match="the volume is MR, its source CT"):
        derive(tmp_path / "out", Volume(clean.array, clean.geometry, "MR"), files)
    with pytest.raises(DicomError, match="cannot be stored"):
        derive(tmp_path / "out", Volume(clean.array * np.nan, clean.geometry, "CT", "HU"), files)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DicomError, match="holds slices already"):
        derive(files[0].parent, clean, files)
