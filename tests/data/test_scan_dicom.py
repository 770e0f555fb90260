"""DICOM through the whole scan: repairs and volumes in the manifest, segmentations as labels, media, processes."""

import copy
import hashlib
import json
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from rtstruct import box, contour, placed, write_rtstruct

from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.data.scan import scan, write_scan
from meddiff.errors import ManifestError
from meddiff.imaging import dicom_file
from meddiff.imaging.dicom import find_series
from meddiff.imaging.dicom_seg import write_seg
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

KEY = b"planted key of the tests"
MEDIUM = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def ct(folder, patient="PLANTED-1", seed=0, slices=6):
    geometry = Geometry.make((6, 5, slices), (0.8, 0.8, 2.5), "LPS")
    array = np.random.default_rng(seed).integers(-1000, 1000, geometry.shape).astype(np.float32)
    volume = Volume(array, geometry, "CT", "HU")
    who = Identity("PHANTOM^PLANTED", patient, "19010101", "PLANTED HOSPITAL")
    return volume, write_series(folder, volume, identity=who, series_description="PLANTED SERIES", uid_seed=seed)


def lesion(volume):
    array = np.zeros(volume.array.shape, np.uint8)
    array[1:4, 2:4, 1:4], array[0, 0, 2] = 1, 3
    return Volume(array, volume.geometry, "SEG", "label")


def written(tmp_path, cases, refused):
    write_scan(tmp_path / "out" / "x.jsonl", cases, refused)
    return Manifest.read(tmp_path / "out" / "x.jsonl")


def test_a_segmentation_is_the_label_map_of_its_image(tmp_path):
    volume, files = ct(tmp_path / "in" / "a")
    ct(tmp_path / "in" / "b", "PLANTED-2", 1)
    label = lesion(volume)
    write_seg(tmp_path / "in" / "seg.dcm", label, {1: "liver", 3: "tumour"}, files)
    cases, refused = scan([tmp_path / "in"], key=KEY)
    assert refused == []
    assert sorted(case.label is not None for case in cases) == [False, True]
    manifest = written(tmp_path, cases, refused)
    (case,) = [case for case in manifest.cases if case.label]
    manifest.verify(case)
    np.testing.assert_array_equal(load_label(manifest, case).array, label.array)
    np.testing.assert_array_equal(load_image(manifest, case).array, volume.array)
    assert case.labels == {"background": 0, "liver": 1, "tumour": 3}


def test_a_segmentation_without_its_image_and_two_of_one_image_are_no_labels(tmp_path):
    volume, files = ct(tmp_path / "in" / "a")
    other, others = ct(tmp_path / "elsewhere", "PLANTED-2", 1)
    write_seg(tmp_path / "in" / "alone.dcm", lesion(other), {1: "liver", 3: "tumour"}, others)
    for name in ("one.dcm", "two.dcm"):
        write_seg(tmp_path / "in" / name, lesion(volume), {1: "liver", 3: name[:3]}, files)
    (case,), refused = scan([tmp_path / "in"], key=KEY, root=tmp_path / "in")
    assert case.label is None
    found = {one.path: one.reason for one in refused}
    assert found == {"alone.dcm": "label-without-image", "one.dcm": "label-ambiguous", "two.dcm": "label-ambiguous"}


def drawn(volume):
    """The contours of `lesion`."""
    return {
        1: ("liver", [contour(placed(volume.geometry, box((1, 2), (3, 3)), k)) for k in range(1, 4)]),
        3: ("tumour", [contour(placed(volume.geometry, box((0, 0), (0, 0)), 2))]),
    }


@pytest.mark.parametrize("series", [None, ""])  # named, or known by its frame of reference only
def test_contours_are_the_label_map_of_their_image(tmp_path, series):
    volume, files = ct(tmp_path / "in" / "a")
    ct(tmp_path / "in" / "b", "PLANTED-2", 1)
    write_rtstruct(tmp_path / "in" / "rt.dcm", files[0], drawn(volume), series=series)
    cases, refused = scan([tmp_path / "in"], key=KEY)
    assert refused == []
    manifest = written(tmp_path, cases, refused)
    (case,) = [case for case in manifest.cases if case.label]
    manifest.verify(case)
    np.testing.assert_array_equal(load_label(manifest, case).array, lesion(volume).array)
    np.testing.assert_array_equal(load_image(manifest, case).array, volume.array)
    assert case.labels == {"background": 0, "liver": 1, "tumour": 3}


