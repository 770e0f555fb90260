"""What is given to a trained model becomes scans with names."""

import numpy as np
import pytest
from cohort import cohort

from meddiff.data.inputs import find_scans
from meddiff.data.manifest import Manifest
from meddiff.errors import ManifestError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.volume import Volume


def nifti(path):
    write_nifti(path, Volume(np.ones((3, 4, 5), np.float32), Geometry.make((3, 4, 5), (1, 1, 1))))
    return path


def test_a_folder_of_nifti_and_dicom_gives_each_scan_once_and_lists_the_rest(tmp_path):
    nifti(tmp_path / "a.nii.gz")
    nifti(tmp_path / "deep" / "a.nii")
    write_cohort(tmp_path / "series", 1, format="dicom", size=16)
    (tmp_path / "notes.txt").write_text("nothing")
    scans, refused = find_scans([tmp_path])
    assert sorted(scan.name for scan in scans if not scan.series) == ["a", "a_2"]
    (series,) = (scan for scan in scans if scan.series)
    assert len(series.paths) == 16
    assert series.read("CT").unit == "HU"
    assert [one.path.name for one in refused if one.path.suffix == ".txt"] == ["notes.txt"]


def test_a_nifti_file_is_of_the_modality_it_is_said_to_be(tmp_path):
    (scan,), _ = find_scans([nifti(tmp_path / "x.nii.gz")])
    assert scan.read("CT").modality == "CT"
    assert len(scan.sha256) == 64


def test_a_manifest_gives_its_cases_and_a_split_some_of_them():
    manifest = Manifest.read(cohort())
    scans, _ = find_scans([cohort()])
    assert [scan.name for scan in scans] == [case.case for case in manifest.cases]
    some, _ = find_scans([cohort()], "test")
    assert len(some) == len(manifest.split("test"))
    assert some[0].read("CT").unit == "HU"


def test_nothing_to_work_on_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ManifestError, match="neither a file nor a folder"):
        find_scans([tmp_path / "none"])
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ManifestError, match=r"no scan was found among 1 files.*notes\.txt"):
        find_scans([tmp_path])
