import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_checks import OBLIQUE, ORDERS, REAL_CT, errors_of, needs_dciodvfy, rearranged, scan, write
from highdicom.seg import Segmentation, SegmentDescription, segread
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from meddiff.errors import DicomError, GeometryError
from meddiff.imaging.dicom import read_series
from meddiff.imaging.dicom_codes import segment_codes
from meddiff.imaging.dicom_seg import write_probability_seg, write_seg
from meddiff.imaging.dicom_seg_read import read_seg
from meddiff.imaging.dicom_write import decimal
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.phantom import LABELS, phantom
from meddiff.imaging.volume import Volume

NAMES = {0: "background", 2: "lesion", 3: "grey matter", 7: "thing of its own"}


def labels_on(geometry, seed=0, first=0):
    array = np.random.default_rng(seed).choice([0, 2, 3, 7], geometry.shape).astype(np.uint8)
    array[:, :, :first] = 0
    return Volume(array, geometry, "SEG", "label")


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "series", scan(turn=OBLIQUE))


def at_the_same_places(labels, theirs, numbers):
    """Every voxel of highdicom's volume (slices, rows, columns; LPS) is ours at its place in the patient."""
    array = numbers[np.asarray(theirs.array)]
    mm = theirs.affine @ np.vstack([np.indices(array.shape).reshape(3, -1), np.ones(array.size)])
    index = np.linalg.solve(labels.geometry.lps(), mm)[:3]
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    np.testing.assert_array_equal(labels.array[tuple(np.rint(index).astype(int))], array.ravel())


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("turn", [(0, 0, 0), OBLIQUE])
def test_labels_come_back_as_they_were_to_us_and_to_highdicom(tmp_path, modality, turn):
    image = scan(modality, turn=turn)
    labels = labels_on(image.geometry)
    path = write_seg(tmp_path / "a.dcm", labels, NAMES, write(tmp_path / "series", image))
    again, names = read_seg(path)
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.geometry.close(image.geometry, 1e-4)
    assert names == {2: "lesion", 3: "grey matter", 7: "thing of its own"}
    at_the_same_places(labels, segread(path).get_volume(combine_segments=True), np.array([0, 2, 3, 7]))


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_any_order_of_axes_and_of_files_gives_the_same_bytes(tmp_path, files, axes, flips):
    labels = labels_on(read_series(files).geometry)
    plain = write_seg(tmp_path / "a.dcm", labels, NAMES, files)
    other = write_seg(tmp_path / "b.dcm", rearranged(labels, axes, flips), NAMES, files[::-1])
    assert plain.read_bytes() == other.read_bytes()


def test_a_frame_shows_the_slice_that_it_refers_to(tmp_path):
    values = read_series(REAL_CT)
    labels = Volume((values.array > 20).astype(np.uint8), values.geometry, "SEG", "label")
    seg = pydicom.dcmread(write_seg(tmp_path / "a.dcm", labels, {1: "tumour"}, REAL_CT))
    sources = {str(ds.SOPInstanceUID): ds for ds in map(pydicom.dcmread, REAL_CT)}
    first = next(iter(sources.values()))
    assert (seg.FrameOfReferenceUID, seg.StudyInstanceUID) == (first.FrameOfReferenceUID, first.StudyInstanceUID)
    assert (seg.PatientID, seg.ReferencedSeriesSequence[0].SeriesInstanceUID) == (
        first.PatientID,
        first.SeriesInstanceUID,
    )
    assert seg.NumberOfFrames == len(sources) == 5
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = sources.pop(str(reference))
        assert group.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        hu = source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept)
        np.testing.assert_array_equal(frame, hu > 20)


def test_nothing_comes_from_the_clock_or_by_chance(tmp_path):
    values = read_series(REAL_CT)
    path = write_seg(tmp_path / "a.dcm", labels_on(values.geometry), NAMES, REAL_CT)
    seg = pydicom.dcmread(path)
    assert (seg.ContentDate, seg.ContentTime) == ("20010101", "002755")
    assert "InstanceCreationDate" not in seg
    assert "ContributionDateTime" not in str(seg.ContributingEquipmentSequence[-1])
    assert all(str(uid).startswith("2.25.") for uid in (seg.SOPInstanceUID, seg.SeriesInstanceUID))
    organisation = seg.DimensionOrganizationSequence[0].DimensionOrganizationUID
    assert organisation.startswith("2.25.")
    other = pydicom.dcmread(write_seg(tmp_path / "b.dcm", labels_on(values.geometry, seed=1), NAMES, REAL_CT))
    assert other.SOPInstanceUID != seg.SOPInstanceUID
    years = {
        e.value[:4] for ds in (seg, *seg.ContributingEquipmentSequence) for e in ds if e.VR in ("DA", "DT") and e.value
    }
    assert years == {"2001"}


