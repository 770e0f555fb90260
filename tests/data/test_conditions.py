import dataclasses

import pytest
import torch
from cohort import cohort, conditioned

from meddiff.data.conditions import facts, images_of, learn, scaled, told
from meddiff.data.givens import Givens
from meddiff.data.manifest import Manifest, load_label
from meddiff.errors import ConfigError, ImageError, ManifestError
from meddiff.imaging.nifti import write_nifti


def with_classes(values):
    """The cohort with columns of its own, one set a case."""
    manifest = Manifest.read(cohort())
    cases = tuple(
        case.model_copy(update={"classes": {**case.classes, **columns}})
        for case, columns in zip(manifest.cases, values, strict=True)
    )
    return dataclasses.replace(manifest, cases=cases)


def ages(*special):
    return with_classes([{"age": str(special[i] if i < len(special) else 40 + i)} for i in range(8)])


def test_classes_are_numbered_in_the_order_of_their_names(tmp_path):
    config = conditioned(tmp_path, classes={"column": "class"})
    manifest = Manifest.read(cohort())
    known = learn(config, manifest)
    assert known.classes == ("lesion", "no lesion")
    numbers = told(config, known, manifest.cases)["class"]
    assert [known.classes[i] for i in numbers] == [case.classes["class"] for case in manifest.cases]


def test_a_class_of_a_label_is_whether_it_is_to_be_seen(tmp_path):
    known = learn(conditioned(tmp_path, classes={"label": "lesion"}), Manifest.read(cohort()))
    assert known.classes == ("no lesion", "lesion")


