import logging
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_checks import OBLIQUE, scan, write
from matplotlib.path import Path as Outline
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from rtstruct import box, contour, placed, write_rtstruct

from meddiff.errors import DicomError
from meddiff.imaging import dicom_rtstruct, polygon
from meddiff.imaging.dicom import read_series
from meddiff.imaging.dicom_file import references
from meddiff.imaging.dicom_header import RefusedError
from meddiff.imaging.dicom_label import read_label
from meddiff.imaging.dicom_rtstruct import PLANE_TOLERANCE, read_rtstruct
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.polygon import Filler

CIRCLE = np.column_stack([np.cos(t := np.linspace(0, 2 * np.pi, 360, endpoint=False)), np.sin(t)])


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The files of a phantom's series (32 x 32 x 8 voxels) and its grid."""
    files = write_cohort(tmp_path_factory.mktemp("head") / "dicom", 1, format="dicom", size=32, slices=8)
    return files, read_series(files).geometry


def structures(tmp_path, head, rois, **how):
    """`rois` is number -> (name, [(points in indices, slice), ...] or contours)."""
    files, grid = head
    drawn = {
        number: (name, [c if isinstance(c, pydicom.Dataset) else contour(placed(grid, *c)) for c in contours])
        for number, (name, contours) in rois.items()
    }
    return write_rtstruct(tmp_path / "rt.dcm", files[0], drawn, **how)


def refused(tmp_path, head, rois, match):
    with pytest.raises(DicomError, match=match):
        read_rtstruct(structures(tmp_path, head, rois), head[1])


@pytest.mark.parametrize("turn", [(0, 0, 0), OBLIQUE])
@pytest.mark.parametrize("orientation", ["LPS", "LPI", "RAS", "PSR"])  # LPI is written with its slices in reverse
def test_a_box_has_exactly_its_voxels(tmp_path, orientation, turn):
    image = scan(orientation=orientation, shape=(9, 8, 6), turn=turn)
    files = write(tmp_path / "series", image)
    truth = np.zeros(image.array.shape, np.uint8)
    truth[2:7, 1:4, 1:5], truth[7:9, 5:8, 0] = 4, 9
    rois = {
        9: ("spine", [contour(placed(image.geometry, box((7, 5), (8, 7)), 0))]),
        4: ("liver", [contour(placed(image.geometry, box((2, 1), (6, 3)), k)) for k in range(1, 5)]),
    }
    path = write_rtstruct(tmp_path / "rt.dcm", files[0], rois)
    grid = read_series(files).geometry
    label, names = read_rtstruct(path, grid)
    assert (names, label.modality, label.unit, label.array.dtype) == ({4: "liver", 9: "spine"}, "SEG", "label", "uint8")
    at = np.argwhere(truth)
    mm = at @ image.geometry.affine[:3, :3].T + image.geometry.affine[:3, 3]
    index = np.rint(np.linalg.solve(grid.affine[:3, :3], (mm - grid.affine[:3, 3]).T).T).astype(int)
    np.testing.assert_array_equal(label.array[tuple(index.T)], truth[tuple(at.T)])
    assert np.count_nonzero(label.array) == len(at)


@pytest.mark.parametrize("radius", [3.3, 7.7, 12.1])
def test_the_area_of_a_circle_is_right_within_its_perimeter(tmp_path, head, radius):
    points = CIRCLE * radius + (15.2, 14.7)
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("ball", [(points, 3)])}), head[1])
    area = np.count_nonzero(label.array)
    assert abs(area - np.pi * radius**2) < 2 * np.pi * radius / 2  # half a voxel on either side of it
    assert np.count_nonzero(label.array[:, :, 3]) == area
    inside = np.hypot(*(np.indices((32, 32)) - np.reshape([15.2, 14.7], (2, 1, 1)))) < radius
    assert np.count_nonzero(inside != (label.array[:, :, 3] > 0)) <= 4  # the circle has 360 corners


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_in_another_is_a_hole_and_one_in_the_hole_is_an_island(tmp_path, head, kind):
    rings = [box((4, 5), (20, 21)), box((8, 9), (16, 17)), box((11, 12), (12, 14))]
    contours = [contour(placed(head[1], one, 2), kind) for one in rings]
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("ring", contours)}), head[1])
    truth = np.zeros((32, 32, 8))
    truth[4:21, 5:22, 2], truth[8:17, 9:18, 2], truth[11:13, 12:15, 2] = 1, 0, 1
    np.testing.assert_array_equal(label.array, truth)


