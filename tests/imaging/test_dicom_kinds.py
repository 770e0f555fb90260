"""Kinds of images beyond the classic slice: frames, tiles, MONOCHROME1, PET, codecs; other libraries are the oracles."""

import copy
import gzip
import io
import warnings
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from irregular import PADDING, Folder, pad, pet, plane
from pydicom.data import get_testdata_file

from meddiff.errors import DicomError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.dicom_pixels import codestream_size

NICOM = Path(nib.__file__).parent / "nicom" / "tests" / "data"
ENHANCED_CT = Path(get_testdata_file("eCT_Supplemental.dcm", download=False))


def unzipped(name, folder):
    path = folder / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((NICOM / name).read_bytes()))
    return path


def reasons(paths):
    return {one.reason for one in find_series(paths)[1]}


def as_highdicom(path):
    """Its volume in our order of axes: (columns, rows, slices along the normal) and the affine to LPS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = highdicom.imread(path).get_volume()
    array, lps = np.asarray(found.array).T, np.array(found.affine)[:, [2, 1, 0, 3]]
    if np.linalg.det(lps[:3, :3]) < 0:
        lps[:3, 3] += lps[:3, 2] * (array.shape[2] - 1)
        array, lps[:3, 2] = array[:, :, ::-1], -lps[:3, 2]
    return array, lps


def test_an_enhanced_ct_is_the_same_volume_to_highdicom():
    array, lps = as_highdicom(ENHANCED_CT)
    volume = read_series([ENHANCED_CT])
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.geometry.lps(), lps, rtol=0, atol=1e-4)
    assert (volume.array.min(), volume.array.max(), volume.array.shape) == (-1024, 172, (512, 512, 2))


def test_an_enhanced_ct_that_measures_flow_is_not_in_hu():
    assert read_series([ENHANCED_CT]).unit == "ml/100ml/s"


def test_an_enhanced_mr_is_the_same_volume_to_highdicom(tmp_path):
    path = unzipped("philips_mprage.dcm.gz", tmp_path)
    ds = pydicom.dcmread(path)
    ds.PixelData = (
        np.random.default_rng(0).integers(0, 4000, (176, 256, 256)).astype("<u2").tobytes()
    )  # all 0 in the wheel
    ds.save_as(path)
    array, lps = as_highdicom(path)
    volume = read_series([path])
    np.testing.assert_allclose(volume.array, array, rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.lps(), lps, rtol=0, atol=1e-4)
    assert volume.array.shape == (256, 256, 176)


def test_two_time_points_of_one_enhanced_file_are_two_volumes(tmp_path):
    ds = pydicom.dcmread(ENHANCED_CT)
    frames, pixels = list(ds.PerFrameFunctionalGroupsSequence), ds.pixel_array[:, :64, :48]
    order = [(1, 0), (0, 0), (0, 1), (1, 1)]  # (time, position)
    ds.PerFrameFunctionalGroupsSequence = [copy.deepcopy(frames[where]) for _, where in order]
    for group, (time, _) in zip(ds.PerFrameFunctionalGroupsSequence, order, strict=True):
        group.FrameContentSequence[0].TemporalPositionIndex = time + 1
    ds.NumberOfFrames, ds.Rows, ds.Columns = 4, 64, 48
    ds.PixelData = np.stack([pixels[where] + 100 * time for time, where in order]).astype("<u2").tobytes()
    ds.save_as(tmp_path / "x.dcm")
    series, refused = find_series([tmp_path / "x.dcm"])
    assert refused == []
    assert [one.volume for one in series] == [0, 1]
    whole = read_series([ENHANCED_CT])
    later, first = (
        read_series(one.files, volume=one.volume) for one in series
    )  # the later one comes first in the file
    np.testing.assert_array_equal(first.array, whole.array[:48, :64])
    np.testing.assert_array_equal(later.array, whole.array[:48, :64] + 100)
    with pytest.raises(DicomError, match="2 series or volumes"):
        read_series([tmp_path / "x.dcm"])
    with pytest.raises(DicomError, match="hold 2 volumes, number 2 is asked for"):
        read_series([tmp_path / "x.dcm"], volume=2)


def test_frames_without_a_place_are_refused():
    assert reasons([Path(get_testdata_file("emri_small.dcm", download=False))]) == {"multi-frame"}


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"])
def test_a_mosaic_is_the_same_volume_to_nibabel(tmp_path, name):
    path = unzipped(name, tmp_path)
    volume = read_series([path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nibabel.nicom.dicomwrappers import wrapper_from_file

        truth = wrapper_from_file(path)
        np.testing.assert_array_equal(volume.array.transpose(1, 0, 2), truth.get_data())  # nibabel: rows first
    np.testing.assert_allclose(volume.geometry.lps()[:, [1, 0, 2, 3]], truth.affine, rtol=0, atol=1e-4)
    assert volume.array.shape == (128, 128, 48)


def test_two_mosaics_of_one_series_are_two_volumes(tmp_path):
    paths = [unzipped(name, tmp_path) for name in ("siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz")]
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = "2.25.1", "2.25.2", "2.25.3"
        ds.save_as(path)
    series, refused = find_series(paths)
    assert ([one.files for one in series], refused) == ([(path,) for path in paths], [])


def test_a_mosaic_without_its_private_header_is_refused(tmp_path):
    path = unzipped("siemens_dwi_0.dcm.gz", tmp_path)
    ds = pydicom.dcmread(path)
    ds.remove_private_tags()
    ds.save_as(path)
    assert reasons([path]) == {"mosaic"}


@pytest.mark.parametrize(("signed", "bits"), [(1, 16), (0, 16), (0, 12)])
def test_monochrome1_is_inverted_as_simpleitk_does(tmp_path, signed, bits):
    path = Folder(tmp_path).add(
        0, PhotometricInterpretation="MONOCHROME1", PixelRepresentation=signed, BitsStored=bits, HighBit=bits - 1
    )
    (series,), _ = find_series([path])
    assert series.inverted
    np.testing.assert_array_equal(read_series([path]).array[..., 0], sitk.GetArrayFromImage(sitk.ReadImage(path))[0].T)


def test_padding_of_the_wrong_sign_is_taken_by_its_bits(tmp_path):
    pixels = plane(0)
    pixels[:9] = PADDING
    folder = Folder(tmp_path)
    right = folder.add(0, "right.dcm", pixels=pixels, change=pad)
    wrong = folder.add(0, "wrong.dcm", pixels=pixels, change=lambda ds: ds.add_new(0x00280120, "US", PADDING + 65536))
    one, other = read_series([right]).array, read_series([wrong]).array
    np.testing.assert_array_equal(one, other)
    assert (one[:, :9] == -1024).all()
    np.testing.assert_array_equal(one[:, 9:, 0].T, pixels[9:] - 1024.0)


def test_a_range_of_padding_values_is_filled(tmp_path):
    pixels = plane(0)
    pixels[0, :4] = -2000, -1995, -1990, -1989

    def change(ds):
        pad(ds)
        ds.add_new(0x00280121, "SS", -1990)

    path = Folder(tmp_path).add(0, pixels=pixels, change=change)
    assert read_series([path]).array[:4, 0, 0].tolist() == [-1024, -1024, -1024, -1989 - 1024]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"PatientWeight": None}, "PatientWeight is missing"),
        ({"PatientWeight": 0}, r"PatientWeight is 0\.0"),
        ({"Units": "CNTS"}, "Units are CNTS"),
        ({"CorrectedImage": ["DECY"]}, "CorrectedImage lacks ATTN"),
        ({"DecayCorrection": "NONE"}, "DecayCorrection is NONE"),
        ({"SeriesTime": None}, "SeriesDate and SeriesTime is missing"),
        ({"SeriesTime": "130000"}, "SeriesTime lies behind AcquisitionTime"),
        ({"RadiopharmaceuticalInformationSequence": None}, "RadiopharmaceuticalInformationSequence is missing"),
    ],
)
def test_pet_without_what_suv_needs_is_refused_with_the_tag(tmp_path, change, what):
    pet(Folder(tmp_path), **change)
    with pytest.raises(DicomError, match=what):
        read_series(sorted(tmp_path.iterdir()))


def test_pet_that_is_corrected_to_the_injection_needs_no_times(tmp_path):
    folder = Folder(tmp_path)
    pet(folder, DecayCorrection="ADMIN", SeriesTime=None)
    volume = read_series(sorted(tmp_path.iterdir()))
    np.testing.assert_allclose(volume.array, folder.truths[0].array / 2, rtol=1e-5)  # 148 MBq, twice what is left
    assert (volume.modality, volume.unit) == ("PT", "SUVbw")


def test_pet_that_is_suv_already_stays_as_it_is(tmp_path):
    pet(Folder(tmp_path), Units="GML")
    values = read_series(sorted(tmp_path.iterdir())).array[..., 0]
    np.testing.assert_allclose(values.T, plane(0) * 3.5, rtol=1e-6)


def test_contours_without_their_image_are_refused_by_name(tmp_path):
    path = Folder(tmp_path).add(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")
    assert reasons([path]) == {"contours"}


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_compressed_files_hold_the_values_of_the_plain_one(name):
    plain, packed = (Path(get_testdata_file(one, download=False)) for one in ("MR_small.dcm", name))
    np.testing.assert_array_equal(read_series([packed]).array, read_series([plain]).array)


@pytest.mark.parametrize(
    ("name", "size"),
    [("MR_small_jp2klossless.dcm", (64, 64)), ("MR_small_jpeg_ls_lossless.dcm", (64, 64)), ("JPEG-lossy.dcm", (1024, 256)),
     ("JPEG2000.dcm", (1024, 256))],
)  # fmt: skip
def test_the_size_that_a_codestream_claims_is_read(name, size):
    ds = pydicom.dcmread(get_testdata_file(name, download=False))
    assert codestream_size(next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))) == size
    assert codestream_size(b"") is codestream_size(b"\xff\xd8\xff") is None


def test_a_codestream_that_claims_more_than_the_header_is_not_decoded(tmp_path):
    content = bytearray(Path(get_testdata_file("MR_small_jp2klossless.dcm", download=False)).read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 8
    content[at : at + 8] = b"\x00\x00\xea\x60" * 2  # 60,000
    (tmp_path / "x.dcm").write_bytes(content)
    with pytest.raises(DicomError, match=r"says that it is \(60000, 60000\), the header \(64, 64\)"):
        read_series([tmp_path / "x.dcm"])


def test_an_image_that_claims_more_than_its_bytes_can_hold_is_refused(tmp_path):
    ds = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm", download=False))
    ds.Rows = ds.Columns = 30_000
    buffer = io.BytesIO()
    ds.save_as(buffer)
    (tmp_path / "x.dcm").write_bytes(buffer.getvalue())
    assert reasons([tmp_path / "x.dcm"]) == {"too-large"}
