import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddiff.errors import NiftiError
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import nifti_facts, read_nifti, write_nifti
from meddiff.imaging.volume import Volume

SHEARED = np.array([[1.9, 0.3, 0.1, -40], [-0.3, 1.8, 0.4, 12], [0.05, -0.5, 2.9, 7], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    return Volume(array, Geometry((5, 6, 7), np.diag([2.0, 3.0, 4.0, 1.0])), "CT", "HU")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_volume_survives_a_round_trip(volume, tmp_path, name):
    write_nifti(tmp_path / name, volume)
    again = read_nifti(tmp_path / name, modality="CT")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.geometry.affine, volume.geometry.affine)
    assert (again.modality, again.unit, again.array.dtype) == ("CT", "HU", np.float32)
    assert nifti_facts(tmp_path / name).geometry.close(volume.geometry, 0)


def test_the_same_volume_gives_the_same_bytes(volume, tmp_path):
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


ROTATED = nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([2.0, 0.9, 5.0])
OBLIQUE = np.block([[ROTATED, np.array([[-40.0], [12.0], [7.0]])], [np.zeros((1, 3)), np.ones((1, 1))]])


@pytest.mark.parametrize(("affine", "qform"), [(OBLIQUE, 1), (SHEARED, 0)])
def test_oblique_affine_survives_in_float32_and_a_shear_leaves_the_qform_out(volume, tmp_path, affine, qform):
    grid = Geometry(volume.array.shape, affine)
    write_nifti(tmp_path / "x.nii", Volume(volume.array, grid))
    assert read_nifti(tmp_path / "x.nii").geometry.close(grid, 1e-4)
    assert nib.load(tmp_path / "x.nii").header["qform_code"] == qform


@pytest.mark.parametrize(
    ("values", "dtype"), [((0, 200), np.uint8), ((0, 300), np.uint16), ((0, 70_000), np.uint32), ((-1, 3), np.int32)]
)
def test_labels_are_stored_in_the_smallest_type_and_read_as_integers(tmp_path, values, dtype):
    array = np.zeros((3, 3, 3), dtype=np.int64)
    array[0, 0, 0], array[1, 1, 1] = values
    write_nifti(tmp_path / "x.nii", Volume(array, Geometry(array.shape, np.eye(4)), "SEG", "label"))
    assert nib.load(tmp_path / "x.nii").get_data_dtype() == dtype
    again = read_nifti(tmp_path / "x.nii", label=True)
    np.testing.assert_array_equal(again.array, array)
    assert again.array.dtype == np.int32


def test_an_image_is_no_label_map(volume, tmp_path):
    write_nifti(tmp_path / "x.nii", volume)
    with pytest.raises(NiftiError, match="whole numbers"):
        read_nifti(tmp_path / "x.nii", label=True)


def test_labels_beyond_32_bits_are_refused_in_and_out(tmp_path):
    array = np.full((2, 2, 2), 2**31, dtype=np.int64)
    with pytest.raises(NiftiError, match="do not fit 32 bits"):
        write_nifti(tmp_path / "x.nii", Volume(array, Geometry(array.shape, np.eye(4)), "SEG", "label"))
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=np.int64), tmp_path / "x.nii")
    with pytest.raises(NiftiError, match="holds label 2147483648"):
        read_nifti(tmp_path / "x.nii", label=True)


def test_a_failed_write_leaves_the_old_file_and_no_other(volume, tmp_path, monkeypatch):
    write_nifti(tmp_path / "x.nii", volume)
    before = (tmp_path / "x.nii").read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_nifti(tmp_path / "x.nii", Volume(volume.array + 1, volume.geometry))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def damaged(path: Path, volume: Volume, where: int) -> Path:
    write_nifti(path, volume)
    content = bytearray(path.read_bytes())
    content[where] ^= 0x01
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("where", [-6, -2, 700])
def test_a_flipped_bit_in_a_gzip_is_refused(volume, tmp_path, where):
    with pytest.raises(NiftiError, match=r"x\.nii\.gz: "):
        read_nifti(damaged(tmp_path / "x.nii.gz", volume, where))