def test_a_keyhole_makes_the_same_hole(tmp_path, head):
    outer, inner = box((4, 5), (20, 21)), box((8, 9), (16, 17))
    keyhole = [*outer, outer[0], *inner[::-1], inner[-1]]
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("ring", [(keyhole, 2)])}), head[1])
    other, _ = read_rtstruct(structures(tmp_path, head, {1: ("ring", [(outer, 2), (inner, 2)])}), head[1])
    np.testing.assert_array_equal(label.array, other.array)
    assert np.count_nonzero(label.array) == 17 * 17 - 9 * 9


def test_two_contours_that_cross_leave_out_what_they_share(tmp_path, head):
    crossing = [(box((2, 2), (9, 9)), 0), (box((6, 6), (13, 13)), 0)]
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("both", crossing)}), head[1])
    assert np.count_nonzero(label.array) == 2 * 64 - 2 * 16
    assert not label.array[6:10, 6:10].any()


def test_what_lies_beyond_the_image_in_a_slice_is_cut_off(tmp_path, head):
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("wide", [(box((-50, 3), (90, 7)), 5)])}), head[1])
    truth = np.zeros((32, 32, 8))
    truth[:, 3:8, 5] = 1
    np.testing.assert_array_equal(label.array, truth)


def test_a_contour_between_slices_is_refused_with_its_distance(tmp_path, head):
    assert head[1].spacing_mm[2] == pytest.approx(30)
    near, far = PLANE_TOLERANCE - 0.01, PLANE_TOLERANCE + 0.01
    label, _ = read_rtstruct(structures(tmp_path, head, {1: ("a", [(box((2, 2), (4, 4)), 3 + near)])}), head[1])
    assert np.count_nonzero(label.array[:, :, 3]) == 9
    refused(tmp_path, head, {1: ("liver", [(box((2, 2), (4, 4)), 3 + far)])},
            r"ROI 1 \(liver\): a contour reaches 6.3 mm from slice 3, the nearest of the image, and 6 mm is allowed")  # fmt: skip
    refused(tmp_path, head, {1: ("a", [(box((2, 2), (4, 4)), 9)])}, "reaches 60 mm from slice 7")
    tilted = placed(head[1], box((2, 2), (4, 4)), 3)
    tilted[0] += 0.3 * head[1].lps()[:3, 2]
    refused(tmp_path, head, {1: ("a", [contour(tilted)])}, "reaches 9 mm from slice 3")


def test_rois_that_cross_are_refused_with_both_names(tmp_path, head):
    rois = {1: ("liver", [(box((2, 2), (9, 9)), 0)]), 5: ("tumour", [(box((8, 8), (12, 12)), 0)])}
    share = r"ROI 1 \(liver\) and ROI 5 \(tumour\) share 4 voxels, neither lies in the other, .* Scan with --regions"
    refused(tmp_path, head, rois, share)
    refused(tmp_path, head, rois | {3: ("body", [(box((0, 0), (20, 20)), 0)])}, share)
    same = {1: ("liver", [(box((2, 2), (9, 9)), 0)]), 5: ("tumour", [(box((2, 2), (9, 9)), 0)])}
    refused(tmp_path, head, same, r"ROI 1 \(liver\) and ROI 5 \(tumour\) share 64 voxels")


@pytest.mark.parametrize("numbers", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)])
def test_an_roi_in_another_is_cut_out_of_it(tmp_path, head, numbers):
    body, liver, tumour, lung = numbers
    rois = {
        body: ("body", [(box((1, 1), (20, 20)), k) for k in (0, 1)]),
        liver: ("liver", [(box((2, 2), (9, 9)), 0)]),
        tumour: ("tumour", [(box((4, 4), (5, 6)), 0)]),
        lung: ("lung", [(box((12, 12), (14, 15)), 1)]),
    }
    label, _ = read_rtstruct(structures(tmp_path, head, rois), head[1])
    truth = np.zeros((32, 32, 8))
    truth[1:21, 1:21, :2] = body
    truth[2:10, 2:10, 0], truth[4:6, 4:7, 0], truth[12:15, 12:16, 1] = liver, tumour, lung
    np.testing.assert_array_equal(label.array, truth)


def test_an_roi_that_those_in_it_fill_is_told(tmp_path, head, caplog):
    halves = {2: ("left", [(box((1, 1), (4, 8)), 0)]), 3: ("right", [(box((5, 1), (8, 8)), 0)])}
    rois = halves | {1: ("lungs", [(box((1, 1), (8, 8)), 0)])}
    label, names = read_rtstruct(structures(tmp_path, head, rois), head[1])
    assert (np.unique(label.array).tolist(), names[1]) == ([0, 2, 3], "lungs")
    assert "ROI 1 (lungs) is filled by the ROIs in it and has no voxel of its own" in caplog.text