def test_contours_in_another_frame_of_reference_and_contours_beside_a_segmentation_are_no_labels(tmp_path):
    volume, files = ct(tmp_path / "in" / "a")
    write_rtstruct(tmp_path / "in" / "other.dcm", files[0], drawn(volume), frame="1.2.3")
    (case,), refused = scan([tmp_path / "in"], key=KEY, root=tmp_path / "in")
    assert case.label is None
    assert {one.path: one.reason for one in refused} == {"other.dcm": "label-without-image"}
    write_seg(tmp_path / "in" / "seg.dcm", lesion(volume), {1: "liver", 3: "tumour"}, files)
    write_rtstruct(tmp_path / "in" / "rt.dcm", files[0], drawn(volume))
    (case,), refused = scan([tmp_path / "in"], key=KEY, root=tmp_path / "in")
    assert case.label is None
    found = {one.path: one.reason for one in refused}
    assert found == {"other.dcm": "label-without-image", "rt.dcm": "label-ambiguous", "seg.dcm": "label-ambiguous"}


def test_contours_that_cannot_be_filled_and_references_that_cannot_be_read_are_refused_with_the_reason(tmp_path):
    volume, files = ct(tmp_path / "in" / "a")
    rois = drawn(volume) | {4: ("body", [contour(placed(volume.geometry, box((0, 0), (5, 4)), 2))])}
    write_rtstruct(tmp_path / "in" / "rt.dcm", files[0], rois)
    (case,), (one,) = scan([tmp_path / "in"], key=KEY, root=tmp_path / "in")
    assert (case.label, one.path, one.reason) == (None, "rt.dcm", "label-unreadable")
    assert "ROI 1 (liver) and ROI 4 (body) share 6 voxels" in one.detail
    ds = pydicom.dcmread(tmp_path / "in" / "rt.dcm")
    ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    ds.save_as(tmp_path / "in" / "rt.dcm")
    (case,), refused = scan([tmp_path / "in"], key=KEY, root=tmp_path / "in")
    assert case.label is None
    assert [(one.path, one.reason) for one in refused] == [("rt.dcm", "label-ambiguous")]


@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_regions_are_chosen_by_name_and_put_in_order_at_the_scan(tmp_path, kind):
    volume, files = ct(tmp_path / "in" / "a")
    if kind == "rtstruct":
        rois = drawn(volume) | {4: ("BODY", [contour(placed(volume.geometry, box((0, 0), (5, 4)), 2))])}
        write_rtstruct(tmp_path / "in" / "rt.dcm", files[0], rois)
        truth = np.zeros(volume.array.shape)
        truth[:, :, 2], truth[0, 0, 2] = 2, 1
    else:
        write_seg(tmp_path / "in" / "seg.dcm", lesion(volume), {1: "body", 3: "tumour"}, files)
        truth = np.select([lesion(volume).array == 3, lesion(volume).array == 1], [1, 2])
    with pytest.raises(ManifestError, match="'gtv' occurs twice; give each region once"):
        scan([tmp_path / "in"], key=KEY, regions=["GTV", "body|gtv"])
    cases, refused = scan([tmp_path / "in"], key=KEY, regions=["gtv|Tumour", "Body"])
    assert refused == []
    manifest = written(tmp_path, cases, refused)
    (case,) = manifest.cases
    assert (case.regions, case.labels) == (("gtv|Tumour", "Body"), {"background": 0, "gtv": 1, "Body": 2})
    np.testing.assert_array_equal(load_label(manifest, case).array, truth)
    (case,), (one,) = scan([tmp_path / "in"], key=KEY, regions=["gtv", "liver"])
    assert (case.label, case.regions, one.reason) == (None, (), "label-unreadable")
    assert "0 of its regions are called 'gtv', and one is needed; it has" in one.detail


def test_a_repair_is_recorded_and_made_again_when_the_case_is_loaded(tmp_path):
    volume, files = ct(tmp_path / "in" / "a")
    write_seg(tmp_path / "in" / "seg.dcm", lesion(volume), {1: "liver", 3: "tumour"}, files)
    ct(tmp_path / "in" / "b", "PLANTED-2", 1)
    files[3].unlink()
    assert len(scan([tmp_path / "in"], key=KEY)[0]) == 1
    cases, refused = scan([tmp_path / "in"], key=KEY, repairs=["fill-gaps"])
    assert [one.reason for one in refused] == ["label-repaired"]
    manifest = written(tmp_path, cases, refused)
    (case,) = [case for case in manifest.cases if case.repairs]
    assert (case.repairs, case.shape, len(case.image[0].files)) == (("fill-gaps",), (6, 5, 6), 5)
    read = load_image(manifest, case).array
    np.testing.assert_array_equal(read[..., 3], (volume.array[..., 2] + volume.array[..., 4]) / 2)


