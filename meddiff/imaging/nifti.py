"""NIfTI in and out. What is damaged or contradicts itself is refused; what is written holds no header but our own.

`read_nifti` reads the whole stream, so that a wrong gzip checksum is an error and not a changed voxel.
"""

import gzip
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError

from meddiff.errors import GeometryError, NiftiError
from meddiff.imaging.body_parts import FACE_REMOVED, Face
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume

MAX_VOXELS = 2**31  # a header that promises more is refused before anything is inflated
SMALL_BYTES = 512 << 20  # that a gzip may inflate to from however little ...
MAX_RATIO = 200  # ... and bytes for a byte of gzip beyond that; scans reach 4, the largest label maps may need uint8
LARGEST_LABEL = 2**31 - 1
FORMS_TOLERANCE = (
    0.01  # voxels by which a corner may differ between sform and qform (float32 quaternions lose about 1e-3)
)
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: unknown (taken as mm), metre, millimetre, micrometre


def read_nifti(path: str | Path, *, label: bool = False, modality: str = "OT") -> Volume:
    """A 3D image as float32, or with `label` a label map as integers; a 2D one becomes a single slice.

    Where neither sform nor qform is coded, the header's spacing places the volume, centred on 0.
    NiftiError for a damaged or truncated file, four axes, colour or complex voxels, voxels that are not finite, an
    sform that contradicts the qform, and for a label map with values that are not whole.
    """
    path = Path(path)
    raw = _content(path)
    image = _parse(path, raw)
    geometry = _geometry(path, image)
    array = np.asanyarray(image.dataobj).reshape(geometry.shape)
    if label:
        whole = np.rint(array)
        if not np.array_equal(whole, array):
            found = float(array[whole != array][0])
            raise NiftiError(f"{path}: a label map holds whole numbers; found {found:g}. Is it an image?")
        if np.abs(whole.astype(np.float64)).max() > LARGEST_LABEL:
            raise NiftiError(
                f"{path}: holds label {whole.max():.0f}; at most {LARGEST_LABEL} is read. Renumber the labels."
            )
        array = whole.astype(np.int32)
    else:
        array = array.astype(np.float32)
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise NiftiError(
                f"{path}: {bad} of {array.size} voxels are NaN or infinite. Repair the file, or leave it out."
            )
    unit = "label" if label else "HU" if modality == "CT" else "a.u."
    return Volume(array, geometry, modality, unit)


@dataclass(frozen=True)
class NiftiFacts:
    """What a header says of its volume."""

    geometry: Geometry
    stored: np.dtype
    face: Face | None  # "removed" where `deidentify --strip-face` did; NIfTI does not say else


def nifti_facts(path: str | Path) -> NiftiFacts:
    """Grid, stored data type and face from the header alone; NiftiError as in `read_nifti`."""
    path = Path(path)
    image = _parse(path, _content(path, only_header=True))
    said = bytes(image.header["descrip"].item()).rstrip(b"\0").decode("latin-1")
    return NiftiFacts(_geometry(path, image), image.get_data_dtype(), "removed" if said == FACE_REMOVED else None)


def write_nifti(path: str | Path, volume: Volume) -> None:
    """Write `.nii` or `.nii.gz` with a fresh header: sform and qform (code 1, scanner) in mm, nothing else.

    Images are float32, label maps the smallest unsigned integer type, or int32 with negative labels. The qform is left
    out where the affine has a shear. The same volume gives the same bytes; the file has its name only when it is whole.
    NiftiError for labels that do not fit 32 bits.
    """
    _write(Path(path), _stored(path, volume), volume.geometry)


def nifti_gz(what: object, volume: Volume, description: str = "") -> bytes:
    """What `write_nifti` writes as `.nii.gz`, in memory, with a text of at most 79 characters in `descrip`.

    `what` names the volume in errors.
    """
    return _zipped(_encoded(_stored(what, volume), volume.geometry, description))


