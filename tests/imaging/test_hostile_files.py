"""Damaged and hostile files: each is read or refused with a message, within bounds of time and memory."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from fuzz import SECONDS, Reader, damaged
from irregular import Folder
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from meddiff.imaging.dicom_header import BoundedFile, RefusedError, read_header

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def reader():
    with Reader() as process:
        yield process


def test_sixty_damaged_files_are_read_or_refused_within_limits(tmp_path, reader):
    outcomes = set()
    for name, content in damaged(60, seed=1):
        (tmp_path / name).write_bytes(content)
        answer = reader(tmp_path / name)
        assert answer["outcome"] in ("read", "refused"), (name, answer)
        assert answer["seconds"] < SECONDS, name
        assert answer["bytes"] < 500 << 20, name
        outcomes.add(answer["outcome"])
    assert outcomes == {"read", "refused"}


def test_damage_is_the_same_for_the_same_seed():
    assert list(damaged(20, 3)) == list(damaged(20, 3)) != list(damaged(20, 4))


def test_a_small_gzip_that_claims_three_gigabytes_is_refused_before_it_is_inflated(tmp_path, reader):
    header = nib.Nifti1Header()
    header.set_data_shape((1000, 1000, 750))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(340):
            file.write(bytes(1 << 20))
    assert 1e6 < (tmp_path / "bomb.nii.gz").stat().st_size < 2e6
    answer = reader(tmp_path / "bomb.nii.gz")
    assert answer["outcome"] == "refused"
    assert "promise 3000000352 bytes, more than 200 for one" in answer["why"]
    assert answer["seconds"] < 2
    assert answer["bytes"] < 500e6


def test_a_small_deflated_file_is_refused_before_it_is_inflated(tmp_path, reader):
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.add_new(0x00290010, "LO", "PLANTED")
    ds.add_new(0x00291010, "OB", bytes(200 << 20))
    ds.save_as(tmp_path / "bomb.dcm")
    assert (tmp_path / "bomb.dcm").stat().st_size < 300e3
    answer = reader(tmp_path / "bomb.dcm")
    assert (answer["outcome"], answer["why"]) == ("refused", "deflated")
    assert answer["seconds"] < 2
    assert answer["bytes"] < 500e6


def test_a_dead_reader_is_told_and_another_one_starts(tmp_path):
    (tmp_path / "x.nii").write_bytes(b"")
    with Reader() as process:
        assert process(tmp_path / "x.nii")["outcome"] == "refused"
        process.process.kill()
        process.process.wait()
        assert process(tmp_path / "x.nii")["outcome"] == "died"
        assert process(tmp_path / "x.nii")["outcome"] == "refused"


def test_an_element_that_claims_more_than_the_file_makes_no_room_for_it(tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    with BoundedFile(tmp_path / "x") as file:
        assert len(file.read(1 << 40)) == 100
        file.seek(90)
        assert (len(file.read(-1)), file.read(5)) == (10, b"")


@pytest.mark.parametrize("path", sorted(p for p in TEST_FILES.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_the_walk_over_a_header_finds_what_pydicom_finds(path):
    assert found(path, whole=False) == found(path, whole=True)


def found(path, whole):
    try:
        header = read_header(path, whole=whole)
    except RefusedError as why:
        return why.reason
    return header.values, header.rest, header.syntax


def test_the_usual_file_takes_no_pydicom_and_an_unusual_one_does(tmp_path):
    folder = Folder(tmp_path)
    assert read_header(folder.add(0)).dataset is None
    accent = folder.add(1, SpecificCharacterSet="ISO_IR 100", PatientID="PLANTÉ")
    assert read_header(accent).dataset is not None
    assert read_header(accent).text("PatientID") == "PLANTÉ"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_sequences_of_undefined_length_are_walked_through(tmp_path, syntax):
    inner, middle = Dataset(), Dataset()
    inner.PatientID, inner.Rows = "PLANTED-INSIDE", 7
    middle.ReferencedSeriesSequence = Sequence([inner, Dataset()])
    middle.StudyInstanceUID = "2.25.99"
    middle["ReferencedSeriesSequence"].is_undefined_length = True
    middle.is_undefined_length_sequence_item = inner.is_undefined_length_sequence_item = True

    def change(ds):
        ds.ReferencedStudySequence = Sequence([middle, inner])
        ds["ReferencedStudySequence"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax

    path = Folder(tmp_path).add(0, change=change)
    assert path.read_bytes().count(b"\xfe\xff\xdd\xe0") == 2
    header = read_header(path)
    assert header.dataset is None
    assert (header.text("PatientID"), header.count("Rows")) == ("PLANTED-1", 128)
    assert found(path, whole=False) == found(path, whole=True)


def test_a_refusal_crosses_processes():
    import copy

    again = copy.copy(RefusedError("reason", "detail"))
    assert (again.reason, again.detail, str(again)) == ("reason", "detail", "reason: detail")
