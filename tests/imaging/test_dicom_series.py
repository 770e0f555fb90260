"""What only all files of a series together show, and what the length of a file shows before it is decoded."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

SIDEWAYS = [0, 1, 0, 0, 0, -1]


def write(folder, slices=6, patient="PLANTED-1"):
    array = np.random.default_rng(0).integers(-1000, 2000, (4, 5, slices)).astype(np.float32)
    scan = Volume(array, Geometry.make(array.shape, (1.0, 1.5, 2.5), "LPS"), "CT", "HU")
    who = Identity("PHANTOM^PLANTED", patient)
    return write_series(folder, scan, identity=who, series_description="PLANTED SERIES", uid_seed=0)


def edit(path, **values):
    header = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.save_as(path)


def test_one_series_of_two_patients_is_neither_ones(tmp_path):
    files = write(tmp_path / "a", patient="PLANTED-1") + write(tmp_path / "b", patient="PLANTED-2")
    series, refused = find_series(files)
    assert series == []
    assert sorted(one.path for one in refused) == sorted(files)
    assert {one.reason for one in refused} == {"several-patients"}
    assert "PLANTED" not in refused[0].detail
    with pytest.raises(DicomError, match="several-series"):
        read_series(files)


def test_one_file_of_another_patient_does_not_pass_as_a_missing_slice(tmp_path):
    files = write(tmp_path)
    edit(files[-1], PatientID="PLANTED-2")
    series, refused = find_series(files)
    assert series == []
    assert {one.reason for one in refused} == {"several-patients"}


def test_two_patients_with_a_series_each_are_two_series(tmp_path):
    files = write(tmp_path / "a", patient="PLANTED-1")
    other = write(tmp_path / "b", patient="PLANTED-2")
    for path in other:
        edit(path, SeriesInstanceUID="2.25.7")
    series, refused = find_series(files + other)
    assert ([one.patient_id for one in series], refused) == (["PLANTED-1", "PLANTED-2"], [])


def test_a_stray_slice_of_a_volume_is_no_case_of_its_own(tmp_path):
    files = write(tmp_path)
    edit(files[-1], ImageOrientationPatient=SIDEWAYS)
    (series,), (refused,) = find_series(files)
    assert series.files == tuple(files[:-1])
    assert (refused.path, refused.reason) == (files[-1], "single-slice")


def test_a_scout_of_three_directions_is_no_volume(tmp_path):
    files = write(tmp_path, slices=2)
    edit(files[1], ImageOrientationPatient=SIDEWAYS)
    series, refused = find_series(files)
    assert (series, {one.reason for one in refused}) == ([], {"single-slice"})


def test_one_slice_at_two_echo_times_is_two_images(tmp_path):
    (file,) = write(tmp_path, slices=1)
    other = file.with_name("other.dcm")
    other.write_bytes(file.read_bytes())
    edit(other, EchoTime=80)
    series, refused = find_series([file, other])
    assert ([one.geometry.shape for one in series], refused) == ([(4, 5, 1), (4, 5, 1)], [])


def test_a_slice_missing_from_four_is_named_although_both_gaps_differ_from_their_mean(tmp_path):
    files = write(tmp_path, slices=4)
    expected = r"Slices 2 \(slice_0002.dcm\) and 3 \(slice_0004.dcm\) are 5.000 mm apart, the others 2.500 mm.*missing"
    with pytest.raises(DicomError, match=expected):
        read_series(files[:2] + files[3:])


@pytest.mark.parametrize("lost", [1, 20, 39])
def test_a_truncated_file_is_refused_by_its_length(tmp_path, lost):
    files = write(tmp_path)
    files[2].write_bytes(files[2].read_bytes()[:-lost])
    _, refused = find_series(files)
    (one,) = [one for one in refused if one.path == files[2]]
    assert one.reason == "truncated"
    assert f"ends {lost} bytes before" in one.detail


def test_a_file_without_pixels_is_refused(tmp_path):
    (file,) = write(tmp_path, slices=1)
    header = pydicom.dcmread(file)
    del header.PixelData
    header.save_as(file)
    series, (refused,) = find_series([file])
    assert (series, refused.reason) == ([], "no-pixels")


def test_compressed_pixels_may_be_shorter_than_the_image():
    file = Path(get_testdata_file("MR_small_RLE.dcm"))
    (series,), refused = find_series([file])
    assert (series.files, refused) == ((file,), [])
    assert file.stat().st_size < 2 * 64 * 64


def test_slices_are_not_written_among_others(tmp_path):
    write(tmp_path)
    with pytest.raises(DicomError, match="holds slices already"):
        write(tmp_path, slices=3)
