from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEGLossless,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
)

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import LPS, Geometry
from meddiff.imaging.volume import Volume

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
REAL_CT = sorted((TEST_FILES / "dicomdirtests" / "98892001" / "CT5N").iterdir())


@pytest.fixture
def scan():
    array = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.float32)
    return Volume(array, Geometry.make(array.shape, (1.0, 1.5, 2.5), "LPS"), "CT", "HU")


@pytest.fixture
def files(scan, tmp_path):
    return write(tmp_path, scan)


def write(folder, scan, seed=0):
    who = Identity("PHANTOM^PLANTED", "PLANTED-1")
    return write_series(folder, scan, identity=who, series_description="PLANTED SERIES", uid_seed=seed)


def edit(path, **values):
    header = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            del header[keyword]
        else:
            setattr(header, keyword, value)
    header.save_as(path)


def move(path, x=0.0, y=0.0, z=0.0):
    edit(
        path,
        ImagePositionPatient=[
            float(v) + d for v, d in zip(pydicom.dcmread(path).ImagePositionPatient, (x, y, z), strict=True)
        ],
    )


def reasons(files):
    series, refused = find_series(files)
    assert series == []
    assert sorted(r.path for r in refused) == sorted(files)
    return {r.reason for r in refused}


def test_a_real_series_is_the_same_volume_to_simpleitk():
    (series,), refused = find_series(REAL_CT)
    assert refused == []
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(REAL_CT[0].parent))
    assert [str(path) for path in series.files] == list(names)
    image, volume = sitk.ReadImage(names), read_series(REAL_CT)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).T)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.geometry.affine, LPS @ lps, rtol=0, atol=1e-4)
    assert (volume.modality, volume.unit, volume.array.shape) == ("CT", "HU", (16, 16, 5))


def test_every_file_of_pydicoms_collection_is_in_one_series_or_refused_with_a_remedy():
    paths = [path for path in TEST_FILES.rglob("*") if path.is_file()]
    series, refused = find_series(paths)
    accounted = [path for one in series for path in one.files] + [one.path for one in refused]
    assert sorted(accounted) == sorted(paths)
    why = {one.path.name: one.reason for one in refused}
    assert {"rtdose.dcm", "rtdose_rle.dcm"} <= {path.name for one in series for path in one.files}
    assert why["reportsi.dcm"] == why["SC_rgb_rle.dcm"] == "not-a-scan"
    assert why["image_dfl.dcm"] == "deflated"
    assert why["DICOMDIR"] == "not-an-image"
    assert why["6293"] == "localizer"
    assert why["zipMR.gz"] == "not-dicom"
    assert why["17106"] == "irregular-spacing"
    assert all(one.detail.endswith(".") for one in refused)


def test_the_order_of_the_paths_does_not_matter():
    paths = sorted(path for path in TEST_FILES.rglob("*") if path.is_file())
    one, two = find_series(paths), find_series(paths[::-1])
    assert one[1] == two[1]
    assert [s.files for s in one[0]] == [s.files for s in two[0]]


def test_order_is_by_position_whatever_instance_numbers_and_names_say(files, scan, tmp_path):
    for number, k in enumerate(np.random.default_rng(0).permutation(len(files)).tolist()):
        edit(files[k], InstanceNumber=number + 1, SliceLocation=None)
        files[k] = files[k].rename(tmp_path / f"{number}")
    volume = read_series(sorted(files))
    np.testing.assert_array_equal(volume.array, scan.array)
    assert volume.geometry.close(scan.geometry, 1e-4)


def test_each_slice_has_its_own_rescale(files, scan):
    edit(files[2], RescaleSlope=2, RescaleIntercept=-100)
    stored = scan.array[:, :, 2] + 1024
    np.testing.assert_array_equal(read_series(files).array[:, :, 2], 2 * stored - 100)


def test_a_ct_that_itk_wrote_is_read(scan, tmp_path):
    image = sitk.GetImageFromArray(scan.array[:, :, 0].T.astype(np.int16))
    lps = scan.geometry.lps()
    tags = {
        "0008|0060": "CT",
        "0018|0050": "2.5",
        "0020|0037": r"1\0\0\0\1\0",
        "0020|0032": "\\".join(map(str, lps[:3, 3])),
    }
    image.SetSpacing((1.0, 1.5))
    for tag, value in tags.items():
        image.SetMetaData(tag, value)
    sitk.WriteImage(image, tmp_path / "x.dcm")
    assert pydicom.dcmread(tmp_path / "x.dcm").RescaleType == "US"
    volume = read_series([tmp_path / "x.dcm"])
    np.testing.assert_array_equal(volume.array, scan.array[:, :, :1])
    np.testing.assert_allclose(volume.geometry.affine, scan.geometry.affine, atol=1e-4)