def test_regions_are_labels_in_their_order_and_the_first_wins(tmp_path, head):
    rois = {
        1: ("Liver", [(box((2, 2), (9, 9)), 0)]),
        5: ("GTV-1", [(box((8, 8), (12, 12)), 0)]),
        9: ("couch", [(box((2, 2), (9, 9)), 3.5)]),  # between slices, which matters to nobody who leaves it out
    }
    path = structures(tmp_path, head, rois)
    label, names = read_rtstruct(path, head[1], ["tumour|gtv-1", "liver"])
    truth = np.zeros((32, 32, 8))
    truth[2:10, 2:10, 0], truth[8:13, 8:13, 0] = 2, 1
    np.testing.assert_array_equal(label.array, truth)
    assert names == {1: "tumour", 2: "liver"}
    other, _ = read_rtstruct(path, head[1], ["liver", "tumour|gtv-1"])
    assert (other.array[8:10, 8:10, 0] == 1).all()
    with pytest.raises(DicomError, match=r"2 of its regions are called 'liver\|gtv-1', and one is needed"):
        read_rtstruct(path, head[1], ["liver|gtv-1"])


def test_points_and_open_contours_are_ignored_and_counted(tmp_path, head, caplog):
    point = contour(placed(head[1], [(3, 3)], 0), "POINT")
    open_ = [contour(placed(head[1], box((2, 2), (9, 9)), 1), kind) for kind in ("OPEN_PLANAR", "OPEN_NONPLANAR")]
    line = contour(placed(head[1], [(3, 3), (4, 4)], 0))
    rois = {1: ("isocentre", [point]), 2: ("", []), 3: ("liver", [*open_, line, (box((2, 2), (9, 9)), 1)])}
    with caplog.at_level(logging.WARNING):
        label, names = read_rtstruct(structures(tmp_path, head, rois), head[1])
    assert "4 contours are points, open or of fewer than 3 points" in caplog.text
    assert names == {1: "isocentre", 2: "label_2", 3: "liver"}
    assert np.unique(label.array).tolist() == [0, 3]
    refused(tmp_path, head, {1: ("isocentre", [point])}, "none of its 1 ROIs has a closed contour")


def test_a_contour_around_no_centre_is_told(tmp_path, head, caplog):
    tiny = [(3.2, 3.2), (3.4, 3.2), (3.3, 3.4)]
    label, names = read_rtstruct(structures(tmp_path, head, {1: ("dot", [(tiny, 0)])}), head[1])
    assert (label.array.any(), names) == (False, {1: "dot"})
    assert "ROI 1 (dot) encloses the centre of no voxel" in caplog.text


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ContourGeometricType": "CLOSED_SOLID"}, "is of type 'CLOSED_SOLID'; expected CLOSED_PLANAR or"),
        ({"NumberOfContourPoints": 5}, "a contour of 5 points has 12 coordinates"),
        ({"ContourData": ["1", "2", "3", "4"]}, "a contour of 4 points has 4 coordinates"),
        ({"ContourData": ["1e300"] * 12}, "no place in a patient"),
        ({"ContourOffsetVector": [0, 0, 5]}, "ContourOffsetVector"),
    ],
)
def test_a_contour_that_contradicts_itself_is_refused(tmp_path, head, change, match):
    one = contour(placed(head[1], box((2, 2), (9, 9)), 1), **change)
    refused(tmp_path, head, {1: ("liver", [one])}, match)


def test_the_same_contour_twice_and_numbers_that_are_no_labels_are_refused(tmp_path, head):
    one = (box((2, 2), (9, 9)), 1)
    refused(tmp_path, head, {1: ("liver", [one, one])}, "slice 1 has the same contour twice, which cancel")
    refused(tmp_path, head, {0: ("liver", [one])}, r"ROI 0 \(liver\): labels are 1 to 65535")
    refused(tmp_path, head, {70000: ("liver", [one])}, r"labels are 1 to 65535")


def changed(path, change):
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(path)
    return path


