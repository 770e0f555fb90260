import errno
import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from planted import leaks
from pydicom.data import get_testdata_file

from meddiff.cli import main
from meddiff.data import files
from meddiff.data.scan import scan
from meddiff.errors import PrivacyError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.nifti import read_nifti, write_nifti
from meddiff.imaging.phantom import phantom
from meddiff.privacy.folder import Options, deidentify

KEY = b"a key of this test, 32 bytes or so"
SCRIPT = Path(__file__).parents[2] / "scripts" / "deidentify.py"
DCIODVFY = shutil.which("dciodvfy")


def written(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(capsys, *arguments):
    """(exit code, stderr) of the command line."""
    with pytest.raises(SystemExit) as end:
        main(["deidentify", *map(str, arguments)])
    return end.value.code, " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Two patients' series and a NIfTI pair, all named after people."""
    folder = tmp_path_factory.mktemp("hospital")
    for n, modality in ((0, "ct"), (1, "mr")):
        who = Identity(f"Canary^Patient{n}", f"CANARY-{n}", "19610207", "CANARY HOSPITAL")
        image = phantom(n, modality=modality, size=64, slices=24).image
        write_series(folder / f"canary_{n}", image, identity=who, series_description="T1 canary", uid_seed=n)
    image = phantom(2, modality="mr", size=64, slices=24)
    _with_text(folder / "canary_2_T1.nii.gz", image.image)
    _with_text(folder / "canary_2_T1_label.nii.gz", image.label)
    return folder


@pytest.fixture
def source(tmp_path, hospital):
    return Path(shutil.copytree(hospital, tmp_path / "in"))


def _with_text(path, volume):
    write_nifti(path, volume)
    image = nib.load(path)
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = "CANARY"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"CANARY EXTENSION"))
    with open(path, "wb") as raw, gzip.GzipFile("CANARY.nii", "wb", fileobj=raw) as file:
        file.write(image.to_bytes())


def test_the_same_key_gives_the_same_bytes_in_another_order_process_and_number_of_workers(tmp_path, source):
    assert deidentify(source, tmp_path / "one", KEY) == []
    assert deidentify(source, tmp_path / "two", KEY, workers=2) == []
    moved = tmp_path / "moved"
    for n, path in enumerate(sorted(source.rglob("*.dcm"), reverse=True)):
        moved.mkdir(exist_ok=True)
        shutil.copy(path, moved / f"{n:03d}.dcm")
    deidentify(moved, tmp_path / "three", KEY)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    command = [sys.executable, SCRIPT, source, tmp_path / "four", "--key", tmp_path / "key", "--workers", "2"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    one = written(tmp_path / "one")
    assert written(tmp_path / "two") == one
    assert written(tmp_path / "four") == one
    three = written(tmp_path / "three")
    assert {k: v for k, v in three.items() if k.endswith(".dcm")} == {
        k: v for k, v in one.items() if k.endswith(".dcm")
    }
    assert deidentify(source, tmp_path / "one", KEY) == []  # a second run over the first
    assert written(tmp_path / "one") == one


def test_another_key_gives_other_names_uids_and_dates(tmp_path, source):
    deidentify(source, tmp_path / "one", KEY)
    deidentify(source, tmp_path / "two", KEY[::-1])
    names = [{part for path in written(tmp_path / n) for part in path.split("/")} for n in ("one", "two")]
    assert names[0] & names[1] == {"nifti", "audit.json"}


def test_volumes_survive_and_nothing_else(tmp_path, source):
    deidentify(source, tmp_path / "out", KEY)
    for name, content in written(tmp_path / "out").items():
        inflated = gzip.decompress(content) if name.endswith(".gz") else content
        assert not leaks(name.encode() + inflated + content), name
    before, _ = find_series(list(source.rglob("*.dcm")))
    after, refused = find_series(list((tmp_path / "out").rglob("*.dcm")))
    assert refused == []
    assert len(after) == len(before) == 2
    for old in before:
        (new,) = [one for one in after if one.modality == old.modality]
        np.testing.assert_array_equal(read_series(new.files).array, read_series(old.files).array)
        np.testing.assert_array_equal(new.geometry.affine, old.geometry.affine)


def test_a_nifti_keeps_voxel_bytes_affine_and_its_label_beside_it(tmp_path, source):
    deidentify(source, tmp_path / "out", KEY)
    label, image = sorted((tmp_path / "out" / "nifti").iterdir(), key=lambda p: "_label" not in p.name)
    assert label.name == image.name.replace("_T1.nii.gz", "_T1_label.nii.gz")
    raw = image.read_bytes()
    assert raw[3] == 0  # no file name in the gzip header (RFC 1952)
    assert raw[4:8] == bytes(4)  # no time
    old, new = nib.load(source / "canary_2_T1.nii.gz"), nib.load(image)
    np.testing.assert_array_equal(new.affine, old.affine)
    assert np.asanyarray(new.dataobj).tobytes() == np.asanyarray(old.dataobj).tobytes()
    assert len(new.header.extensions) == 0
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        assert not new.header[field].item()


def test_intervals_between_dates_stay_and_all_dates_move(tmp_path):
    for n, day in enumerate(("20240228", "20240301")):
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        ds.StudyDate = ds.AcquisitionDate = day
        ds.StudyTime = "101112.5"
        ds.SOPInstanceUID = ds.StudyInstanceUID = f"1.2.3.{n}"
        (tmp_path / "in").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "in" / f"{n}.dcm")
    deidentify(tmp_path / "in", tmp_path / "out", KEY)
    new = [pydicom.dcmread(p) for p in (tmp_path / "out").rglob("*.dcm")]
    days = sorted(np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (one.StudyDate for one in new))
    assert days[1] - days[0] == np.timedelta64(2, "D")  # 2024 is a leap year
    assert days[1] < np.datetime64("2024-02-28")
    assert all(one.StudyDate == one.AcquisitionDate and one.StudyTime == "101112.5" for one in new)
    assert len({one.PatientID for one in new}) == 1


