"""The phantom heads: the same head at every size, true labels, believable numbers, and cohorts that others can read."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from meddiff.errors import ConfigError
from meddiff.imaging.dicom import read_series
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.phantom import FIELD_OF_VIEW_MM, LABELS, Phantom, phantom, write_cohort
from meddiff.imaging.phantom_anatomy import TISSUES, tissue_fractions
from meddiff.imaging.phantom_head import draw_head

NUMBER = {name: number for number, name in LABELS.items()}


def fractions(size: int, slices: int | None = None, patient: int = 2) -> np.ndarray:
    """Tissue shares of one head, (tissues, size, size, slices or size)."""
    shape = (size, size, slices or size)
    spacing = FIELD_OF_VIEW_MM / np.array(shape)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -FIELD_OF_VIEW_MM / 2 + spacing / 2
    return tissue_fractions(draw_head(np.random.default_rng(patient)), affine, shape)


def halved(array: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 x 2 x 2 voxels over the last three axes."""
    i, j, k = (n // 2 for n in array.shape[-3:])
    return array.reshape(*array.shape[:-3], i, 2, j, 2, k, 2).mean((-5, -3, -1))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def ct() -> Phantom:
    return phantom(2, size=96)


@pytest.fixture(scope="module")
def small_cohort() -> list[Phantom]:
    return [phantom(patient, size=16) for patient in range(1, 41)]


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_same_patient_gives_the_same_bytes(modality: str) -> None:
    one, two = (phantom(7, seed=3, modality=modality, size=32) for _ in range(2))
    assert one.image.array.tobytes() == two.image.array.tobytes()
    assert one.label.array.tobytes() == two.label.array.tobytes()
    assert (one.lesion, one.patient) == (two.lesion, two.patient) == (one.lesion, "phantom_007")


def test_a_head_does_not_depend_on_the_global_generator_or_on_other_patients() -> None:
    first = phantom(4, size=24).image.array
    np.random.seed(1)  # noqa: NPY002 - what a caller may have done
    phantom(3, size=24)
    np.testing.assert_array_equal(phantom(4, size=24).image.array, first)


def test_patients_and_seeds_differ(small_cohort: list[Phantom]) -> None:
    heads = [scan.label.array > 0 for scan in [*small_cohort[:12], phantom(1, seed=1, size=16)]]
    for i, a in enumerate(heads):
        for b in heads[:i]:
            assert dice(a, b) < 0.99


def test_ct_and_mr_show_the_same_head() -> None:
    ct, mr = phantom(5, size=32), phantom(5, size=32, modality="mr")
    np.testing.assert_array_equal(ct.label.array, mr.label.array)
    assert (ct.image.modality, ct.image.unit, mr.image.modality, mr.image.unit) == ("CT", "HU", "MR", "a.u.")


def test_shapes_types_and_geometry() -> None:
    scan = phantom(1, size=32, slices=12)
    assert scan.image.array.shape == scan.label.array.shape == (32, 32, 12)
    assert (scan.image.array.dtype, scan.label.array.dtype) == (np.float32, np.uint8)
    assert scan.image.geometry.spacing_mm == pytest.approx((7.5, 7.5, 20.0))
    assert scan.image.geometry.orientation == "RAS"
    assert scan.image.geometry.close(scan.label.geometry)
    np.testing.assert_array_equal(scan.image.array, np.rint(scan.image.array))


def test_anatomy_is_the_same_at_any_size(ct: Phantom) -> None:
    coarse = phantom(2, size=48).label.array
    shares = halved(np.stack([ct.label.array == number for number in LABELS]).astype(np.float32))
    fine = shares.argmax(0)
    for name in ("background", "white matter", "scalp", "skull"):
        assert dice(fine == NUMBER[name], coarse == NUMBER[name]) > 0.9, name
    # The cortex is thinner than a voxel of 5 mm: which tissue wins there is decided twice on the way down.
    assert dice(fine == NUMBER["grey matter"], coarse == NUMBER["grey matter"]) > 0.85


def test_a_voxel_is_the_average_of_the_voxels_in_it() -> None:
    fine, coarse = halved(fractions(64)), fractions(32)
    for tissue, a, b in zip(TISSUES, fine, coarse, strict=True):
        assert np.abs(a - b).sum() <= 0.03 * (a + b).sum(), tissue


def test_thick_slices_are_averages_of_thin_ones() -> None:
    thin = fractions(32, slices=72).reshape(len(TISSUES), 32, 32, 24, 3).mean(-1)
    thick = fractions(32, slices=24)
    for tissue, a, b in zip(TISSUES, thin, thick, strict=True):
        assert np.abs(a - b).sum() <= 0.03 * (a + b).sum(), tissue


def test_shares_of_a_voxel_sum_to_one() -> None:
    shares = fractions(48)
    assert shares.min() >= -1e-6
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_edges_are_soft() -> None:
    """Along a line from the air into the scalp there is a voxel in between, for most lines: no staircase."""
    air = fractions(64)[0]
    outline = (air[:-1] > 0.5) != (air[1:] > 0.5)
    partial = ((air[:-1] > 0.02) & (air[:-1] < 0.98)) | ((air[1:] > 0.02) & (air[1:] < 0.98))
    assert partial[outline].mean() > 0.9


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("background", -1010, -990),
        ("csf", 0, 25),  # thin layers of it share their voxels with bone and grey matter
        ("grey matter", 32, 42),
        ("white matter", 25, 32),
        ("scalp", -50, 45),
        ("skull", 400, 1200),
    ],
)
def test_median_hu_of_each_label_is_that_of_its_tissue(ct: Phantom, name: str, low: float, high: float) -> None:
    assert low <= np.median(ct.image.array[ct.label.array == NUMBER[name]]) <= high


