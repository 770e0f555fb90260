"""DICOMDIR: what it names below its folder is read, what lies elsewhere is not."""

import shutil
import warnings
from pathlib import Path

import pydicom
import pytest

from meddiff.errors import DicomError
from meddiff.imaging.dicom_dir import is_directory, read_directory

MEDIUM = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def directory(folder, *names):
    """A DICOMDIR that names these files, the first of the real one's records."""
    ds = pydicom.dcmread(MEDIUM / "DICOMDIR")
    images = [record for record in ds.DirectoryRecordSequence if "ReferencedFileID" in record][: len(names)]
    folder.mkdir(exist_ok=True)
    ds.DirectoryRecordSequence = images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's about names that PS3.10 does not allow
        for record, name in zip(images, names, strict=True):
            record.ReferencedFileID = name
        ds.save_as(folder / "DICOMDIR")
    return folder / "DICOMDIR"


def test_the_files_of_a_real_medium_are_found():
    found = read_directory(MEDIUM / "DICOMDIR")
    assert (len(found.files), found.missing, found.outside) == (31, (), ())
    assert all(path.is_file() and path.is_relative_to(MEDIUM) for path in found.files)


@pytest.mark.parametrize(
    "name", [["..", "SECRET"], ["A", "..", "..", "SECRET"], "../SECRET", "/etc/hostname", ["..\\SECRET"]]
)
def test_a_name_that_leads_out_of_the_folder_is_not_followed(tmp_path, name):
    (tmp_path / "SECRET").write_bytes(b"")
    found = read_directory(directory(tmp_path / "medium", name))
    assert (found.files, found.missing, len(found.outside)) == ((), (), 1)


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "SECRET").write_bytes(b"")
    path = directory(tmp_path / "medium", "LINK")
    (path.parent / "LINK").symlink_to(tmp_path / "SECRET")
    assert read_directory(path).outside == ("LINK",)


def test_a_file_that_is_not_there_is_named_and_case_does_not_matter(tmp_path):
    path = directory(tmp_path / "medium", ["A", "GONE"], ["A", "THERE"])
    (path.parent / "a").mkdir()
    shutil.copy(MEDIUM / "98892001" / "CT5N" / "2062", path.parent / "a" / "there")
    found = read_directory(path)
    assert (found.files, found.missing) == ((path.parent / "a" / "there",), ("A/GONE",))


def test_what_is_no_directory_is_refused(tmp_path):
    assert is_directory(Path("x/dicomdir"))
    (tmp_path / "DICOMDIR").write_bytes(b"notes")
    with pytest.raises(DicomError, match="cannot be read as a DICOMDIR"):
        read_directory(tmp_path / "DICOMDIR")
    shutil.copy(MEDIUM / "98892001" / "CT5N" / "2062", tmp_path / "DICOMDIR")
    with pytest.raises(DicomError, match="its SOP class is another"):
        read_directory(tmp_path / "DICOMDIR")