@pytest.mark.parametrize("keep", [0, 100, 400, -5])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_truncated_file_is_refused(volume, tmp_path, keep, name):
    write_nifti(tmp_path / name, volume)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(NiftiError, match=r"truncated|cannot be read whole|not a single-file NIfTI"):
        read_nifti(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(volume, tmp_path, value):
    array = volume.array.copy()
    array[0, 1, 2] = value
    write_nifti(tmp_path / "x.nii", Volume(array, volume.geometry))
    with pytest.raises(NiftiError, match="1 of 210 voxels are NaN or infinite"):
        read_nifti(tmp_path / "x.nii")


def test_sform_that_contradicts_the_qform_is_refused_with_both_shown(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.diag([2, 2, 3, 1]))
    image.set_qform(np.eye(4), code=1)
    image.set_sform(np.diag([2, 2, 3, 1]), code=1)
    nib.save(image, tmp_path / "x.nii")
    with pytest.raises(NiftiError, match=r"(?s)6 mm apart.*sform .*qform "):
        read_nifti(tmp_path / "x.nii")


def test_four_axes_colour_and_complex_are_refused_by_name(tmp_path):
    cases = {
        "has 4 axes": np.zeros((3, 3, 3, 2), np.float32),
        "complex voxels": np.zeros((3, 3, 3), np.complex64),
        "colour voxels": np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
    }
    for message, array in cases.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "x.nii")
        with pytest.raises(NiftiError, match=message):
            read_nifti(tmp_path / "x.nii")


def test_axes_of_one_voxel_are_dropped_and_added(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 1), np.float32), np.eye(4)), tmp_path / "x.nii")
    assert read_nifti(tmp_path / "x.nii").array.shape == (3, 4, 5)
    nib.save(nib.Nifti1Image(np.zeros((3, 4), np.float32), np.eye(4)), tmp_path / "x.nii")
    assert read_nifti(tmp_path / "x.nii").array.shape == (3, 4, 1)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_units_of_length_are_read(tmp_path, unit, mm):
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "x.nii")
    np.testing.assert_allclose(read_nifti(tmp_path / "x.nii").geometry.spacing_mm, 2 * mm)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.full((2, 2, 2), 10, np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    content[112:120] = struct.pack("<ff", 2.0, -5.0)
    (tmp_path / "x.nii").write_bytes(content)
    stored = nib.Nifti1Image.from_filename(tmp_path / "x.nii").dataobj.get_unscaled()[0, 0, 0]
    assert read_nifti(tmp_path / "x.nii").array[0, 0, 0] == 2.0 * stored - 5.0


def test_a_header_that_promises_too_much_is_refused_before_anything_is_inflated(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(NiftiError, match="promises 64000000000 voxels"):
        read_nifti(tmp_path / "x.nii.gz")


def test_a_file_that_inflates_beyond_its_header_is_refused(volume, tmp_path):
    write_nifti(tmp_path / "x.nii", volume)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress((tmp_path / "x.nii").read_bytes() + bytes(1000)))
    with pytest.raises(NiftiError, match="inflates to more than"):
        read_nifti(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", bytes(1000)])
def test_other_files_are_no_nifti(tmp_path, content):
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(NiftiError, match="not a single-file NIfTI"):
        read_nifti(tmp_path / "x.nii")


def test_nothing_of_the_source_header_is_written(volume, tmp_path):
    write_nifti(tmp_path / "x.nii", volume)
    header = nib.load(tmp_path / "x.nii").header
    assert all(not header[field].tobytes().strip(b"\0") for field in ("descrip", "aux_file", "db_name", "intent_name"))
    assert len(header.extensions) == 0


def test_real_file_equals_nibabel():
    path = Path(nib.__file__).parent / "tests" / "data" / "anatomical.nii"
    volume, truth = read_nifti(path), nib.load(path)
    np.testing.assert_array_equal(volume.array, truth.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.geometry.affine, truth.affine)