def test_a_reference_to_an_image_follows_its_new_uid(tmp_path):
    (tmp_path / "in").mkdir()
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.ReferencedImageSequence = [item]
    ds.save_as(tmp_path / "in" / "a.dcm")
    deidentify(tmp_path / "in", tmp_path / "out", KEY)
    (path,) = (tmp_path / "out").rglob("*.dcm")
    new = pydicom.dcmread(path)
    assert new.ReferencedImageSequence[0].ReferencedSOPInstanceUID == new.SOPInstanceUID == path.stem
    assert new.ReferencedImageSequence[0].ReferencedSOPClassUID == ds.SOPClassUID


def test_the_audit_counts_actions_and_names_the_profile(tmp_path, source):
    (source / "canary.txt").write_text("x")
    deidentify(source, tmp_path / "out", KEY)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [one["code"] for one in audit["profile"]] == ["113100", "113105", "113107", "113108", "113111"]
    assert audit["files"] == {"read": 51, "written": 50, "quarantined": 1}
    assert audit["quarantined"] == {"not-dicom": 1}
    assert audit["actions"]["replace"]["pseudonym"] == 2 * 48
    assert Counter(one["face"] for one in audit["series"]) == {"kept": 3, "not applicable": 1}
    (path, *_) = (tmp_path / "out").rglob("*.dcm")
    ds = pydicom.dcmread(path)
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == [o["code"] for o in audit["profile"]]
    assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "MODIFIED")


def test_the_device_is_kept_only_on_request(tmp_path):
    (tmp_path / "in").mkdir()
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    ds.StationName, ds.DeviceSerialNumber = "CANARYSTATION", "CANARYSERIAL"
    ds.save_as(tmp_path / "in" / "a.dcm")
    for name, retain in (("without", False), ("with", True)):
        deidentify(tmp_path / "in", tmp_path / name, KEY, Options(retain_device=retain))
    (without,), (with_,) = ([pydicom.dcmread(p) for p in (tmp_path / n).rglob("*.dcm")] for n in ("without", "with"))
    assert with_.StationName == "CANARYSTATION"
    assert with_.DeviceSerialNumber == "CANARYSERIAL"
    assert not leaks(str(without).encode())
    assert "113109" in [item.CodeValue for item in with_.DeidentificationMethodCodeSequence]


def test_the_face_is_removed_and_the_brain_stays(tmp_path, source):
    assert deidentify(source, tmp_path / "out", KEY, Options(strip_face=True)) == []
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert Counter(one["face"] for one in audit["series"]) == {"removed": 3, "not applicable": 1}
    after, _ = find_series(list((tmp_path / "out").rglob("*.dcm")))
    cases, _ = scan([tmp_path / "out"], key=KEY)
    assert Counter(case.face for case in cases) == {"removed": 3}
    assert {case.face for case in scan([source], key=KEY)[0]} == {"kept", None}
    for n, modality in ((0, "CT"), (1, "MR")):
        truth = phantom(n, modality=modality.lower(), size=64, slices=24)
        (new,) = [read_series(one.files) for one in after if one.modality == modality]
        old = truth.image.array
        brain = np.isin(truth.label.array, (1, 2, 3, 4))
        np.testing.assert_array_equal(new.array[brain], old[brain])
        assert (new.array != old).mean() > 0.05
    (image,) = [p for p in (tmp_path / "out" / "nifti").iterdir() if "_label" not in p.name]
    assert (read_nifti(image).array != phantom(2, modality="mr", size=64, slices=24).image.array).any()


