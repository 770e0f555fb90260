import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddiff.data.keys import pseudonym
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.data.scan import scan, write_scan
from meddiff.data.splits import split_counts, split_patients
from meddiff.errors import ManifestError
from meddiff.imaging.dicom_write import Identity, write_series
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.volume import Volume

KEY = b"a key for tests only"
GRID = Geometry.make((6, 5, 4), (1.0, 1.0, 2.0))


def image(path, seed, geometry=GRID):
    array = np.random.default_rng(seed).normal(size=geometry.shape).astype(np.float32)
    write_nifti(path, Volume(array, geometry))
    return path


def label(path, geometry=GRID, values=(0, 1)):
    array = np.resize(np.array(values, dtype=np.uint8), geometry.shape)
    write_nifti(path, Volume(array, geometry, "SEG", "label"))
    return path


def describe(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))


def nnunet(folder, cases=4, test=1):
    """Two channels, labels for training, no labels for test."""
    describe(
        folder,
        channel_names={"0": "T1", "1": "T2"},
        labels={"background": 0, "tumour": 1},
        classes={"c0": "yes", "c1": {"side": "left"}},
    )
    for n in range(cases + test):
        where = "Tr" if n < cases else "Ts"
        for channel in (0, 1):
            image(folder / f"images{where}" / f"c{n}_000{channel}.nii.gz", 10 * n + channel)
        if n < cases:
            label(folder / "labelsTr" / f"c{n}.nii.gz")


