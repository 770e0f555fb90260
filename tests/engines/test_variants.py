import json

import numpy as np
import pytest
import torch
from cohort import cohort, conditioned

from meddiff.config import SampleConfig
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.engines.diagnose import diagnose
from meddiff.engines.fit import fit
from meddiff.engines.sets import write_dicom, write_niftis
from meddiff.engines.variants import strength_grid, vary_set
from meddiff.errors import RunError


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    settings = conditioned(folder / "cache", dims=request.param, classes={"column": "class"}, train={"steps": 3})
    run = fit(settings, folder / "run")
    return run.config(), *run.load_model(torch.device("cpu")), run


def vary(trained, folder, strength, seed=0, copies=1, write=write_niftis):
    config, model, card, run = trained
    manifest = run.manifest()
    cases = manifest.split("train")[:2]
    return manifest, vary_set(model, card, config, manifest, cases, folder, strength, copies, seed, write)


def difference(trained, folder, strength):
    manifest, made = vary(trained, folder, strength)
    source = next(c for c in manifest.cases if c.patient == made.cases[0].patient)
    return np.abs(load_image(made, made.cases[0]).array - load_image(manifest, source).array.clip(-200, 400)).mean()


def test_a_variant_is_further_from_its_case_the_greater_its_strength(trained, tmp_path):
    distances = [difference(trained, tmp_path / str(s), s) for s in (0.0, 0.3, 1.0)]
    assert distances[0] < distances[1] < distances[2]


def test_a_variant_keeps_grid_label_class_patient_and_split_of_its_case(trained, tmp_path):
    manifest, _ = vary(trained, tmp_path / "set", 0.3, copies=2)
    read = Manifest.read(tmp_path / "set" / "manifest.jsonl")
    assert len(read.cases) == 4
    sources = {case.case: case for case in manifest.cases}
    for case in read.cases:
        record = json.loads((tmp_path / "set" / f"{case.case}.json").read_text())
        source = sources[record["source"]]
        assert (record["strength"], record["synthetic"]) == (0.3, True)
        assert (case.patient, case.split, case.classes, case.labels) == (
            source.patient,
            source.split,
            source.classes,
            source.labels,
        )
        np.testing.assert_array_equal(load_label(read, case).array, load_label(manifest, source).array)
        assert load_image(read, case).geometry.close(source.geometry, 1e-3)
    one, two = (load_image(read, case).array for case in read.cases[:2])
    assert not np.array_equal(one, two)


def test_variants_are_taken_up_and_another_strength_is_refused(trained, tmp_path):
    vary(trained, tmp_path / "set", 0.3)
    before = {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()}
    next((tmp_path / "set").glob("*.json")).unlink()
    vary(trained, tmp_path / "set", 0.3)
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == before
    with pytest.raises(RunError, match="something else than this set"):
        vary(trained, tmp_path / "set", 0.4)


def test_a_variant_as_dicom_is_read_back_with_its_label(trained, tmp_path):
    _, made = vary(trained, tmp_path / "set", 0.2, write=write_dicom)
    read = Manifest.read(tmp_path / "set" / "manifest.jsonl")
    for case in read.cases:
        read.verify(case)
        assert load_image(read, case).array.shape == load_label(read, case).array.shape
    assert made.digest == read.digest


def test_a_strength_is_the_share_of_the_way_to_the_noisiest_level():
    sample = SampleConfig(steps=8, sampler="euler")
    whole, half, least = (strength_grid(sample, s) for s in (1.0, 0.5, 0.0))
    assert (len(whole) - 1, len(half) - 1, len(least) - 1) == (8, 4, 1)
    assert whole[0] == pytest.approx(80.0)
    assert least[0] == pytest.approx(0.01)
    rho = 1 / 7  # the middle of Karras' grid, in its own time
    assert half[0] ** rho == pytest.approx((80**rho + 0.01**rho) / 2, rel=1e-2)
    assert (half.diff() < 0).all()


def test_a_run_by_class_gives_every_case_probabilities(trained):
    config, model, card, run = trained
    scores, probability, calibration, metrics = diagnose(model, card, config, with_both(run.manifest()), "test", 0)
    assert len(scores.names) == len(scores.patients) == len(probability) == len(set(scores.names))
    torch.testing.assert_close(probability.sum(1), torch.ones(len(probability), dtype=torch.float64))
    assert calibration.temperature > 0
    assert {"auroc/no lesion", "accuracy", "brier", "calibration_error"} <= set(metrics)
    rows = scores.rows(probability, card.classes)
    assert rows[0].keys() == {"case", "patient", *(f"{a}/{c}" for a in ("is", "probability") for c in card.classes)}


def with_both(manifest):
    """The cohort with both classes in every split, as its few patients may not have them."""
    turn = {"train": 0, "val": 0, "test": 0}
    cases = []
    for case in manifest.cases:
        turn[case.split] += 1
        cases.append(case.model_copy(update={"classes": {"class": ("lesion", "no lesion")[turn[case.split] % 2]}}))
    return Manifest(tuple(cases), manifest.folder)


def test_diagnosis_needs_classes_and_images_alone(trained, tmp_path):
    config, model, card, run = trained
    with pytest.raises(RunError, match="needs a run with classes"):
        diagnose(model, card.model_copy(update={"classes": ()}), config, run.manifest(), "test", 0)
    paired = conditioned(tmp_path, paired=True, classes={"label": "lesion"})
    with pytest.raises(RunError, match="draws label maps too"):
        diagnose(model, card, paired, Manifest.read(cohort()), "test", 0)