def _stored(what: object, volume: Volume) -> np.ndarray:
    """The voxels in the type that they are written in."""
    array = volume.array
    if not np.issubdtype(array.dtype, np.integer):
        return array.astype(np.float32)
    low, high = int(array.min()), int(array.max())
    if max(high, -low) > LARGEST_LABEL:
        raise NiftiError(f"{what}: labels from {low} to {high} do not fit 32 bits. Renumber the labels.")
    return array.astype(np.min_scalar_type(high) if low >= 0 else np.int32)


def write_nifti_channels(path: str | Path, channels: np.ndarray, geometry: Geometry) -> None:
    """Write images (C, I, J, K) on one grid as one file of shape (I, J, K, C), float32; else as `write_nifti`."""
    if channels.shape[1:] != geometry.shape:
        raise GeometryError(f"The channels have shape {channels.shape[1:]}, their geometry {geometry.shape}.")
    _write(Path(path), np.moveaxis(channels, 0, -1).astype(np.float32), geometry)


def _encoded(array: np.ndarray, geometry: Geometry, description: str = "") -> bytes:
    image = nib.Nifti1Image(array, geometry.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    if _apart_mm(geometry, Geometry(geometry.shape, image.get_qform())) > _forms_tolerance_mm(geometry):
        image.set_qform(None, code=0)  # a quaternion cannot hold a shear
    return image.to_bytes()


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=6, mtime=0)


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    content = _encoded(array, geometry)
    if path.name.endswith(".gz"):
        content = _zipped(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # opened by the user's umask: a scan may be private
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


KEPT_FIELDS = (  # what a reader of voxels needs; every other byte of the header may be text
    "dim", "intent_p1", "intent_p2", "intent_p3", "intent_code", "datatype", "bitpix", "slice_start", "slice_end",
    "slice_code", "slice_duration", "pixdim", "scl_slope", "scl_inter", "cal_max", "cal_min", "toffset", "dim_info",
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def nifti_without_text(path: str | Path, blank: Callable[[Path], np.ndarray] | None = None) -> bytes:
    """The inflated bytes of a single-file NIfTI with a header of numbers only, and the same voxel bytes.

    `descrip`, `aux_file`, `db_name`, `intent_name`, extensions and what follows the voxels are gone. Where `blank` marks
    voxels of a scan of three axes, they get its lowest stored value, and `descrip` says so. NiftiError as in `read_nifti`.
    """
    path = Path(path)
    raw = _content(path)
    start, end = _promised_end(path, raw[:544])
    old = _header(path, raw[:544])
    new = type(old)(endianness=old.endianness)
    for name in KEPT_FIELDS:
        new[name] = old[name]
    new["vox_offset"] = new.single_vox_offset
    new["magic"] = new.single_magic
    voxels = raw[start:end]
    if blank is not None:
        stored = np.frombuffer(voxels, old.get_data_dtype()).copy()
        stored[blank(path).ravel(order="F")] = stored.min()
        new["descrip"] = FACE_REMOVED
        voxels = stored.tobytes()
    return bytes(new.binaryblock) + bytes(4) + voxels


def _content(path: Path, *, only_header: bool = False) -> bytes:
    """The inflated bytes; no more than the header promises, and all of them, with the gzip checksum verified."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = igzip.IGzipFile(fileobj=file) if zipped else file
            head = stream.read(544)
            end = _promised_end(path, head)
            size = os.fstat(file.fileno()).st_size
            if zipped and end[1] > max(SMALL_BYTES, MAX_RATIO * size):
                raise NiftiError(
                    f"{path}: {size} bytes of gzip promise {end[1]} bytes, more than {MAX_RATIO} for one. If it is real, store "
                    "it uncompressed, or as a smaller type."
                )
            if only_header:
                return head + stream.read(max(end[0] - len(head), 0))
            content = head + stream.read(end[1] - len(head) + 1)
            if zipped and len(content) > end[1]:
                raise NiftiError(
                    f"{path}: inflates to more than the {end[1]} bytes its header promises. Export it again."
                )
    except (OSError, EOFError, isal_zlib.error) as error:  # type: ignore[misc]  # its stub calls the class an instance
        raise NiftiError(
            f"{path}: cannot be read whole ({error}). The file is damaged or missing; copy or export it again."
        ) from error
    if len(content) < end[1]:
        raise NiftiError(
            f"{path}: holds {len(content)} bytes, its header promises {end[1]}; it is truncated. Copy it again."
        )
    return content[: end[1]]


def _promised_end(path: Path, head: bytes) -> tuple[int, int]:
    """Where the voxels begin and end in the inflated file, from the header alone."""
    header = _header(path, head)
    shape = header.get_data_shape()
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    if voxels < 1 or voxels > MAX_VOXELS:
        raise NiftiError(
            f"{path}: the header promises {voxels} voxels {shape}; at most {MAX_VOXELS} are read. Is it an image?"
        )
    offset = float(header["vox_offset"])
    if not 0 <= offset <= 2**24:  # NaN is not
        raise NiftiError(
            f"{path}: the header puts the voxels at byte {offset:g}, behind implausibly long extensions. Export it again."
        )
    start = max(int(offset), header.single_vox_offset)
    return start, start + voxels * header.get_data_dtype().itemsize


def _header(path: Path, head: bytes) -> nib.Nifti1Header:
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    try:
        size = int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")
        if 348 in size and len(head) >= 348 and head[344:348] == b"n+1\0":
            return kinds[0](head[:348], check=False)
        if 540 in size and len(head) >= 540 and head[4:8] == b"n+2\0":
            return kinds[1](head[:540], check=False)
    except (HeaderDataError, ValueError) as error:
        raise NiftiError(f"{path}: the NIfTI header is damaged ({error}). Export the file again.") from error
    raise NiftiError(f"{path}: is not a single-file NIfTI (.nii, .nii.gz). Convert it, for instance with dcm2niix.")


def _parse(path: Path, content: bytes) -> nib.Nifti1Image:
    kind = nib.Nifti1Image if content[344:348] == b"n+1\0" else nib.Nifti2Image
    holder = kind.make_file_map({"image": io.BytesIO(content)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel warns of header fields that we do not use
            return kind.from_file_map(holder, mmap=False)
    except (HeaderDataError, ValueError, OSError) as error:
        raise NiftiError(f"{path}: the NIfTI header is damaged ({error}). Export the file again.") from error


def _geometry(path: Path, image: nib.Nifti1Image) -> Geometry:
    header = image.header
    kind = header.get_data_dtype()
    if kind.fields or kind.kind == "c":
        what = "colour" if kind.fields else "complex"
        raise NiftiError(f"{path}: has {what} voxels ({kind}); a scalar image is expected. Convert it to one channel.")
    shape = list(header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 3:
        raise NiftiError(
            f"{path}: has {len(shape)} axes {tuple(shape)}; a volume has 3. Split it into one file per volume."
        )
    i, j, k = shape + [1] * (3 - len(shape))
    mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7)
    if mm is None:
        raise NiftiError(
            f"{path}: the header's unit of length (code {int(header['xyzt_units']) & 7}) is unknown. Correct it."
        )
    try:
        forms = [form for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
        if not forms:
            forms = [header.get_base_affine()]
        grids = [Geometry((i, j, k), np.diag([mm, mm, mm, 1]) @ form) for form in forms]
    except (GeometryError, HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise NiftiError(f"{path}: the header does not place the volume: {error}") from error
    if len(grids) == 2:
        apart = _apart_mm(*grids)
        if apart > _forms_tolerance_mm(grids[0]):
            sform, qform = (np.array2string(g.affine[:3], precision=3, suppress_small=True) for g in grids)
            raise NiftiError(
                f"{path}: sform and qform place a corner {apart:.3g} mm apart, and readers differ in which they take.\n"
                f"sform {sform}\nqform {qform}\nDelete the wrong one, for instance by setting its code to 0."
            )
    return grids[0]


def _apart_mm(one: Geometry, other: Geometry) -> float:
    """How far a corner of one grid lies from the same corner of the other."""
    return float(np.abs(one.corners_mm() - other.corners_mm()).max())


def _forms_tolerance_mm(grid: Geometry) -> float:
    return FORMS_TOLERANCE * min(grid.spacing_mm)