@needs_dciodvfy
@pytest.mark.parametrize("kind", ["all", "some", "empty", "fractional"])
@pytest.mark.parametrize("source", ["phantom CT", "phantom MR", "real CT"])
def test_dciodvfy_finds_no_error_in_a_seg(tmp_path, source, kind):
    if source == "real CT":
        files = REAL_CT
        labels = labels_on(read_series(files).geometry, first=2 if kind == "some" else 0)
        names = NAMES
    else:
        head = phantom(1, modality=source[-2:].lower(), size=16, slices=4)
        files, labels, names = write(tmp_path / "series", head.image), head.label, LABELS
    if kind == "fractional":
        grids = {n: Volume((labels.array == n) * np.float32(0.7), labels.geometry) for n in names}
        path = write_probability_seg(tmp_path / "a.dcm", grids, names, files)
    else:
        array = labels.array * (kind != "empty")
        path = write_seg(tmp_path / "a.dcm", Volume(array, labels.geometry), names, files)
    assert errors_of(path) == []


def test_slices_without_a_segment_are_left_out_and_filled_in_on_the_grid_of_the_image(tmp_path, files):
    image = read_series(files)
    labels = labels_on(image.geometry, first=2)
    labels.array[:, :, 4] = 0
    path = write_seg(tmp_path / "a.dcm", labels, NAMES, files)
    alone, _ = read_seg(path)
    np.testing.assert_array_equal(alone.array, labels.array[:, :, 2:])
    again, _ = read_seg(path, image.geometry)
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.geometry is image.geometry


def test_a_seg_is_read_in_the_index_order_of_the_grid_that_is_asked_for(tmp_path, files):
    labels = labels_on(read_series(files).geometry)
    path = write_seg(tmp_path / "a.dcm", labels, NAMES, files)
    for axes, flips in ORDERS:
        other = rearranged(labels, axes, flips)
        np.testing.assert_array_equal(read_seg(path, other.geometry)[0].array, other.array)


def test_one_slice_and_no_label_at_all_survive(tmp_path):
    image = scan(shape=(4, 5, 1))
    files = write(tmp_path / "series", image)
    labels = labels_on(image.geometry)
    again, _ = read_seg(write_seg(tmp_path / "a.dcm", labels, NAMES, files))
    np.testing.assert_array_equal(again.array, labels.array)
    assert again.geometry.close(image.geometry)
    empty, names = read_seg(write_seg(tmp_path / "b.dcm", Volume(labels.array * 0, image.geometry), NAMES, files))
    assert (empty.array.max(), empty.geometry.shape, len(names)) == (0, (4, 5, 1), 3)


def test_probabilities_come_back_to_half_a_step_of_255(tmp_path, files):
    grid = read_series(files).geometry
    p = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    both = {1: Volume(p, grid), 2: rearranged(Volume(1 - p, grid), (2, 0, 1), (1,))}
    path = write_probability_seg(tmp_path / "a.dcm", both, {1: "csf", 2: "lesion"}, files)
    seg = segread(path)
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    theirs = seg.get_volume()
    index = np.indices(p.shape).reshape(3, -1)
    mm = grid.lps() @ np.vstack([index, np.ones(p.size)])
    at = tuple(np.rint(np.linalg.solve(theirs.affine, mm)[:3]).astype(int))
    assert np.abs(theirs.array[at][:, 0] - p.ravel()).max() <= 0.5 / 255 + 1e-6
    assert np.abs(theirs.array[at][:, 1] - (1 - p.ravel())).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(DicomError, match="holds fractions"):
        read_seg(path)


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "liver.dcm"])
def test_a_seg_of_someone_else_is_read_as_highdicom_reads_it(name):
    path = Path(get_testdata_file(name, download=False))
    volume, names = read_seg(path)
    theirs = segread(path).get_volume(combine_segments=True)
    assert names == {1: segread(path).get_segment_description(1).segment_label}
    assert volume.array.max() == 1
    assert volume.array.size == theirs.array.size
    at_the_same_places(volume, theirs, np.array([0, 1]))


