"""RTDOSE: the real files of pydicom, and both forms of GridFrameOffsetVector; numpy and SimpleITK are the oracles."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from meddiff.data.inputs import find_scans
from meddiff.data.manifest import Manifest, load_image
from meddiff.data.scan import scan, write_scan
from meddiff.errors import DicomError, ManifestError
from meddiff.imaging.dicom import find_series, read_series


def real(name):
    return Path(get_testdata_file(name, download=False))


def truth(ds):
    """Values and affine to LPS of a dose, whose offsets are relative, by the words of PS3.3 C.8.8.3."""
    row, column = np.reshape(ds.ImageOrientationPatient, (2, 3)).astype(float)
    down, across = map(float, ds.PixelSpacing)
    step = float(ds.GridFrameOffsetVector[1]) - float(ds.GridFrameOffsetVector[0])
    lps = np.eye(4)
    lps[:3] = np.stack([row * across, column * down, np.cross(row, column) * step, ds.ImagePositionPatient], 1)
    return ds.pixel_array.T * float(ds.DoseGridScaling), lps


def changed(tmp_path, change, name="x.dcm"):
    ds = pydicom.dcmread(real("rtdose.dcm"))
    change(ds)
    ds.save_as(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"])
def test_a_real_dose_has_its_values_and_place_in_any_syntax(name):
    values, lps = truth(pydicom.dcmread(real("rtdose.dcm")))
    volume = read_series([real(name)])
    np.testing.assert_array_equal(volume.array, values.astype(np.float32))
    np.testing.assert_allclose(volume.geometry.lps(), lps, rtol=0, atol=1e-4)
    assert (volume.modality, volume.unit, volume.array.shape) == ("RTDOSE", "relative", (10, 10, 15))
    assert (volume.array.min(), volume.array.max()) == pytest.approx((0.795, 1.254), abs=1e-6)


def test_a_real_dose_lies_where_simpleitk_puts_it():
    image = sitk.ReadImage(str(real("rtdose.dcm")))
    own = read_series([real("rtdose.dcm")]).geometry
    assert image.GetSize() == own.shape
    for index in ((0, 0, 0), (9, 0, 14), (3, 7, 5)):
        np.testing.assert_allclose((own.lps() @ [*index, 1])[:3], image.TransformIndexToPhysicalPoint(index), atol=1e-4)


def test_the_absolute_form_and_the_relative_one_are_one_volume(tmp_path):
    def absolute(ds):
        ds.GridFrameOffsetVector = [float(ds.ImagePositionPatient[2]) + float(mm) for mm in ds.GridFrameOffsetVector]

    first, second = read_series([real("rtdose.dcm")]), read_series([changed(tmp_path, absolute)])
    assert second.geometry.close(first.geometry, 1e-4)
    np.testing.assert_array_equal(second.array, first.array)


def test_offsets_that_fall_turn_the_planes_around(tmp_path):
    def falling(ds):
        ds.GridFrameOffsetVector = [-float(mm) for mm in ds.GridFrameOffsetVector]

    first, second = read_series([real("rtdose.dcm")]), read_series([changed(tmp_path, falling)])
    np.testing.assert_array_equal(second.array, first.array[..., ::-1])
    assert second.geometry.lps()[2, 3] == pytest.approx(first.geometry.lps()[2, 3] - 70)
    assert second.geometry.lps()[2, 2] == pytest.approx(5)


def test_a_turned_dose_of_16_bits_is_stacked_along_its_normal(tmp_path):
    def sagittal(ds):
        pixels = (ds.pixel_array // 100).astype("<u2")
        ds.ImageOrientationPatient, ds.BitsAllocated, ds.BitsStored, ds.HighBit = [0, 1, 0, 0, 0, -1], 16, 16, 15
        ds.PixelData, ds.DoseUnits, ds.DoseGridScaling = pixels.tobytes(), "GY", "2.5e-4"

    path = changed(tmp_path, sagittal)
    values, lps = truth(pydicom.dcmread(path))
    volume = read_series([path])
    np.testing.assert_array_equal(volume.array, values.astype(np.float32))
    np.testing.assert_allclose(volume.geometry.lps(), lps, rtol=0, atol=1e-4)
    assert volume.unit == "Gy"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"GridFrameOffsetVector": [0, 5, 10, 15, 20, 25, 30, 35, 45, 50, 55, 60, 65, 70, 75]},
         r"irregular-spacing: Slices 8 \(x.dcm, frame 8\) and 9 \(x.dcm, frame 9\) are 10.000 mm apart, the others 5.000 mm"),
        ({"GridFrameOffsetVector": [0, 5, 10, 5, *range(20, 75, 5)]}, "GridFrameOffsetVector neither rises nor falls"),
        ({"GridFrameOffsetVector": [*range(3, 78, 5)]}, "GridFrameOffsetVector starts at 3; 0 is expected, or in an axial"),
        ({"GridFrameOffsetVector": [0, 5]}, "GridFrameOffsetVector is missing or is not 15 numbers"),
        ({"GridFrameOffsetVector": None}, "GridFrameOffsetVector is missing"),
        ({"DoseGridScaling": None}, "DoseGridScaling is missing; its dose is unknown"),
        ({"DoseGridScaling": 0}, "DoseGridScaling is 0"),
        ({"DoseUnits": "CGY"}, "DoseUnits are CGY and DoseType is PHYSICAL; GY or RELATIVE"),
        ({"DoseType": None}, "DoseType is missing"),
        ({"PixelData": None}, "ends before its pixels"),
        ({"Rows": None}, "has no Rows and Columns"),
    ],
)  # fmt: skip
def test_a_dose_without_scale_or_place_is_refused_with_the_tag(tmp_path, change, match):
    def apply(ds):
        for keyword, value in change.items():
            if value is None:
                del ds[keyword]
            else:
                setattr(ds, keyword, value)

    with pytest.raises(DicomError, match=match):
        read_series([changed(tmp_path, apply)])


def test_what_is_no_physical_dose_says_so_in_its_unit(tmp_path):
    path = changed(tmp_path, lambda ds: (setattr(ds, "DoseType", "EFFECTIVE"), setattr(ds, "DoseUnits", "GY")))
    assert read_series([path]).unit == "Gy effective"


def test_two_doses_of_one_series_are_two_volumes_and_single_planes_are_one(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        changed(tmp_path, lambda ds: None, name)
    series, refused = find_series(sorted(tmp_path.iterdir()))
    assert ([len(one.files) for one in series], refused) == ([1, 1], [])
    planes = []
    for k in range(3):

        def single(ds, k=k):
            ds.ImagePositionPatient = [0, 0, 2.5 * k]
            ds.PixelData = ds.pixel_array[k].tobytes()
            del ds.NumberOfFrames, ds.GridFrameOffsetVector, ds.FrameIncrementPointer

        planes.append(changed(tmp_path, single, f"{k}.dcm"))
    np.testing.assert_array_equal(read_series(planes).array, read_series([tmp_path / "a.dcm"]).array[..., :3])


def test_a_dose_is_a_case_of_its_own_and_no_scan_to_segment(tmp_path):
    (tmp_path / "in").mkdir()
    path = changed(tmp_path / "in", lambda ds: None)
    write_scan(tmp_path / "x.jsonl", *scan([tmp_path / "in"], key=b"planted key of the tests"))
    manifest = Manifest.read(tmp_path / "x.jsonl")
    (case,) = manifest.cases
    assert (case.image[0].modality, case.unit, case.shape) == ("RTDOSE", "relative", (10, 10, 15))
    np.testing.assert_array_equal(load_image(manifest, case).array, read_series([path]).array)
    with pytest.raises(ManifestError, match="It is a dose, no scan"):
        find_scans([tmp_path / "in"])
