import importlib

import numpy as np
import pydicom
import pytest
from planted import leaks, planted
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from meddiff.errors import PrivacyError
from meddiff.privacy import pixels
from meddiff.privacy.folder import Options, deidentify
from meddiff.privacy.pixels import QuarantinedError, check_burned_in, clean_pixels, without_comments

PRIMARY, CAPTURE = ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "SCREEN SAVE"]


@pytest.mark.parametrize(
    ("modality", "kind", "burned", "reason"),
    [
        ("CT", PRIMARY, None, None),
        ("CT", PRIMARY, "NO", None),
        ("CT", PRIMARY, "YES", "burned-in-text"),
        ("CT", CAPTURE, None, "burned-in-unknown"),
        ("MR", CAPTURE, "NO", None),
        ("DX", PRIMARY, None, "burned-in-unknown"),
        ("DX", PRIMARY, "NO", None),
        ("SEG", CAPTURE, None, None),
    ],
)
def test_what_may_show_text_is_quarantined_unless_class_and_attribute_say_it_does_not(modality, kind, burned, reason):
    ds = Dataset()
    ds.ImageType = kind
    if burned:
        ds.BurnedInAnnotation = burned
    if reason is None:
        check_burned_in(ds, modality)
        return
    with pytest.raises(QuarantinedError, match=reason):
        check_burned_in(ds, modality)


@pytest.mark.parametrize(
    "name", ["US1_UNCR.dcm", "examples_ybr_color.dcm", "reportsi.dcm", "rtplan.dcm", "waveform_ecg.dcm", "OBXXXX1A.dcm"]
)
def test_ultrasound_reports_captures_plans_and_curves_are_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    ds.BurnedInAnnotation = "NO"
    ds.save_as(tmp_path / "in" / "a.dcm")
    (one,) = deidentify(tmp_path / "in", tmp_path / "out", b"sixteen bytes or more")
    assert one.reason == "sop-class"


def test_an_overlay_in_the_pixels_is_quarantined():
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    ds.add_new(0x60000102, "US", 12)
    with pytest.raises(QuarantinedError, match="overlay-in-pixels"):
        clean_pixels(ds, ExplicitVRLittleEndian)


def test_bytes_behind_the_last_pixel_go_and_missing_ones_are_told():
    ds = planted([])
    raw = pydicom.dcmread(get_testdata_file("CT_small.dcm")).PixelData
    assert clean_pixels(ds, ExplicitVRLittleEndian) == raw[: 2 * ds.Rows * ds.Columns]
    ds.PixelData = raw[:100]
    with pytest.raises(QuarantinedError, match="truncated-pixels"):
        clean_pixels(ds, ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("JPEG2000.dcm", b"\xff\x64"),
        ("MR2_J2KR.dcm", b"\xff\x64"),
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", b"\xff\xfe"),
        ("JPEG-LL.dcm", b"\xff\xfe"),
        ("SC_rgb_small_odd_jpeg.dcm", b"\xff\xe1"),
        ("emri_small_jpeg_ls_lossless.dcm", b"\xff\xfe"),
    ],
)
def test_comments_of_a_code_stream_go_and_the_rest_is_the_same(name, marker):
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    frame = next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1))))
    clean = without_comments(frame)
    text = b"CANARY TEXT"
    at = 2 if frame[:2] == b"\xff\xd8" else 4 + int.from_bytes(frame[4:6], "big")  # behind SOI, or SOC and SIZ
    segment = marker + (len(text) + 2).to_bytes(2, "big") + text
    dirty = frame[:at] + segment + frame[at:] + b"CANARY BEHIND"
    assert leaks(dirty)
    assert without_comments(dirty) == clean
    assert without_comments(clean) == clean
    assert not leaks(clean)
    assert len(frame) - len(clean) < 200


def test_a_stream_in_a_wrapper_or_without_an_end_is_quarantined():
    with pytest.raises(QuarantinedError, match="not-a-codestream"):
        without_comments(b"\0\0\0\x0cjP  \r\n\x87\n")
    with pytest.raises(QuarantinedError, match="damaged-stream"):
        without_comments(b"\xff\xd8\xff\xdb\0\x04ab")
    with pytest.raises(QuarantinedError, match="damaged-stream"):
        without_comments(b"\xff\x4f\xff\x51\0\x04ab")


def test_a_lossless_file_decodes_to_the_same_pixels(tmp_path):
    path = get_testdata_file("MR2_J2KR.dcm", download=False)
    ds = pydicom.dcmread(path)
    (tmp_path / "in").mkdir()
    ds.BurnedInAnnotation = "NO"
    ds.save_as(tmp_path / "in" / "a.dcm")
    assert deidentify(tmp_path / "in", tmp_path / "out", b"sixteen bytes or more") == []
    (new,) = (tmp_path / "out").rglob("*.dcm")
    out = pydicom.dcmread(new)
    assert out.file_meta.TransferSyntaxUID == JPEG2000Lossless
    np.testing.assert_array_equal(out.pixel_array, ds.pixel_array)


def test_ocr_without_tesseract_is_told_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib, "import_module", _absent)
    with pytest.raises(PrivacyError, match=r"pip install 'meddiff\[ocr\]'"):
        pixels.require_ocr()
    (tmp_path / "in").mkdir()
    with pytest.raises(PrivacyError, match="tesseract is not there"):
        deidentify(tmp_path / "in", tmp_path / "out", b"sixteen bytes or more", Options(ocr=True))


def _absent(name):
    raise ImportError(name)


def test_text_in_the_pixels_is_found_by_ocr(tmp_path):
    tesseract = pytest.importorskip("pytesseract", reason="pytesseract is not installed")
    try:
        tesseract.get_tesseract_version()
    except tesseract.TesseractNotFoundError:
        pytest.skip("the program tesseract is not installed")
    from PIL import Image, ImageDraw

    (tmp_path / "in").mkdir()
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    array = np.kron(ds.pixel_array, np.ones((4, 4), np.int16))
    ds.Rows = ds.Columns = 512
    ds.PixelData = array.tobytes()
    ds.save_as(tmp_path / "in" / "a.dcm")
    assert deidentify(tmp_path / "in", tmp_path / "one", b"sixteen bytes or more", Options(ocr=True)) == []
    picture = Image.new("L", (512, 512))
    ImageDraw.Draw(picture).text((150, 40), "MILLER JOHN 1961", fill=255, font_size=24)
    array[np.asarray(picture) > 128] = 2000
    ds.PixelData = array.tobytes()
    ds.save_as(tmp_path / "in" / "a.dcm")
    (one,) = deidentify(tmp_path / "in", tmp_path / "two", b"sixteen bytes or more", Options(ocr=True))
    assert one.reason == "text-found"