@pytest.mark.parametrize("with_background", [True, False])
def test_a_label_map_segmentation_keeps_its_numbers_and_names_no_background(tmp_path, files, with_background):
    image = read_series(files)
    labels = labels_on(image.geometry)
    codes = segment_codes("lesion")
    described = [SegmentDescription(number, name, *codes, "MANUAL") for number, name in NAMES.items() if number]
    seg = Segmentation(
        [pydicom.dcmread(path) for path in files], labels.array.T, "LABELMAP", described, "2.25.1", 1, "2.25.2", 1,
        "someone", "else", "1", "2",
    )  # fmt: skip
    background = [item for item in seg.SegmentSequence if item.SegmentNumber == 0]
    assert len(background) == 1
    if not with_background:
        seg.SegmentSequence.remove(background[0])
    if with_background:
        del seg.PixelPaddingValue  # which says that 0 is the background; so does our reader
    seg.save_as(tmp_path / "a.dcm")
    again, names = read_seg(tmp_path / "a.dcm", image.geometry)
    np.testing.assert_array_equal(again.array, labels.array)
    assert names == {n: name for n, name in NAMES.items() if n}


@pytest.mark.parametrize("shown", [(3,), (1, 4), (0, 2, 5), (2, 3)])
def test_the_slices_that_show_something_find_their_place_however_far_apart(tmp_path, files, shown):
    labels = labels_on(read_series(files).geometry)
    for k in set(range(6)) - set(shown):
        labels.array[:, :, k] = 0
    path = write_seg(tmp_path / "a.dcm", labels, NAMES, files)
    np.testing.assert_array_equal(read_seg(path, labels.geometry)[0].array, labels.array)


@pytest.mark.parametrize(
    ("name", "category", "kind"),
    [
        ("Grey Matter", "85756007", "389081007"),
        ("white_matter", "85756007", "389080008"),
        ("csf", "91720002", "65216001"),
        ("lesion", "49755003", "52988006"),
        ("ventricles", "91723000", "35764002"),
        ("skull", "91723000", "89546000"),
        ("scalp", "91723000", "41695006"),
        ("liver", "91723000", "10200004"),
        ("left ventricle", "91723000", "87878005"),
        ("normal", "85756007", "85756007"),
        ("thing of its own", "85756007", "85756007"),
    ],
)
def test_known_names_have_their_code_and_others_the_general_one(name, category, kind):
    assert [code.value for code in segment_codes(name)] == [category, kind]
    assert {code.scheme_designator for code in segment_codes(name)} == {"SCT"}


def test_a_grid_that_is_not_the_sources_is_refused(tmp_path, files):
    grid = read_series(files).geometry
    shifted, scaled = np.array(grid.affine), np.array(grid.affine)
    shifted[0, 3] += 0.4
    scaled[:3, 0] *= 1.1
    smaller = (3, *grid.shape[1:])
    for other in (Geometry(grid.shape, shifted), Geometry(grid.shape, scaled), Geometry(smaller, grid.affine)):
        with pytest.raises(GeometryError, match="is not on the grid"):
            write_seg(tmp_path / "a.dcm", labels_on(other), NAMES, files)
    assert not (tmp_path / "a.dcm").exists()


def test_bad_labels_and_names_are_refused(tmp_path, files):
    labels = labels_on(read_series(files).geometry)
    path = tmp_path / "a.dcm"
    with pytest.raises(DicomError, match=r"labels \[7\] have no name"):
        write_seg(path, labels, {2: "lesion", 3: "grey matter"}, files)
    with pytest.raises(DicomError, match="labels are whole numbers; found float32"):
        write_seg(path, Volume(labels.array.astype(np.float32), labels.geometry), NAMES, files)
    for name in ("", "x" * 65, "a\\b", "a\nb"):
        with pytest.raises(DicomError, match="label 7 is named"):
            write_seg(path, labels, {**NAMES, 7: name}, files)
    with pytest.raises(DicomError, match="labels from 1 up"):
        write_seg(path, labels, {0: "background"}, files)
    with pytest.raises(DicomError, match="run from 0 to 2"):
        write_probability_seg(path, {1: Volume(labels.array.clip(0, 2), labels.geometry)}, {1: "lesion"}, files)
    with pytest.raises(DicomError, match="give both"):
        write_probability_seg(path, {}, {1: "lesion"}, files)


def test_a_source_that_nothing_can_refer_to_is_refused(tmp_path, files):
    labels = labels_on(read_series(files).geometry)
    with pytest.raises(GeometryError, match="is not on the grid"):
        write_seg(tmp_path / "a.dcm", labels, NAMES, files[:-1])
    with pytest.raises(DicomError, match="is 2 series in 11 files"):
        write_seg(tmp_path / "a.dcm", labels, NAMES, [*files, *REAL_CT])
    for path in files:
        header = pydicom.dcmread(path)
        del header.FrameOfReferenceUID
        header.save_as(path)
    with pytest.raises(DicomError, match="has no FrameOfReferenceUID"):
        write_seg(tmp_path / "a.dcm", labels, NAMES, files)