def test_a_missing_slice_is_named(files):
    kept = files[:2] + files[3:]
    assert reasons(kept) == {"irregular-spacing"}
    with pytest.raises(
        DicomError, match=r"Slices 2 \(slice_0002.dcm\) and 3 \(slice_0004.dcm\) are 5.000 mm apart.*2.500 mm.*missing"
    ):
        read_series(kept)


def test_two_slices_at_one_place_are_named(files, tmp_path):
    (tmp_path / "copy.dcm").write_bytes(files[3].read_bytes())
    assert reasons([*files, tmp_path / "copy.dcm"]) == {"duplicate-position"}
    with pytest.raises(DicomError, match=r"copy\.dcm and slice_0004\.dcm lie at the same place"):
        read_series([*files, tmp_path / "copy.dcm"])


def test_two_series_of_one_folder_are_told_apart(files, scan, tmp_path):
    other = write(tmp_path / "other", Volume(scan.array[:, :, ::-1].copy(), scan.geometry, "CT", "HU"), seed=1)
    mixed = [
        path.rename(tmp_path / f"{k}-{'ab'[s]}")
        for s, paths in enumerate((files, other))
        for k, path in enumerate(paths)
    ]
    series, refused = find_series(mixed)
    assert refused == []
    assert sorted({path.name[-1] for path in one.files} == {"a"} for one in series) == [False, True]
    np.testing.assert_array_equal(read_series([p for p in mixed if p.name.endswith("a")]).array, scan.array)
    with pytest.raises(DicomError, match="several-series"):
        read_series(mixed)


@pytest.mark.parametrize(("keyword", "value"), [("EchoTime", 80), ("TemporalPositionIdentifier", 2)])
def test_two_echoes_or_time_points_of_one_series_are_two_volumes(scan, tmp_path, keyword, value):
    scan = Volume(np.abs(scan.array), scan.geometry, "MR")
    files = write(tmp_path, scan)
    copies = [path.with_suffix(".ima") for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
        edit(copy, **{keyword: value})
    series, refused = find_series(files + copies)
    assert [s.files for s in series] == [tuple(files), tuple(copies)]
    assert refused == []


def test_a_tilted_gantry_is_refused_with_its_angle(files):
    for k, path in enumerate(files):
        move(path, y=0.5 * k)
    assert reasons(files) == {"gantry-tilt"}
    with pytest.raises(DicomError, match=r"tilt of 11\.3 degrees"):
        read_series(files)


@pytest.mark.parametrize(("where", "mm"), [("x", 0.3), ("z", 0.3)])
def test_a_slice_beside_its_place_is_refused(files, where, mm):
    move(files[2], **{where: mm})
    assert reasons(files) == {"irregular-spacing"}


def test_a_drift_that_no_single_gap_shows_is_refused(scan, tmp_path):
    array = np.zeros((2, 2, 41), np.float32)
    files = write(tmp_path, Volume(array, Geometry.make(array.shape, (1, 1, 1), "LPS"), "CT", "HU"))
    for k, path in enumerate(files):
        move(path, z=0.009 * min(k, 40 - k))
    with pytest.raises(DicomError, match=r"Slice 21 .* lies 0\.180 mm beside its place"):
        read_series(files)


def test_positions_with_two_decimals_are_regular(scan, tmp_path):
    array = np.zeros((2, 2, 30), np.float32)
    files = write(tmp_path, Volume(array, Geometry.make(array.shape, (1, 1, 0.625), "LPS"), "CT", "HU"))
    for path in files:
        edit(path, ImagePositionPatient=[f"{float(v):.2f}" for v in pydicom.dcmread(path).ImagePositionPatient])
    assert read_series(files).geometry.spacing_mm[2] == pytest.approx(0.625, abs=1e-3)


def test_cosines_that_differ_in_the_last_digit_are_one_stack(files, scan):
    for k, path in enumerate(files):
        edit(path, ImageOrientationPatient=[1, 0.0005 + (-1) ** k * 1e-6, 0, 0, 1, 0])
    assert len(find_series(files)[0]) == 1


def test_a_lone_slice_has_the_extent_of_its_thickness(files):
    (series,), _ = find_series(files[:1])
    assert series.geometry.shape == (4, 5, 1)
    np.testing.assert_allclose(series.geometry.spacing_mm, (1, 1.5, 2.5))
    edit(files[0], SliceThickness=None)
    assert reasons(files[:1]) == {"single-slice"}


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("multi-frame", {"NumberOfFrames": 2}),
        ("multi-frame", {"SOPClassUID": EnhancedCTImageStorage}),
        ("truncated", {"SOPClassUID": RTDoseStorage, "Modality": "RTDOSE", "NumberOfFrames": 3}),
        ("not-a-scan", {"SOPClassUID": SecondaryCaptureImageStorage}),
        ("not-a-scan", {"Modality": "MR"}),
        ("not-an-image", {"SOPClassUID": None}),
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("photometric", {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("no-pixels", {"Rows": None}),
        ("no-geometry", {"ImagePositionPatient": None}),
        ("no-geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        ("no-geometry", {"PixelSpacing": [0, 1]}),
        ("no-geometry", {"PixelSpacing": None}),
        ("no-hu", {"RescaleIntercept": None}),
        ("no-hu", {"RescaleType": "EDW"}),
        ("no-rescale", {"RescaleSlope": 0}),
    ],
)
def test_what_is_no_slice_of_a_scan_is_refused_by_name(files, reason, values):
    edit(files[0], **values)
    assert reasons(files[:1]) == {reason}


def test_one_refused_file_does_not_hide_the_others(files, tmp_path):
    junk = tmp_path / "notes.txt"
    junk.write_text("not DICOM")
    series, (refused,) = find_series([*files, junk])
    assert [len(one.files) for one in series] == [6]
    assert (refused.path, refused.reason) == (junk, "not-dicom")


@pytest.mark.parametrize("content", [b"", b"DICM", bytes(128) + b"DICM", bytes(128) + b"DICM" + bytes(range(256))])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "x.dcm").write_bytes(content)
    assert len(reasons([tmp_path / "x.dcm", tmp_path / "missing.dcm"])) >= 1


def test_every_truncation_of_a_file_is_refused_or_read_as_it_was(files, scan):
    content = files[0].read_bytes()
    for end in range(0, len(content), 13):
        files[0].write_bytes(content[:end])
        try:
            volume = read_series(files[:1])
        except DicomError:
            continue
        np.testing.assert_array_equal(volume.array[:, :, 0], scan.array[:, :, 0])


def test_header_values_that_are_no_numbers_are_refused_without_a_warning(files):
    content = files[0].read_bytes()
    position = content.index(b"\x20\x00\x32\x00DS") + 8
    files[0].write_bytes(content[:position] + b"a" + content[position + 1 :])
    assert reasons(files[:1]) == {"damaged-header"}


def test_a_uid_that_is_none_gives_no_warning(files):
    content = files[0].read_bytes()
    position = content.index(b"\x20\x00\x0e\x00UI") + 8
    files[0].write_bytes(content[:position] + b"x" + content[position + 1 :])
    (series,), _ = find_series(files[:1])
    assert series.uid.startswith("x.25.")


def test_a_deflated_file_is_not_inflated(files):
    header = pydicom.dcmread(files[0])
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(files[0])
    assert reasons(files[:1]) == {"deflated"}


def compressed(path, syntax, data):
    header = pydicom.dcmread(path)
    header.PixelData = encapsulate([data])
    header["PixelData"].VR = "OB"
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path)


