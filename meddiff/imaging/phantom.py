"""The embedded data set: CT and T1-like MR scans of heads that never existed, with label maps and lesions.

A head follows from the seed and the patient's number alone: any size, modality and number of slices shows the same one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddiff.errors import ConfigError
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.phantom_anatomy import TISSUES, tissue_fractions
from meddiff.imaging.phantom_head import Head, draw_head
from meddiff.imaging.phantom_shapes import Waves
from meddiff.imaging.volume import Volume
from meddiff.seeds import derive

LABELS: dict[int, str] = {
    0: "background",
    1: "csf",
    2: "grey matter",
    3: "white matter",
    4: "lesion",
    5: "scalp",  # skin, fat and the muscle of the neck
    6: "skull",
}

FIELD_OF_VIEW_MM = 240.0
_SMALLEST_SIZE = 16  # coarser voxels than 15 mm show no head
_LESION = TISSUES.index("lesion")
_LABEL_OF_TISSUE = (0, 5, 5, 5, 6, 6, 1, 2, 3, 4)
_HU = (-1000.0, 30.0, -70.0, 40.0, 1150.0, 550.0, 6.0, 38.0, 28.0)  # of `TISSUES` without the lesion
_T1 = (0.0, 480.0, 850.0, 380.0, 60.0, 330.0, 150.0, 550.0, 800.0)
_BLEEDING = {"ct": 65.0, "mr": 950.0}
_INFARCT = {"ct": 15.0, "mr": 340.0}
_LOWEST_HU = -1024.0  # what a 12-bit scanner can store


@dataclass(frozen=True, eq=False)
class Phantom:
    """One scan of an invented patient with the truth about it."""

    image: Volume  # HU for CT, a.u. for MR; whole numbers, as scanners store them
    label: Volume  # numbers of `LABELS`, the tissue that fills most of the voxel
    lesion: bool
    patient: str  # "phantom_001"


def phantom(patient: int, *, seed: int = 0, modality: str = "ct", size: int = 64, slices: int | None = None) -> Phantom:
    """Scan of one patient: (size, size, slices or size) voxels, axes RAS, over a field of view of 240 mm in all three.

    Fewer slices are thicker ones. Raises ConfigError for a negative patient, an unknown modality or a size below 16.
    """
    _check(patient, modality, size, slices)
    shape = (size, size, slices or size)
    geometry = Geometry.make(shape, tuple(FIELD_OF_VIEW_MM / n for n in shape), "RAS")
    return _scan(patient, seed, modality, geometry)


def phantom_slice(
    patient: int,
    *,
    seed: int = 0,
    modality: str = "ct",
    size: int = 64,
    height_mm: float = 20.0,
    thickness_mm: float = 5.0,
) -> Phantom:
    """One axial slice, (size, size, 1) voxels, at a height above the centre, of the head that `phantom` shows whole."""
    _check(patient, modality, size, 1)
    upright = Geometry.make((size, size, 1), (FIELD_OF_VIEW_MM / size, FIELD_OF_VIEW_MM / size, thickness_mm), "RAS")
    affine = upright.affine.copy()
    affine[2, 3] = height_mm
    return _scan(patient, seed, modality, Geometry(upright.shape, affine))


def _scan(patient: int, seed: int, modality: str, geometry: Geometry) -> Phantom:
    head = draw_head(_rng(seed, patient, "anatomy"))
    fractions = tissue_fractions(head, geometry.affine, geometry.shape)
    signal = _signal(head, fractions, modality)
    noise = _rng(seed, patient, "noise", modality)
    if modality == "ct":
        image = Volume(_ct(signal, noise), geometry, "CT", "HU")
    else:
        image = Volume(_mr(signal, geometry, noise), geometry, "MR", "a.u.")
    label = Volume(_label(fractions), geometry, "SEG", "label")
    return Phantom(image, label, head.lesion is not None, f"phantom_{patient:03d}")


def _check(patient: int, modality: str, size: int, slices: int | None) -> None:
    if modality not in ("ct", "mr"):
        raise ConfigError(f"phantom: modality {modality!r} is unknown; choose 'ct' or 'mr'.")
    if patient < 0:
        raise ConfigError(f"phantom: patient {patient} is negative; number the patients from 0 up.")
    if size < _SMALLEST_SIZE or (slices is not None and slices < 1):
        raise ConfigError(
            f"phantom: {size} voxels and {slices or size} slices show no head; "
            f"ask for a size of at least {_SMALLEST_SIZE} and at least 1 slice."
        )


def _rng(seed: int, patient: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng(derive(seed, "phantom", patient, *purpose))


def _label(fractions: np.ndarray) -> np.ndarray:
    """Number of the label with the largest share, (*shape) uint8; a lesion keeps at least the voxel it fills most."""
    shares = np.zeros((len(LABELS), *fractions.shape[1:]), np.float32)
    for tissue, number in enumerate(_LABEL_OF_TISSUE):
        shares[number] += fractions[tissue]
    label = shares.argmax(0).astype(np.uint8)
    if fractions[_LESION].any():
        label.flat[fractions[_LESION].argmax()] = 4
    return label


def _signal(head: Head, fractions: np.ndarray, modality: str) -> np.ndarray:
    """Noise-free scan, (*shape) float32: the mean of the tissues' values over the voxel, as partial volume makes it."""
    bleeding = head.lesion is not None and head.lesion.bleeding
    lesion = (_BLEEDING if bleeding else _INFARCT)[modality]
    values = np.array([*(_HU if modality == "ct" else _T1), lesion], np.float32)
    return np.tensordot(values, fractions, axes=1)