def test_covariates_have_zero_mean_and_unit_spread_and_nan_where_unknown(tmp_path):
    manifest = ages()
    config = conditioned(tmp_path, covariates=["age"])
    known = learn(config, manifest)
    train = told(config, known, manifest.split("train"))["covariates"]
    torch.testing.assert_close(train.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    bare = manifest.cases[0].model_copy(update={"classes": {}})
    assert told(config, known, [bare])["covariates"].isnan().all()
    assert scaled(known, {}).isnan().all()
    assert scaled(known, {"age": known.covariates["age"][0]}).item() == 0
    assert facts(config, manifest.cases[0]) == {"age": "40"}


def test_spacing_is_that_of_the_scan_across_slices(tmp_path):
    manifest = Manifest.read(cohort())
    thick = [
        case.model_copy(update={"affine": tuple(tuple(v * (1 + i) for v in row) if r == 2 else row
                                                for r, row in enumerate(case.affine))})
        for i, case in enumerate(manifest.split("train"))
    ]  # fmt: skip
    config = conditioned(tmp_path, covariates=["spacing_mm"])
    known = learn(config, Manifest(tuple(thick), manifest.folder))
    assert known.covariates["spacing_mm"][0] == pytest.approx(10 * sum(1 + i for i in range(len(thick))) / len(thick))


@pytest.mark.parametrize(
    ("condition", "columns", "message"),
    [
        ({"classes": {"column": "sex"}}, {}, "has no 'sex' among its classes"),
        ({"classes": {"column": "site"}}, {"site": "A"}, "the training cases are all A"),
        ({"classes": {"label": "tumour"}}, {}, "tumour.* is none of the labels csf"),
        ({"covariates": ["age"]}, {"age": "old"}, "its age is 'old', a covariate is a number"),
        ({"covariates": ["age"]}, {"age": "50"}, "all have the same"),
        ({"covariates": ["height"]}, {}, "0 of 4 training cases have a height"),
    ],
)
def test_what_the_cases_cannot_tell_is_refused_by_name(tmp_path, condition, columns, message):
    with pytest.raises(ManifestError, match=message):
        learn(conditioned(tmp_path, **condition), with_classes([columns] * 8))


def test_a_class_that_no_training_case_has_is_refused(tmp_path):
    manifest = Manifest.read(cohort())
    config = conditioned(tmp_path, classes={"column": "class"})
    strange = manifest.cases[0].model_copy(update={"classes": {"class": "fracture"}})
    with pytest.raises(ManifestError, match="'fracture', which no training case has; known are lesion, no lesion"):
        told(config, learn(config, manifest), [strange])


def test_named_classes_are_those_of_the_config_in_its_order(tmp_path):
    manifest = Manifest.read(cohort())
    config = conditioned(tmp_path, classes={"column": "class", "values": ["no lesion", "cyst"]})
    assert learn(config, manifest).classes == ("no lesion", "cyst")
    with pytest.raises(
        ManifestError, match=r"'lesion', which condition\.classes\.values leaves out; known are no lesion, cyst"
    ):
        told(config, learn(config, manifest), manifest.cases)
    for values in (["a", "a"], ["a"]):
        with pytest.raises(ConfigError, match="values"):
            conditioned(tmp_path, classes={"column": "class", "values": values})


def test_another_image_of_a_case_lies_beside_it_with_its_own_intensities(tmp_path):
    manifest = Manifest.read(cohort())
    case = manifest.split("train")[0]
    second = case.image[0].model_copy(update={"modality": "again"})
    both = case.model_copy(update={"image": (case.image[0], second)})
    window = {"kind": "window", "low": -1000, "high": 1000}
    config = conditioned(tmp_path, image={"modality": "again", "intensity": window}, modality="CT")
    images = images_of(config, learn(config, Manifest((both,), manifest.folder)), manifest, [both])
    item = images.image(len(images) // 2, 0)
    inside = item["image"].abs() < 0.99  # -200 to 400 HU and -1000 to 1000 HU tell the same where neither is cut
    hu = (item["image"] + 1) * 300 - 200
    torch.testing.assert_close((item["given"] * 1000)[inside], hu[inside], atol=1.0, rtol=0)


def test_a_file_of_labels_gives_the_slices_that_a_manifest_gives(tmp_path):
    manifest = Manifest.read(cohort())
    config = conditioned(tmp_path, mask=True, labels=["csf", "lesion", "skull"], min_foreground=0.0)
    known = learn(config, manifest)
    case = manifest.split("test")[0]
    only = Manifest((case,), manifest.folder)
    only.write(tmp_path / "one.jsonl")
    label = load_label(manifest, case)
    kept = [0, *known.labels.values()]
    label.array[~torch.isin(torch.from_numpy(label.array).long(), torch.tensor(kept)).numpy()] = 0
    write_nifti(tmp_path / "label.nii.gz", label)
    of_file = Givens(tmp_path / "label.nii.gz", config, known)
    of_manifest = Givens(tmp_path / "one.jsonl", config, known)
    assert len(of_file) == len(of_manifest) > 0
    for k in range(len(of_file)):
        one, other = of_file[k], of_manifest[k]
        assert one.record["slice"] == other.record["slice"]
        assert torch.equal(one.values["label"], other.values["label"])
    assert (one.case, other.case.patient) == (None, case.patient)


def test_foreign_labels_are_refused_by_number_and_name(tmp_path):
    manifest = Manifest.read(cohort())
    config = conditioned(tmp_path, mask=True, labels=["csf", "lesion"])
    known = learn(config, manifest)
    write_nifti(tmp_path / "label.nii.gz", load_label(manifest, manifest.cases[0]))
    with pytest.raises(ImageError, match=r"holds the labels \[2, 3, 5, 6\].*it paints 1 \(csf\), 4 \(lesion\)"):
        Givens(tmp_path / "label.nii.gz", config, known)
    other = manifest.cases[0].model_copy(update={"labels": {"background": 0, "csf": 1}})
    Manifest((other,), manifest.folder).write(tmp_path / "other.jsonl")
    with pytest.raises(ManifestError, match="its label map has no lesion; the run paints csf, lesion"):
        Givens(tmp_path / "other.jsonl", config, known)
    with pytest.raises(ConfigError, match="give a manifest"):
        Givens(tmp_path / "x.png", config, known)