def test_each_volume_of_one_file_is_a_case_of_one_patient(tmp_path):
    ds = pydicom.dcmread(get_testdata_file("eCT_Supplemental.dcm", download=False))
    frames, pixels = list(ds.PerFrameFunctionalGroupsSequence), ds.pixel_array[:, :64, :48]
    ds.PerFrameFunctionalGroupsSequence = [copy.deepcopy(frame) for frame in frames * 2]
    for k, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + k // 2
    ds.NumberOfFrames, ds.Rows, ds.Columns = 4, 64, 48
    ds.PixelData = np.concatenate([pixels, pixels + 100]).astype("<u2").tobytes()
    (tmp_path / "in").mkdir()
    ds.save_as(tmp_path / "in" / "x.dcm")
    manifest = written(tmp_path, *scan([tmp_path / "in"], key=KEY))
    assert [case.image[0].volume for case in manifest.cases] == [0, 1]
    assert len({case.patient for case in manifest.cases}) == 1
    one, other = (load_image(manifest, case) for case in manifest.cases)
    np.testing.assert_array_equal(other.array, one.array + 100)
    assert {case.unit for case in manifest.cases} == {"ml/100ml/s"}


def test_a_manifest_without_repairs_keeps_the_digest_that_it_had(tmp_path):
    ct(tmp_path / "in")
    manifest = written(tmp_path, *scan([tmp_path / "in"], key=KEY))
    (case,) = manifest.cases
    other = Manifest((case.model_copy(update={"repairs": ("fill-gaps",)}),), manifest.folder)
    assert other.digest != manifest.digest
    before = case.model_dump(
        mode="json",
        exclude={"image": {"__all__": {"path", "files", "volume"}}, "repairs": True, "regions": True, "face": True},
    )
    text = json.dumps([before], sort_keys=True, separators=(",", ":"))
    assert manifest.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_medium_is_scanned_by_its_directory(tmp_path):
    shutil.copytree(MEDIUM, tmp_path / "medium")
    shutil.copy(tmp_path / "medium" / "98892001" / "CT5N" / "2062", tmp_path / "medium" / "EXTRA")
    cases, refused = scan([tmp_path / "medium" / "DICOMDIR"], key=KEY, root=tmp_path)
    names = [name for case in cases for name in case.image[0].files] + [one.path for one in refused]
    assert len(names) == 32
    assert "medium/EXTRA" not in names
    (tmp_path / "medium" / "98892001" / "CT5N" / "2062").unlink()
    _, refused = scan([tmp_path / "medium"], key=KEY, root=tmp_path)
    (own,) = [one for one in refused if one.path == "medium/DICOMDIR"]
    assert own.reason == "missing-file"
    assert "names 1 files that are not there, for instance 98892001/CT5N/2062" in own.detail
    with pytest.raises(ManifestError, match="is not a folder"):
        scan([tmp_path / "medium" / "EXTRA"], key=KEY)


def test_any_number_of_processes_finds_the_same(tmp_path, monkeypatch):
    paths = sorted(path for path in MEDIUM.rglob("*") if path.is_file())
    monkeypatch.setattr(dicom_file, "BATCH", 5)
    monkeypatch.setattr(dicom_file, "PATIENCE_S", 0.0)
    told = []
    alone = find_series(paths)
    many = find_series(paths, workers=2, progress=lambda done, total: told.append((done, total)))
    assert many[1] == alone[1]
    assert [one.files for one in many[0]] == [one.files for one in alone[0]]
    assert all(
        one.geometry.close(other.geometry, 0) for one, other in zip(*(found[0] for found in (many, alone)), strict=True)
    )
    assert told[-1] == (len(paths), len(paths))
    assert told == sorted(told)


def test_a_process_that_dies_loses_no_file(monkeypatch):
    class Dead:
        """A pool whose process was killed."""

        def __init__(self, *_, **__):
            pass

        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

        def shutdown(self, **_):
            pass

    paths = sorted(path for path in MEDIUM.rglob("*") if path.is_file())
    alone = find_series(paths)
    for name, value in (("BATCH", 5), ("PATIENCE_S", 0.0), ("ProcessPoolExecutor", Dead)):
        monkeypatch.setattr(dicom_file, name, value)
    series, refused = find_series(paths, workers=2)
    assert ([one.files for one in series], refused) == ([one.files for one in alone[0]], alone[1])