def _ct(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """HU with the grainy noise of a reconstruction kernel: correlated in the plane, 4 to 6 HU."""
    noise = rng.normal(size=signal.shape)
    for axis in (0, 1):
        noise = 0.5 * noise + 0.25 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    noise *= rng.uniform(4.0, 6.0) / 0.375  # the two filters leave a standard deviation of 6 / 16
    return np.rint(np.maximum(signal + noise, _LOWEST_HU)).astype(np.float32)


def _mr(signal: np.ndarray, geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with equal Gaussian noise in both parts (Rician), under a smooth coil profile."""
    bias = Waves.draw(rng, 6, (350.0, 600.0))
    index = np.indices(signal.shape).reshape(3, -1)
    mm = (geometry.affine[:3, :3] @ index + geometry.affine[:3, 3:]).astype(np.float32)
    coil = np.exp(np.float32(0.12) * bias(mm).reshape(signal.shape))
    sigma = rng.uniform(12.0, 20.0)
    real = signal * coil + sigma * rng.normal(size=signal.shape)
    imaginary = sigma * rng.normal(size=signal.shape)
    return np.rint(np.hypot(real, imaginary)).astype(np.float32)


def write_cohort(
    folder: Path | str,
    patients: int,
    *,
    modality: str = "ct",
    format: str = "nifti",
    size: int = 64,
    slices: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,  # called with (patients written, patients)
) -> list[Path]:
    """Scans of patients 1 to `patients`, as files; returns their paths. Same arguments, same bytes.

    "nifti" is the raw layout of nnU-Net (imagesTr, labelsTr, dataset.json), whose extra key "classes" says who has a
    lesion. "dicom" is one series a patient, patient_001/CT/*.dcm, without label maps and with an invented identity in
    the headers, to be found and removed. Raises ConfigError if the folder already holds something.
    """
    folder = Path(folder)
    if format not in ("nifti", "dicom"):
        raise ConfigError(f"phantom: format {format!r} is unknown; choose 'nifti' or 'dicom'.")
    if patients < 1:
        raise ConfigError(f"phantom: a cohort of {patients} patients is empty; ask for at least 1.")
    _check(1, modality, size, slices)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: not an empty folder; cohorts must not mix. Choose a new one, or empty it.")
    written: list[Path] = []
    classes = {}
    for patient in range(1, patients + 1):
        scan = phantom(patient, seed=seed, modality=modality, size=size, slices=slices)
        classes[scan.patient] = "lesion" if scan.lesion else "no lesion"
        written += _write_nifti(folder, scan) if format == "nifti" else _write_dicom(folder, scan, patient, seed)
        if progress is not None:
            progress(patient, patients)
    if format == "nifti":
        written.append(_write_dataset(folder, modality, classes))
    return written


def _write_nifti(folder: Path, scan: Phantom) -> list[Path]:
    image = folder / "imagesTr" / f"{scan.patient}_0000.nii.gz"
    label = folder / "labelsTr" / f"{scan.patient}.nii.gz"
    for path, volume in ((image, scan.image), (label, scan.label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, volume)
    return [image, label]


def _write_dataset(folder: Path, modality: str, classes: dict[str, str]) -> Path:
    """nnU-Net's description of the data set, with the class of every case added."""
    path = folder / "dataset.json"
    content = {
        "name": "meddiff phantom heads",
        "description": "Computed heads of nobody",
        "channel_names": {"0": modality.upper()},
        "labels": {name: number for number, name in LABELS.items()},
        "numTraining": len(classes),
        "file_ending": ".nii.gz",
        "classes": classes,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _write_dicom(folder: Path, scan: Phantom, patient: int, seed: int) -> list[Path]:
    modality = scan.image.modality
    identity = Identity(
        patient_name=f"PHANTOM^PLANTED{patient:03d}",
        patient_id=f"PLANTED-ID-{seed}-{patient:03d}",
        birth_date=f"19{30 + patient % 60:02d}{1 + patient % 12:02d}{1 + patient % 28:02d}",
        institution="PLANTED HOSPITAL",
    )
    target = folder / f"patient_{patient:03d}" / modality
    uids = derive(seed, "uid", patient, modality)
    return write_series(target, scan.image, identity=identity, series_description="PHANTOM HEAD", uid_seed=uids)