def medmnist(path, rows=(6, 2, 2), shape=(8, 7), labels=1):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in zip(("train", "val", "test"), rows, strict=True):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 3, (n, labels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


def files_of(manifest, case):
    return [
        path for source in (*case.image, *([case.label] if case.label else [])) for path in manifest.resolve(source)
    ]


def account(folder, cases, refused):
    """Asserts that every file is in a case or refused, never both; returns file name -> reason."""
    manifest = Manifest(tuple(cases), folder)
    accepted = {path for case in cases for path in files_of(manifest, case)}
    rejected = [Path(folder, one.path) for one in refused]
    assert len(set(rejected)) == len(rejected)
    assert not accepted & set(rejected)
    assert accepted | set(rejected) == {path for path in folder.rglob("*") if not path.is_dir()}
    return {Path(one.path).name: one.reason for one in refused}


def test_every_file_of_a_messy_folder_is_accounted_for(tmp_path):
    image(tmp_path / "a.nii.gz", 101)
    label(tmp_path / "a_seg.nii.gz")
    image(tmp_path / "copy" / "b.nii.gz", 101)
    image(tmp_path / "c.nii", 102)
    label(tmp_path / "c_mask.nii", Geometry.make((6, 5, 4), (1.0, 1.0, 2.5)))
    label(tmp_path / "d.nii.gz")
    label(tmp_path / "e-label.nii.gz")
    image(tmp_path / "f.nii.gz", 103)
    label(tmp_path / "f_seg.nii.gz")
    label(tmp_path / "f_label.nii.gz")
    image(tmp_path / "g.nii.gz", 104)
    nib.save(nib.Nifti1Image(np.full(GRID.shape, 0.5, np.float32), GRID.affine), tmp_path / "g_mask.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:40])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "table.json").write_text("{")
    (tmp_path / ".hidden.nii.gz").write_text("")
    (tmp_path / "dead.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    nnunet(tmp_path / "Dataset001_x")
    image(tmp_path / "Dataset001_x" / "imagesTr" / "odd.nii.gz", 99)
    label(tmp_path / "Dataset001_x" / "labelsTr" / "odd.nii.gz")
    medmnist(tmp_path / "pneumonia.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    reasons = account(tmp_path, cases, refused)
    assert Counter(case.layout for case in cases) == {"pairs": 1, "nnunet": 5, "medmnist": 10}
    assert reasons == {
        "b.nii.gz": "duplicate-content",
        "c.nii": "label-grid",
        "c_mask.nii": "label-grid",
        "d.nii.gz": "label-as-image",
        "e-label.nii.gz": "label-without-image",
        "f.nii.gz": "label-ambiguous",
        "f_seg.nii.gz": "label-ambiguous",
        "f_label.nii.gz": "label-ambiguous",
        "g.nii.gz": "label-unreadable",
        "g_mask.nii.gz": "label-unreadable",
        "four.nii.gz": "unreadable",
        "cut.nii.gz": "unreadable",
        "notes.txt": "not-an-image",
        "table.json": "not-an-image",
        ".hidden.nii.gz": "not-an-image",
        "dead.nii.gz": "not-a-file",
        "dataset.json": "not-an-image",
        "odd.nii.gz": reasons["odd.nii.gz"],
        "other.npz": "not-medmnist",
    }
    assert {one.reason for one in refused if Path(one.path).name == "odd.nii.gz"} == {
        "not-in-layout",
        "label-without-image",
    }
    assert "4 axes" in next(one.detail for one in refused if one.path == "four.nii.gz")


def test_same_folder_gives_the_same_bytes_in_any_order(tmp_path):
    nnunet(tmp_path / "one" / "D")
    medmnist(tmp_path / "two" / "m.npz")
    written = []
    for n, order in enumerate((["one", "two"], ["two", "one", "one/D"])):
        cases, refused = scan([tmp_path / name for name in order], key=KEY, root=tmp_path / "out")
        write_scan(tmp_path / "out" / f"{n}.jsonl", cases, refused)
        written.append([(tmp_path / "out" / f"{n}{end}").read_bytes() for end in (".jsonl", ".refused.jsonl")])
    assert written[0] == written[1]


def test_paths_follow_the_manifest_whether_or_not_the_scan_knew_its_folder(tmp_path):
    nnunet(tmp_path / "D")
    for name, root in (("a", tmp_path / "a"), ("b", None)):
        cases, refused = scan([tmp_path / "D"], key=KEY, root=root)
        write_scan(tmp_path / name / "x.jsonl", cases, refused)
    assert (tmp_path / "a" / "x.jsonl").read_bytes() == (tmp_path / "b" / "x.jsonl").read_bytes()
    assert json.loads((tmp_path / "b" / "x.refused.jsonl").read_text())["path"] == "../D/dataset.json"


def test_link_to_a_folder_above_ends(tmp_path):
    image(tmp_path / "in" / "x.nii.gz", 1)
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    cases, _ = scan([tmp_path], key=KEY)
    assert len(cases) == 1


def test_nnunet_keeps_channels_labels_classes_and_the_test_set(tmp_path):
    nnunet(tmp_path / "D", cases=7, test=2)
    cases, _ = scan([tmp_path], key=KEY, root=tmp_path, split=(0.5, 0.5, 0))
    by_file = {Path(case.image[0].path).name: case for case in cases}
    assert Counter(case.split for case in cases) == {"train": 4, "val": 3, "test": 2}
    assert {by_file["c7_0000.nii.gz"].split, by_file["c8_0000.nii.gz"].split} == {"test"}
    assert [source.modality for source in by_file["c2_0000.nii.gz"].image] == ["T1", "T2"]
    assert by_file["c2_0000.nii.gz"].labels == {"background": 0, "tumour": 1}
    assert by_file["c0_0000.nii.gz"].classes == {"class": "yes"}
    assert by_file["c1_0000.nii.gz"].classes == {"side": "left"}
    manifest = Manifest(tuple(cases), tmp_path)
    assert load_image(manifest, cases[0], "T2").modality == "MR"
    assert load_label(manifest, by_file["c0_0000.nii.gz"]).array.max() == 1


def test_nnunet_case_with_a_missing_channel_or_on_two_grids_is_refused(tmp_path):
    nnunet(tmp_path / "D", cases=4, test=0)
    (tmp_path / "D" / "imagesTr" / "c0_0001.nii.gz").unlink()
    image(tmp_path / "D" / "imagesTr" / "c1_0001.nii.gz", 5, Geometry.make((6, 5, 5), (1, 1, 2)))
    label(tmp_path / "D" / "labelsTr" / "c2.nii.gz", values=(0, 1, 7))
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    reasons = account(tmp_path, cases, refused)
    assert len(cases) == 1
    assert [reasons[f"c{n}_0000.nii.gz"] for n in range(3)] == ["channels", "channel-grid", "label-values"]
    assert "[7]" in next(one.detail for one in refused if one.reason == "label-values")


def test_decathlon_takes_what_its_list_names(tmp_path):
    root = tmp_path / "Task09"
    for n in range(4):
        image(root / "imagesTr" / f"s_{n}.nii.gz", n)
        label(root / "labelsTr" / f"s_{n}.nii.gz")
    image(root / "imagesTs" / "s_9.nii.gz", 9)
    listed = [{"image": f"./imagesTr/s_{n}.nii.gz", "label": f"./labelsTr/s_{n}.nii.gz"} for n in range(3)]
    gone = {"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"}
    outside = {"image": "../../s.nii.gz", "label": "./labelsTr/s_3.nii.gz"}
    describe(
        root,
        modality={"0": "CT"},
        labels={"0": "background", "1": "spleen"},
        training=[*listed, gone, outside],
        test=["./imagesTs/s_9.nii.gz"],
    )
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    assert len(cases) == 4
    assert {(case.layout, case.unit) for case in cases} == {("decathlon", "HU")}
    assert [case.split for case in cases if "imagesTs" in case.image[0].path] == ["test"]
    assert cases[0].labels == {"background": 0, "spleen": 1}
    reasons = {one.path: one.reason for one in refused}
    assert reasons["Task09/imagesTr/s_3.nii.gz"] == "not-in-layout"
    assert reasons["Task09/imagesTr/gone.nii.gz"] == "missing"


def test_decathlon_channels_in_one_file_are_refused_by_name(tmp_path):
    image(tmp_path / "imagesTr" / "s.nii.gz", 1)
    image(tmp_path / "other" / "x.nii.gz", 2)
    describe(
        tmp_path,
        modality={"0": "T1", "1": "T2"},
        labels={"0": "background"},
        training=[{"image": "imagesTr/s.nii.gz", "label": "labelsTr/s.nii.gz"}],
    )
    label(tmp_path / "labelsTr" / "s.nii.gz")
    with pytest.raises(ManifestError, match=r"2 x four-dimensional.*nnU-Net layout"):
        scan([tmp_path], key=KEY)


def test_bids_gives_each_segmentation_to_its_own_image(tmp_path):
    for n, sub in enumerate(("sub-01", "sub-02")):
        image(tmp_path / sub / "ses-1" / "anat" / f"{sub}_ses-1_T1w.nii.gz", n)
        image(tmp_path / sub / "ses-1" / "anat" / f"{sub}_ses-1_FLAIR.nii.gz", 10 + n)
        image(tmp_path / sub / "ses-2" / "anat" / f"{sub}_ses-2_T1w.nii.gz", 20 + n)
        image(tmp_path / sub / "ses-1" / "func" / f"{sub}_ses-1_task-rest_bold.nii.gz", 30 + n)
    label(tmp_path / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_dseg.nii.gz")
    label(
        tmp_path / "derivatives" / "fs" / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_desc-aseg_dseg.nii.gz",
        values=(0, 2),
    )
    image(tmp_path / "derivatives" / "fs" / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_desc-preproc_T1w.nii.gz", 50)
    label(tmp_path / "derivatives" / "fs" / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_space-MNI_dseg.nii.gz")
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    reasons = account(tmp_path, cases, refused)
    assert len({case.patient for case in cases}) == 2
    labelled = {Path(case.image[0].path).name: Path(case.label.path).name for case in cases if case.label}
    assert labelled == {
        "sub-01_ses-1_T1w.nii.gz": "sub-01_ses-1_dseg.nii.gz",
        "sub-02_ses-1_T1w.nii.gz": "sub-02_ses-1_desc-aseg_dseg.nii.gz",
    }
    assert len(cases) == 6
    assert set(reasons.values()) == {"not-in-layout"}
    assert next(case.labels for case in cases if case.label) == {"background": 0, "label_1": 1, "label_2": 2}


def test_bids_names_labels_by_the_nearest_look_up_table(tmp_path):
    for n, sub in enumerate(("sub-01", "sub-02")):
        image(tmp_path / sub / "anat" / f"{sub}_T1w.nii.gz", n)
        label(tmp_path / sub / "anat" / f"{sub}_dseg.nii.gz", values=(0, 2))
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tcsf\n2\tgrey matter\n")
    cases, _ = scan([tmp_path], key=KEY, root=tmp_path)
    assert [case.labels for case in cases] == [{"csf": 1, "grey matter": 2}] * 2
    (tmp_path / "dseg.tsv").write_bytes(b"index\tname\n\xff\t\xfe\n")
    cases, _ = scan([tmp_path], key=KEY, root=tmp_path)
    assert cases[0].labels == {"background": 0, "label_2": 2}


def test_pairs_put_the_modalities_of_one_name_under_one_patient(tmp_path):
    for n, patient in enumerate(("p1", "p2")):
        image(tmp_path / f"{patient}_T1.nii.gz", n)
        image(tmp_path / f"{patient}_FLAIR.nii.gz", 10 + n)
        image(tmp_path / "by folder" / patient / "ct.nii.gz", 20 + n)
    cases, _ = scan([tmp_path], key=KEY, root=tmp_path)
    patients = defaultdict(set)
    for case in cases:
        patients[case.patient].add(case.image[0].modality)
    assert sorted(map(sorted, patients.values())) == [["CT"], ["CT"], ["FLAIR", "T1"], ["FLAIR", "T1"]]
    assert {case.unit for case in cases if case.image[0].modality == "CT"} == {"HU"}


def test_integer_image_with_many_values_is_no_label(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    nib.save(nib.Nifti1Image(array, GRID.affine), tmp_path / "ct.nii.gz")
    halves = nib.Nifti1Image(array % 3, GRID.affine)
    halves.header.set_slope_inter(0.25, 0)
    nib.save(halves, tmp_path / "scaled_mr.nii.gz")
    assert len(scan([tmp_path], key=KEY)[0]) == 2


def test_medmnist_rows_are_upright_and_keep_their_split_and_class(tmp_path):
    arrays = medmnist(tmp_path / "m.npz")
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path, layout="medmnist")
    assert not refused
    assert Counter(case.split for case in cases) == {"train": 6, "val": 2, "test": 2}
    manifest = Manifest(tuple(cases), tmp_path)
    for case in cases:
        source = case.source()
        read = load_image(manifest, case)
        np.testing.assert_array_equal(read.array[..., 0].T, arrays[source.array][source.index])
        row = arrays[source.array.replace("images", "labels")][source.index]
        assert case.classes == {"label": str(row[0])}
    assert cases[0].shape == (7, 8, 1)
    assert cases[0].geometry.orientation == "LPS"


def test_medmnist_volumes_and_several_findings_are_read(tmp_path):
    arrays = medmnist(tmp_path / "m.npz", (2, 1, 1), (3, 5, 4), labels=2)
    cases, _ = scan([tmp_path], key=KEY)
    assert cases[0].shape == (4, 5, 3)
    assert set(cases[0].classes) == {"label_0", "label_1"}
    last = next(case for case in cases if case.split == "train" and case.source().index == 1)
    np.testing.assert_array_equal(load_image(Manifest(tuple(cases), tmp_path), last).array, arrays["train_images"][1].T)


def test_colour_medmnist_is_refused_by_name(tmp_path):
    medmnist(tmp_path / "colour.npz", shape=(8, 8, 3))
    image(tmp_path / "x.nii.gz", 1)
    _, refused = scan([tmp_path], key=KEY, root=tmp_path)
    assert [(one.path, one.reason) for one in refused] == [("colour.npz", "colour")]


def test_pickle_in_an_npz_is_never_opened(tmp_path):
    np.savez(tmp_path / "m.npz", train_images=np.array([{}, {}], dtype=object))
    image(tmp_path / "x.nii.gz", 1)
    _, refused = scan([tmp_path], key=KEY)
    assert [one.reason for one in refused] == ["not-medmnist"]


def test_identity_is_in_no_name(tmp_path):
    image(tmp_path / "PHANTOM-PLANTED.nii.gz", 1)
    (case,), _ = scan([tmp_path], key=KEY, root=tmp_path)
    assert case.patient == pseudonym(KEY, f"{tmp_path.name}/PHANTOM-PLANTED")
    assert case.case.startswith(case.patient)
    assert "PLANTED" not in case.case


def test_another_key_gives_other_pseudonyms(tmp_path):
    nnunet(tmp_path)
    one, other = ({case.patient for case in scan([tmp_path], key=key)[0]} for key in (KEY, KEY + b"!"))
    assert not one & other


def test_nothing_accepted_names_the_commonest_reasons(tmp_path):
    for n in range(3):
        label(tmp_path / f"x{n}.nii.gz", values=(0, n + 1))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ManifestError, match=r"none of 4 files .* 3 x label-as-image.* 1 x not-an-image"):
        scan([tmp_path], key=KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folders": ["none"]}, "is not a folder"),
        ({"folders": ["empty"]}, "holds no file"),
        ({"layout": "dcm"}, "no layout 'dcm'; choose one of auto, nnunet"),
        ({"split": (0.5, 0.2, 0.2)}, "add up to 1"),
        ({"split": (1.2, -0.2, 0)}, "not negative"),
        ({"split": (0.5, 0.5)}, "expected three numbers"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, message):
    image(tmp_path / "full" / "x.nii.gz", 1)
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / name for name in options.pop("folders", ["full"])]
    with pytest.raises(ManifestError, match=message):
        scan(folders, key=KEY, **options)


def test_damaged_description_is_named(tmp_path):
    nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ManifestError, match=r"dataset\.json: cannot be read as JSON"):
        scan([tmp_path], key=KEY)
    describe(tmp_path, labels={})
    with pytest.raises(ManifestError, match="needs `channel_names`"):
        scan([tmp_path], key=KEY)


def test_progress_ends_at_the_number_of_files(tmp_path):
    nnunet(tmp_path, cases=2, test=0)
    told = []
    scan([tmp_path], key=KEY, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize("patients", [1, 2, 3, 7, 10, 99, 100])
@pytest.mark.parametrize("proportions", [(0.7, 0.15, 0.15), (1 / 3, 1 / 3, 1 / 3), (0.8, 0.2, 0.0)])
def test_split_counts_are_the_proportions_to_less_than_one_patient(patients, proportions):
    counts = split_counts(patients, proportions)
    assert sum(counts) == patients
    assert patients == 1 or all(
        abs(count - patients * share) < 1 for count, share in zip(counts, proportions, strict=True)
    )


def test_split_depends_on_the_patients_and_not_on_their_order():
    patients = [f"P{n}" for n in range(50)]
    assert split_patients(patients, (0.7, 0.15, 0.15)) == split_patients(reversed(patients), (0.7, 0.15, 0.15))
    assert split_patients(["P1"], (0.1, 0.45, 0.45)) == {"P1": "train"}


def test_data_set_copied_under_another_name_is_refused_whole(tmp_path):
    nnunet(tmp_path / "A")
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    account(tmp_path, cases, refused)
    assert len(cases) == 5
    assert {one.reason for one in refused if one.path.startswith("B/")} == {"duplicate-content", "not-an-image"}


def ct(folder, patient, seed, slices=4):
    """A CT series of small whole numbers; returns its volume."""
    geometry = Geometry.make((6, 5, slices), (0.8, 0.8, 2.5), "LPS")
    array = np.random.default_rng(seed).integers(-1000, 1000, geometry.shape).astype(np.float32)
    volume = Volume(array, geometry, "CT", "HU")
    identity = Identity("PHANTOM^PLANTED", patient, "19010101", "PLANTED HOSPITAL")
    write_series(folder, volume, identity=identity, series_description="PLANTED SERIES", uid_seed=seed)
    return volume


def test_series_mixed_in_one_folder_come_apart(tmp_path):
    volumes = {}
    for seed, patient in enumerate(("PLANTED-1", "PLANTED-1", "PLANTED-2")):
        volumes[seed] = ct(tmp_path / f"series{seed}", patient, seed)
        for n, path in enumerate(sorted((tmp_path / f"series{seed}").iterdir())):
            (tmp_path / "all").mkdir(exist_ok=True)
            path.rename(tmp_path / "all" / f"{(7 * n + seed) % 11}-{seed}{n}")
    (tmp_path / "README").write_text("not DICOM")
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path / "out")
    assert [(one.path, one.reason) for one in refused] == [("../README", "not-dicom")]
    assert Counter(case.patient for case in cases) == {pseudonym(KEY, "PLANTED-1"): 2, pseudonym(KEY, "PLANTED-2"): 1}
    write_scan(tmp_path / "out" / "x.jsonl", cases, refused)
    assert "PLANTED" not in (tmp_path / "out" / "x.jsonl").read_text()
    manifest = Manifest.read(tmp_path / "out" / "x.jsonl")
    for case in manifest.cases:
        manifest.verify(case)
        read = load_image(manifest, case)
        (same,) = [volume for volume in volumes.values() if np.array_equal(volume.array, read.array)]
        assert read.geometry.close(same.geometry)
        assert (case.unit, case.image[0].modality, case.layout) == ("HU", "CT", "dicom")


def test_series_without_a_slice_is_refused_with_every_file(tmp_path):
    ct(tmp_path / "good", "PLANTED-1", 1)
    ct(tmp_path / "gap", "PLANTED-2", 2, slices=6)
    (tmp_path / "gap" / "slice_0003.dcm").unlink()
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    account(tmp_path, cases, refused)
    assert len(cases) == 1
    assert Counter(one.reason for one in refused) == {"irregular-spacing": 5}
    manifest = Manifest(tuple(cases), tmp_path)
    (tmp_path / "good" / "slice_0002.dcm").write_bytes(b"changed")
    with pytest.raises(ManifestError, match="good has changed since the scan"):
        manifest.verify(cases[0])


def test_series_without_patient_are_kept_apart_by_study(tmp_path, caplog):
    for seed in (1, 2):
        ct(tmp_path / str(seed), "", seed)
    cases, _ = scan([tmp_path], key=KEY)
    assert len({case.patient for case in cases}) == 2
    assert "2 series have no PatientID" in caplog.text


@pytest.mark.parametrize(("format", "layout"), [("nifti", "nnunet"), ("dicom", "dicom")])
def test_phantom_cohort_is_scanned_whole(tmp_path, format, layout):
    write_cohort(tmp_path, 3, format=format, size=16)
    cases, refused = scan([tmp_path], key=KEY, root=tmp_path)
    account(tmp_path, cases, refused)
    assert {(case.layout, case.unit, case.shape) for case in cases} == {(layout, "HU", (16, 16, 16))}
    assert len({case.patient for case in cases}) == 3
    assert all(load_image(Manifest(tuple(cases), tmp_path), case).array.min() < -900 for case in cases)
    if format == "nifti":
        assert {case.classes["class"] for case in cases} <= {"lesion", "no lesion"}
        assert all(case.labels["skull"] == 6 for case in cases)