def test_lesions_are_bleedings_or_infarcts(small_cohort: list[Phantom]) -> None:
    bleeding = []
    for patient in [n for n, scan in enumerate(small_cohort, 1) if scan.lesion][:5]:
        scan = phantom(patient, size=48)
        median = np.median(scan.image.array[scan.label.array == NUMBER["lesion"]])
        assert 10 <= median <= 22 or 55 <= median <= 70
        bleeding.append(median > 40)
    assert any(bleeding)
    assert not all(bleeding)


def test_lesion_flag_agrees_with_the_label_map(small_cohort: list[Phantom]) -> None:
    for scan in small_cohort:
        assert scan.lesion == bool((scan.label.array == NUMBER["lesion"]).any())


def test_about_half_of_the_patients_have_a_lesion(small_cohort: list[Phantom]) -> None:
    assert 12 <= sum(scan.lesion for scan in small_cohort) <= 28


@pytest.mark.parametrize("patient", [1, 2, 3])
def test_the_skull_is_closed_and_the_head_is_in_view(patient: int) -> None:
    label = phantom(patient, size=64).label.array
    brain = np.isin(label, [NUMBER[name] for name in ("csf", "grey matter", "white matter", "lesion")])
    outside = np.isin(label, [NUMBER["background"], NUMBER["scalp"]])
    for axis in range(3):
        here, there = (np.arange(63), np.arange(1, 64))
        for a, b in ((brain, outside), (outside, brain)):
            assert not (a.take(here, axis) & b.take(there, axis)).any()
    for face in (label[0], label[-1], label[:, 0], label[:, -1], label[:, :, -1]):
        assert not face.any()
    assert label[:, :, 0].any()  # the neck goes on below


def test_tissue_volumes_are_those_of_an_adult(ct: Phantom) -> None:
    litres = {name: (ct.label.array == n).sum() * ct.label.geometry.voxel_ml / 1000 for name, n in NUMBER.items()}
    assert 0.5 < litres["grey matter"] < 0.9
    assert 0.3 < litres["white matter"] < 0.6
    assert 0.1 < litres["csf"] < 0.5


def test_mr_background_is_rician() -> None:
    scan = phantom(3, size=64, modality="mr")
    air = scan.image.array[:, :, 56:][scan.label.array[:, :, 56:] == 0]
    air = air[: len(air) // 4]  # a corner, far from the scalp
    # Without signal Rician noise is Rayleigh: mean / standard deviation = sqrt(pi / (4 - pi)).
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.05)
    assert air.min() >= 0


def test_mr_is_t1_like() -> None:
    scan = phantom(3, size=64, modality="mr")
    median = [np.median(scan.image.array[scan.label.array == NUMBER[name]]) for name in ("csf", "grey matter")]
    assert median[0] < median[1] < np.median(scan.image.array[scan.label.array == NUMBER["white matter"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "pet"}, "modality 'pet' is unknown; choose 'ct' or 'mr'"),
        ({"size": 8}, "size of at least 16"),
        ({"slices": 0}, "at least 1 slice"),
        ({"patient": -1}, "patient -1 is negative"),
    ],
)
def test_impossible_phantoms_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        phantom(**{"patient": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"patients": 0}, "at least 1"), ({"patients": 1, "format": "jpeg"}, "choose 'nifti' or 'dicom'")],
)
def test_impossible_cohorts_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_cohort(tmp_path / "cohort", **arguments)


def test_a_cohort_does_not_mix_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_cohort(tmp_path, 1, size=16)


def test_nifti_cohort_is_an_nnunet_raw_data_set(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    written = write_cohort(tmp_path, 2, size=24, progress=lambda done, total: seen.append((done, total)))
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert seen == [(1, 2), (2, 2)]
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "CT"}
    assert dataset["labels"] == NUMBER
    assert (dataset["numTraining"], dataset["file_ending"]) == (2, ".nii.gz")
    for number in (1, 2):
        scan = phantom(number, size=24)
        assert dataset["classes"][scan.patient] == ("lesion" if scan.lesion else "no lesion")
        image = read_nifti(tmp_path / "imagesTr" / f"{scan.patient}_0000.nii.gz", modality="CT")
        label = read_nifti(tmp_path / "labelsTr" / f"{scan.patient}.nii.gz", label=True)
        np.testing.assert_array_equal(image.array, scan.image.array)
        np.testing.assert_array_equal(label.array, scan.label.array)
        assert image.geometry.close(scan.image.geometry)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_dicom_cohort_carries_a_planted_identity(tmp_path: Path, modality: str) -> None:
    written = write_cohort(tmp_path, 2, modality=modality, format="dicom", size=24, slices=4)
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == 8
    for number in (1, 2):
        files = sorted((tmp_path / f"patient_{number:03d}" / modality.upper()).glob("*.dcm"))
        assert len(files) == 4
        header = pydicom.dcmread(files[0])
        assert header.Modality == modality.upper()
        assert header.PatientName == f"PHANTOM^PLANTED{number:03d}"
        assert "PLANTED" in header.PatientID
        assert "PLANTED" in header.InstitutionName
        assert len(header.PatientBirthDate) == 8
        scan = phantom(number, modality=modality, size=24, slices=4)
        volume = read_series(files)
        assert volume.geometry.close(scan.image.geometry, tolerance_mm=0.01)  # positions are decimal strings
        np.testing.assert_array_equal(volume.array, scan.image.array)


@pytest.mark.parametrize("format", ["nifti", "dicom"])
def test_the_same_cohort_is_the_same_bytes(tmp_path: Path, format: str) -> None:
    one, two = (write_cohort(tmp_path / name, 1, format=format, size=16, seed=5) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
