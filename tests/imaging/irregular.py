"""Folders as hospitals send them, built from one real CT slice, each with the volumes that are truly in it.

A reader is right where every volume that it returns is one of these, to the voxel and to 0.01 mm, in any order of axes.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
)

SLICES, STEP = 6, 5.0
ORIGIN = np.array([-158.0, -179.0, -75.0])
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
SPACING = 0.661468
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
INTERCEPT, PADDING = -1024, -2000


@dataclass(frozen=True)
class Truth:
    array: np.ndarray  # (columns, rows, slices)
    affine: np.ndarray  # index -> RAS mm


@dataclass
class Folder:
    """A folder under construction."""

    path: Path
    truths: list[Truth] = field(default_factory=list)

    def add(self, k, name=None, *, pixels=None, place=None, axes=AXIAL, change=None, compress=None, **tags):
        """One slice, the k-th of the usual stack unless told otherwise."""
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
        stored = plane(k) if pixels is None else pixels
        ds.PixelData, (ds.Rows, ds.Columns) = stored.astype("<i2").tobytes(), stored.shape
        del ds.PixelPaddingValue
        ds.InstanceNumber, ds.SeriesInstanceUID, ds.PatientID = k + 1, "2.25.1", "PLANTED-1"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.9{len(list(self.path.rglob('*')))}"
        ds.ImageOrientationPatient = [value for axis in axes for value in axis]
        where = ORIGIN + k * STEP * np.cross(*axes) if place is None else np.asarray(place)
        ds.ImagePositionPatient = where.tolist()
        for keyword, value in tags.items():
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
        if change:
            change(ds)
        if compress:
            ds.compress(compress, generate_instance_uid=False)
        path = self.path / (name or f"{k:02d}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path)
        return path

    def stack(self, ks=range(SLICES), prefix="", **options):
        for k in ks:
            self.add(k, f"{prefix}{k:02d}.dcm", **options)

    def true(self, ks=range(SLICES), *, values=None, axes=AXIAL, step=None, origin=None, modify=lambda k, hu: hu):
        """Say that these slices are a volume of the folder."""
        ks = list(ks)
        planes = [modify(k, plane(k) + float(INTERCEPT)) for k in ks] if values is None else values
        normal = np.cross(*axes)
        lps = np.eye(4)
        lps[:3, :3] = np.array([np.array(axes[0]) * SPACING, np.array(axes[1]) * SPACING,
                                normal * STEP if step is None else step]).T  # fmt: skip
        lps[:3, 3] = ORIGIN + ks[0] * STEP * normal if origin is None else origin
        self.truths.append(Truth(np.array(planes, np.float32).T, LPS @ lps))


def plane(k):
    """Stored values of the k-th slice: the real one, moved, so that no two slices or directions are alike."""
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    return np.roll(ds.pixel_array, (7 * k, 3 * k), (0, 1))


def control(f):
    f.stack()
    f.true()


def missing_slice(f):
    f.stack([0, 1, 2, 4, 5])


def duplicate_slice(f):
    f.stack()
    f.add(3, "copy.dcm")
    f.true()


def unequal_spacing(f):
    for k, z in enumerate((0, 1, 4, 9, 11, 20)):
        f.add(k, place=np.add(ORIGIN, [0, 0, z]))


def equal_instance_numbers(f):
    for k, name in enumerate("dbface"):
        f.add(k, f"{name}.dcm", InstanceNumber=1)
    f.true()


def no_instance_numbers(f):
    for k, name in enumerate("dbface"):
        f.add(k, f"{name}.dcm", InstanceNumber=None)
    f.true()


def two_series(f):
    f.stack(prefix="a")
    f.stack(prefix="b", SeriesInstanceUID="2.25.2", RescaleIntercept=0)
    f.true()
    f.true(modify=lambda k, hu: hu - INTERCEPT)


def localizer_of_the_same_size(f):
    f.stack()
    f.add(9, "scout.dcm", axes=SAGITTAL, place=np.add(ORIGIN, [40, 0, 30]))
    f.true()


def localizer_of_another_size(f):
    f.stack()
    f.add(9, "scout.dcm", pixels=plane(0)[:64, :96], axes=SAGITTAL)
    f.true()


def two_time_points(f):
    for t in (1, 2):
        f.stack(prefix=f"t{t}-", TemporalPositionIdentifier=t, RescaleIntercept=INTERCEPT + t)
        f.true(modify=lambda k, hu, t=t: hu + t)


def two_time_points_told_by_the_clock(f):
    for t in (1, 2):
        f.stack(prefix=f"t{t}-", AcquisitionTime=f"12000{t}", RescaleIntercept=INTERCEPT + t)
        f.true(modify=lambda k, hu, t=t: hu + t)


def two_time_points_told_by_nothing(f):
    for t in (1, 2):
        f.stack(prefix=f"t{t}-", RescaleIntercept=INTERCEPT + t)
        f.true(modify=lambda k, hu, t=t: hu + t)


def two_patients_in_one_series(f):
    f.stack([0, 1, 2])
    f.stack([3, 4, 5], PatientID="PLANTED-2")


def two_patients_interleaved(f):
    f.stack([0, 2, 4])
    f.stack([1, 3, 5], PatientID="PLANTED-2")


def zero_byte_slice(f):
    f.stack()
    (f.path / "03.dcm").write_bytes(b"")


def truncated_slice(f):
    f.stack()
    path = f.path / "03.dcm"
    path.write_bytes(path.read_bytes()[:-5000])


def gantry_tilt(f):
    step = np.array([0, STEP * np.tan(np.radians(20)), STEP])
    for k in range(SLICES):
        f.add(k, place=ORIGIN + k * step)
    f.true(step=step)


def drifting_slice(f):
    for k in range(SLICES):
        f.add(k, place=np.add(ORIGIN, [3.0 if k == 2 else 0, 0, k * STEP]))


def monochrome1(f):
    for k in range(SLICES):
        f.add(k, pixels=-1 - plane(k), PhotometricInterpretation="MONOCHROME1")
    f.true()


def padding(f):
    corner = np.add.outer(np.arange(128), np.arange(128)) < 40
    for k in range(SLICES):
        f.add(k, pixels=np.where(corner, PADDING, plane(k)), change=pad)
    f.true(modify=lambda k, hu: np.where(corner, -1024, hu))


def pad(ds):
    ds.add_new(0x00280120, "SS", PADDING)


def pet(f, **change):
    """Injected one half-life before the scan: 74 MBq left of 148, in 70 kg."""
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife, drug.RadiopharmaceuticalStartTime = 148e6, 6586, "100000"
    tags = {
        "SOPClassUID": PositronEmissionTomographyImageStorage, "Modality": "PT", "Units": "BQML",
        "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20200101",
        "SeriesTime": "114946", "AcquisitionDate": "20200101", "AcquisitionTime": "115000", "RescaleIntercept": 0,
        "RescaleSlope": 3.5, "RadiopharmaceuticalInformationSequence": Sequence([drug]),
    }  # fmt: skip
    f.stack(**(tags | change))
    f.true(modify=lambda k, hu: (hu - INTERCEPT) * 3.5 * 70_000 / 74e6)


def pet_without_weight(f):
    pet(f, PatientWeight=None)


def slope_per_slice(f):
    for k in range(SLICES):
        f.add(k, RescaleSlope=1 + k / 4)
    f.true(modify=lambda k, hu: (hu - INTERCEPT) * (1 + k / 4) + INTERCEPT)


def report_inside(f):
    f.stack()

    def make(ds):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
        ds.Modality = "SR"
        for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"):
            del ds[keyword]

    f.add(0, "report.dcm", change=make)
    f.true()


def sub_folders(f):
    for k in range(SLICES):
        f.add(k, f"{k // 2}/{k:02d}.dcm")
    f.true()


def reversed_numbers(f):
    for k in range(SLICES):
        f.add(k, f"{SLICES - k}.dcm", InstanceNumber=SLICES - k)
    f.true()


def sagittal(f):
    f.stack(axes=SAGITTAL)
    f.true(axes=SAGITTAL)


def two_echoes(f):
    for echo in (1, 2):
        f.stack(
            prefix=f"e{echo}-", SOPClassUID=MRImageStorage, Modality="MR", EchoTime=10 * echo, RescaleIntercept=echo
        )
        f.true(modify=lambda k, hu, echo=echo: hu - INTERCEPT + echo)


def two_matrices(f):
    f.stack(prefix="a")
    for k in range(SLICES):
        f.add(k, f"b{k:02d}.dcm", pixels=plane(k)[:64])
    f.true()
    f.true(values=[plane(k)[:64] + float(INTERCEPT) for k in range(SLICES)])


def two_frames_of_reference(f):
    f.stack(prefix="a")
    f.stack(prefix="b", FrameOfReferenceUID="2.25.77", RescaleIntercept=0)
    f.true()
    f.true(modify=lambda k, hu: hu - INTERCEPT)


def medium_with_directory(f):
    f.stack()
    shutil.copy(Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/DICOMDIR", f.path / "DICOMDIR")
    (f.path / "AUTORUN.INF").write_text("[autorun]")
    f.true()


def compressed(f):
    f.stack(compress=RLELossless)
    f.true()


def deflated(f):
    f.stack(change=lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian))
    f.true()


BUILDERS: dict[
    str, tuple[Callable[[Folder], None], int, set[str]]
] = {  # volumes that ours gives, reasons of its refusals
    "control": (control, 1, set()),
    "missing slice": (missing_slice, 0, {"irregular-spacing"}),
    "duplicate slice": (duplicate_slice, 0, {"duplicate-position"}),
    "unequal spacing": (unequal_spacing, 0, {"irregular-spacing"}),
    "all InstanceNumber equal": (equal_instance_numbers, 1, set()),
    "no InstanceNumber": (no_instance_numbers, 1, set()),
    "two series": (two_series, 2, set()),
    "localizer, same size": (localizer_of_the_same_size, 1, {"single-slice"}),
    "localizer, other size": (localizer_of_another_size, 1, {"single-slice"}),
    "two time points, by index": (two_time_points, 2, set()),
    "two time points, by clock": (two_time_points_told_by_the_clock, 2, set()),
    "two time points, untold": (two_time_points_told_by_nothing, 0, {"duplicate-position"}),
    "two patients, one series": (two_patients_in_one_series, 0, {"several-patients"}),
    "two patients, interleaved": (two_patients_interleaved, 0, {"several-patients"}),
    "zero-byte slice": (zero_byte_slice, 0, {"irregular-spacing", "not-dicom"}),
    "truncated slice": (truncated_slice, 0, {"irregular-spacing", "truncated"}),
    "gantry tilt": (gantry_tilt, 0, {"gantry-tilt"}),
    "one slice beside": (drifting_slice, 0, {"irregular-spacing"}),
    "MONOCHROME1": (monochrome1, 1, set()),
    "padding": (padding, 1, set()),
    "PET in Bq/ml": (pet, 1, set()),
    "PET without weight": (pet_without_weight, 0, {"no-suv"}),
    "slope per slice": (slope_per_slice, 1, set()),
    "report inside": (report_inside, 1, {"not-a-scan"}),
    "sub-folders": (sub_folders, 1, set()),
    "reversed numbering": (reversed_numbers, 1, set()),
    "sagittal": (sagittal, 1, set()),
    "two echoes": (two_echoes, 2, set()),
    "two matrices": (two_matrices, 2, set()),
    "two frames of reference": (two_frames_of_reference, 2, set()),
    "DICOMDIR and AUTORUN": (medium_with_directory, 1, {"not-an-image", "not-dicom"}),
    "RLE": (compressed, 1, set()),
    "deflated": (deflated, 0, {"deflated"}),
}


def build(name: str, path: Path) -> list[Truth]:
    """The folder of that name, and the volumes that are truly in it."""
    path.mkdir(parents=True)
    folder = Folder(path)
    BUILDERS[name][0](folder)
    return folder.truths


def is_true(array: np.ndarray, affine: np.ndarray, truths: list[Truth]) -> bool:
    """Whether a volume is one of the true ones, in any order of axes."""
    if np.linalg.matrix_rank(affine) < 4 or array.ndim != 3:
        return False
    array, affine = canonical(array, affine)
    for truth in truths:
        other, place = canonical(truth.array, truth.affine)
        if (
            array.shape == other.shape
            and np.abs(affine - place).max() < 0.01
            and np.allclose(array, other, rtol=1e-5, atol=1e-2)
        ):
            return True
    return False


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