def test_lossless_compression_gives_the_same_volume(files, scan):
    for path in files:
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path)
    np.testing.assert_array_equal(read_series(files).array, scan.array)


def test_a_missing_codec_is_named_with_the_line_that_installs_it(files, monkeypatch):
    compressed(files[0], JPEGLossless, b"\xff\xd8\xff\xd9")
    monkeypatch.setattr(pydicom.pixels.get_decoder(JPEGLossless), "_available", {})
    with pytest.raises(
        DicomError, match=r"slice_0001\.dcm: its pixels \(JPEG Lossless.*pip install 'pylibjpeg\[all\]' pyjpegls"
    ):
        read_series(files[:1])


def test_pixels_that_are_damaged_are_said_to_be(files):
    compressed(files[0], RLELossless, bytes(64))
    with pytest.raises(DicomError, match=r"RLE Lossless.*damaged; export it again"):
        read_series(files[:1])


class Panic(BaseException):
    """What a native decoder raises: no Exception."""


@pytest.mark.parametrize(
    ("raised", "seen"), [(Panic, DicomError), (ValueError, DicomError), (KeyboardInterrupt, KeyboardInterrupt)]
)
def test_a_panic_of_a_native_decoder_is_an_error_and_an_interrupt_stays_one(files, monkeypatch, raised, seen):
    def pixel_array(self):
        raise raised("boom")

    monkeypatch.setattr(Dataset, "pixel_array", property(pixel_array))
    with pytest.raises(seen, match="boom"):
        read_series(files)


def test_pixels_of_another_size_than_the_header_are_refused(files, monkeypatch):
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda self: np.zeros((2, 2), np.int16)))
    with pytest.raises(DicomError, match=r"shape \(2, 2\), its header says \(5, 4\)"):
        read_series(files)


def test_no_files_are_no_series():
    assert find_series([]) == ([], [])
    with pytest.raises(DicomError, match="no files"):
        read_series([])