def test_a_name_in_any_script_and_a_poor_header_survive(tmp_path, files):
    for path in files:
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet = "ISO_IR 100"
        header.PatientName, header.PatientSex = "Müller^Zoë", "U"
        del header.StudyDate, header.AccessionNumber
        header.save_as(path)
    labels = labels_on(read_series(files).geometry)
    path = write_seg(tmp_path / "a.dcm", labels, {**NAMES, 7: "Läsion Größe"}, files)
    seg = pydicom.dcmread(path)
    assert (str(seg.PatientName), seg.PatientSex, seg.ContentDate) == ("Müller^Zoë", "", "19000101")
    assert read_seg(path)[1][7] == "Läsion Größe"


@pytest.mark.parametrize("name", ["PLANTEDNAME", "PLANTED^" + "X" * 70, "PLANTED\\NAME"])
def test_an_odd_name_of_a_patient_is_kept_and_reaches_no_log(tmp_path, files, name, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in files:
            header = pydicom.dcmread(path)
            header.PatientName = name
            header.save_as(path)
    seg = write_seg(tmp_path / "a.dcm", labels_on(read_series(files).geometry), NAMES, files)
    assert name.encode() in seg.read_bytes()
    assert "PLANTED" not in caplog.text + "".join(capfd.readouterr())


def test_a_damaged_date_is_refused_without_repeating_it(tmp_path, files):
    for path in files:
        header = pydicom.dcmread(path)
        header.PatientBirthDate = "19700101"
        header.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"19700101", b"PLANTED!"))
    with pytest.raises(DicomError, match="cannot be taken over") as refused:
        write_seg(tmp_path / "a.dcm", labels_on(read_series(files).geometry), NAMES, files)
    assert "PLANTED!" not in str(refused.value)


def test_what_is_no_readable_seg_is_refused(tmp_path, files):
    path = write_seg(tmp_path / "a.dcm", labels_on(read_series(files).geometry), NAMES, files)
    with pytest.raises(DicomError, match="is no DICOM SEG"):
        read_seg(files[0])
    with pytest.raises(DicomError, match="is no DICOM file"):
        read_seg(Path(__file__))
    with pytest.raises(DicomError, match="is no DICOM file"):
        read_seg(tmp_path / "missing.dcm")
    (tmp_path / "b.dcm").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DicomError, match="cannot be read as one label map"):
        read_seg(tmp_path / "b.dcm")
    far = pydicom.dcmread(path)
    place = far.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    lps = read_series(files).geometry.lps()
    for slices, message in ((2 * 10**8, "at most 2147483648 are read"), (100.5, "no regular stack")):
        place.ImagePositionPatient = [decimal(v) for v in lps[:3, 3] + lps[:3, 2] * slices]
        far.save_as(tmp_path / "c.dcm")
        with pytest.raises(DicomError, match=message):
            read_seg(tmp_path / "c.dcm")
    deflated = pydicom.dcmread(path)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated.save_as(tmp_path / "d.dcm")
    with pytest.raises(DicomError, match="deflated"):
        read_seg(tmp_path / "d.dcm")


def test_overlapping_segments_are_refused_unless_regions_put_them_in_order(tmp_path, files):
    grid = read_series(files).geometry
    path = write_seg(tmp_path / "a.dcm", Volume(np.ones(grid.shape, np.uint8), grid), {1: "lesion", 2: "csf"}, files)
    seg = pydicom.dcmread(path)
    for k, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1 + k % 2
        group.PlanePositionSequence[0] = seg.PerFrameFunctionalGroupsSequence[k - k % 2].PlanePositionSequence[0]
    seg.SegmentsOverlap = "YES"
    seg.save_as(path)
    with pytest.raises(DicomError, match=r"do not overlap.*--regions"):
        read_seg(path)
    for order in (["csf", "lesion"], ["lesion", "csf"]):  # both fill every second slice, so that the first has it all
        label, names = read_seg(path, regions=order)
        assert names == {1: order[0], 2: order[1]}
        assert (label.array[..., ::2] == 1).all()
        assert not label.array[..., 1::2].any()


def test_a_segmentation_is_not_left_half_written(tmp_path, files, monkeypatch):
    labels = labels_on(read_series(files).geometry)
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_seg(tmp_path / "out" / "a.dcm", labels, NAMES, files)
    assert list((tmp_path / "out").iterdir()) == []