@pytest.mark.parametrize("name", ["CT_small.dcm", "eCT_Supplemental.dcm"])
def test_a_head_whose_face_is_not_found_stays_behind(tmp_path, name):
    (tmp_path / "in").mkdir()
    shutil.copy(get_testdata_file(name, download=False), tmp_path / "in" / "a.dcm")
    (one,) = deidentify(tmp_path / "in", tmp_path / "out", KEY, Options(strip_face=True))
    assert one.reason == "face-not-removed"
    assert set(written(tmp_path / "out")) == {"audit.json"}


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "eCT_Supplemental.dcm", "liver_1frame.dcm", "MR2_UNCR.dcm", "emri_small.dcm"]
)
def test_dciodvfy_finds_no_more_errors_than_in_the_input_and_pixels_are_equal(tmp_path, name):
    path = Path(get_testdata_file(name, download=False))
    (tmp_path / "in").mkdir()
    ds = pydicom.dcmread(path)
    ds.BurnedInAnnotation = "NO"
    ds.save_as(tmp_path / "in" / "a.dcm")
    assert deidentify(tmp_path / "in", tmp_path / "out", KEY) == []
    (new,) = (tmp_path / "out").rglob("*.dcm")
    assert _errors(new) <= _errors(tmp_path / "in" / "a.dcm")
    np.testing.assert_array_equal(pydicom.dcmread(new).pixel_array, pydicom.dcmread(path).pixel_array)


def _errors(path):
    done = subprocess.run([DCIODVFY, path], capture_output=True, check=False)
    return sum(line.startswith(b"Error") for line in (done.stderr + done.stdout).splitlines())


def test_no_key_is_explained(tmp_path, source, capsys):
    code, said = run(capsys, source, tmp_path / "out")
    assert code == 2
    assert "no key was given" in said
    assert "`--key FILE`" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_key_that_others_can_read_is_refused(tmp_path, source, capsys):
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o644)
    code, said = run(capsys, source, tmp_path / "out", "--key", tmp_path / "key")
    assert code == 2
    assert "others can read this key" in said


@pytest.mark.parametrize(
    ("output", "key", "message"),
    [
        ("in/out", "key", "lie in one another"),
        (".", "key", "lie in one another"),
        ("out", "out/key", "the key lies in the output"),
        ("taken", "key", "holds other files"),
    ],
)
def test_folders_that_are_not_apart_are_refused_before_anything_is_made(tmp_path, source, capsys, output, key, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "scan.dcm").write_text("x")
    before = set(tmp_path.rglob("*"))
    code, said = run(capsys, source, tmp_path / output, "--key", tmp_path / key)
    assert code == 2
    assert message in said
    assert set(tmp_path.rglob("*")) == before


def test_what_is_unreadable_is_listed_without_its_name_and_the_rest_goes_on(tmp_path, source, capsys):
    whole = (source / "canary_0" / "slice_0001.dcm").read_bytes()
    (source / "canary_0" / "slice_0001.dcm").write_bytes(whole[:3000])
    (source / "canary_0" / "slice_0002.dcm").write_bytes(b"")
    (source / "canary_2_T1.nii.gz").write_bytes((source / "canary_2_T1.nii.gz").read_bytes()[:500])
    listed = tmp_path / "behind.jsonl"
    code, said = run(capsys, source, tmp_path / "out", "--key", tmp_path / "key", "--quarantined", listed)
    assert code == 1
    assert "47 of 50 files" in said
    assert "file 1 of 50, truncated-pixels" in said
    assert "file 2 of 50, not-dicom" in said
    assert "damaged-nifti" in said
    assert not leaks(said.encode())
    assert listed.stat().st_mode & 0o077 == 0
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert rows[0]["path"] == str(source / "canary_0" / "slice_0001.dcm")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, source, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PrivacyError, match=r"No space left on device.*Free space"):
        deidentify(source, tmp_path / "out", KEY)
    left = written(tmp_path / "out")
    assert len(left) == 3
    monkeypatch.undo()
    deidentify(source, tmp_path / "out", KEY)
    whole = written(tmp_path / "out")
    assert {name: whole[name] for name in left} == left
    assert len(whole) == 51