def test_rois_must_be_named_once_and_be_in_one_frame_of_reference(tmp_path, head):
    rois = {1: ("liver", [(box((2, 2), (9, 9)), 1)]), 2: ("spleen", [(box((20, 20), (22, 22)), 1)])}

    def several(ds):
        ds.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    path = changed(structures(tmp_path, head, rois), several)
    with pytest.raises(DicomError, match="in several frames of reference"):
        read_rtstruct(path, head[1])
    with pytest.raises(RefusedError, match="label-ambiguous: Its ROIs are in 2 frames of reference"):
        references(path)
    path = changed(structures(tmp_path, head, rois), lambda ds: setattr(ds.StructureSetROISequence[0], "ROINumber", 2))
    with pytest.raises(DicomError, match=r"ROI 2 \(liver\) and ROI 2 \(spleen\) have one number"):
        read_rtstruct(path, head[1])
    path = changed(structures(tmp_path, head, rois), lambda ds: ds.StructureSetROISequence.pop(0))
    with pytest.raises(DicomError, match="has contours of ROI 1, which it does not name"):
        read_rtstruct(path, head[1])


def test_what_is_too_large_deflated_or_no_structure_set_is_refused(tmp_path, head, monkeypatch):
    path = structures(tmp_path, head, {1: ("liver", [(box((2, 2), (9, 9)), 1)])})
    for module, limit, value, match in (
        (dicom_rtstruct, "MAX_BYTES", 1000, "at most 1000 are read"),
        (dicom_rtstruct, "MAX_POINTS", 3, "more than 3 points"),
        (polygon, "MAX_TESTS", 1024, "takes more than 1024 tests"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            with pytest.raises(DicomError, match=match):
                read_rtstruct(path, head[1])
    for other, match in ((head[0][0], "is no RTSTRUCT"), (tmp_path / "none.dcm", "cannot be read")):
        with pytest.raises(DicomError, match=match):
            read_rtstruct(other, head[1])
    path = changed(path, lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian))
    with pytest.raises(DicomError, match="inflates without bound"):
        read_label(path, head[1])


def test_a_damaged_file_is_read_or_refused(tmp_path, head):
    whole = structures(tmp_path, head, {1: ("liver", [(CIRCLE * 5 + 15, k) for k in range(4)])}).read_bytes()
    rng = np.random.default_rng(0)
    path, outcomes = tmp_path / "damaged.dcm", set()
    for _ in range(150):
        content = bytearray(whole[: rng.integers(200, len(whole))] if rng.random() < 0.2 else whole)
        for at in rng.integers(132, len(content), 8):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        for read, errors in ((lambda: read_label(path, head[1]), DicomError), (lambda: references(path), RefusedError)):
            try:
                read()
                outcomes.add("read")
            except errors:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_every_syntax_gives_the_same_labels(tmp_path, head):
    path = structures(tmp_path, head, {1: ("ball", [(CIRCLE * 9.3 + 15, 4)])})
    first = read_label(path, head[1])[0].array
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(tmp_path / "again.dcm", ds, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        np.testing.assert_array_equal(read_label(tmp_path / "again.dcm", head[1])[0].array, first)


def test_the_structure_set_of_pydicom_is_refused_as_it_is_and_read_with_its_head(tmp_path):
    path = Path(get_testdata_file("rtstruct.dcm", download=False))
    grid = Geometry.from_lps(
        (50, 40, 3), np.array([[10, 0, 0, -245], [0, 10, 0, -195], [0, 0, 10, -200], [0, 0, 0, 1]])
    )
    with pytest.raises(DicomError, match="not a DICOM file"):  # it has neither preamble nor file meta information
        read_rtstruct(path, grid)
    ds = pydicom.dcmread(path, force=True)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    label, names = read_rtstruct(tmp_path / "whole.dcm", grid)
    assert names == {1: "patient", 2: "Isocenter 1", 3: "Isocenter 2"}
    truth = np.zeros(grid.shape)
    truth[5:45, 5:35] = 1  # -200 to 200 mm and -150 to 150 mm
    np.testing.assert_array_equal(label.array, truth)
    own = references(tmp_path / "whole.dcm")
    assert own.series == {"1.2.826.0.1.3680043.8.498.2010020400001.2.1.1"}
    assert own.frame_uid == "1.2.826.0.1.3680043.8.498.2010020400001.2"


@pytest.mark.parametrize("seed", range(5))
def test_bands_change_nothing_of_what_matplotlib_says(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 30, (200, 2)).cumsum(0) / 4 + 40 if seed % 2 else rng.uniform(-20, 110, (60, 2))
    centres = np.indices((70, 90)).reshape(2, -1).T.astype(float)
    plain = Outline(points).contains_points(centres).reshape(70, 90)
    np.testing.assert_array_equal(Filler((70, 90)).even_odd([points]), plain)
    assert plain.any()
