import json
import shutil
from dataclasses import replace

import pytest
import torch
from cohort import SMALL_AUDIT, cohort, tree

from meddiff.audit_config import AuditConfig
from meddiff.config_file import parse_config
from meddiff.data.manifest import Manifest
from meddiff.engines.fit import fit
from meddiff.engines.run import Run
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.errors import PrivacyError, RunError
from meddiff.privacy.audit.changes import blurred
from meddiff.privacy.audit.protocol import audit
from meddiff.privacy.audit.scores import Detector
from meddiff.privacy.audit.sets import Real, Synthetic
from meddiff.report.audit_run import audit_run, without_paths

CPU = torch.device("cpu")
LIMITS = AuditConfig(synthetic=60, held_out=99, plants=20, detector_steps=1)


def smooth(n, seed, *size):
    rough = torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(seed))
    images = blurred(rough, torch.full((n,), 1 / 16))
    return (images / images.std() / 2).clamp(-1, 1)


def real(images, name):
    names = tuple(f"{name}{i}" for i in range(len(images)))
    return Real({"image": images}, names, names)


def flat(images, patients):
    """A detector whose embedding is no more than the voxels."""
    return Detector.over(images, patients, lambda x: torch.nn.functional.normalize(x.flatten(1), dim=1))


def blind(images, patients):
    """A detector whose answer has nothing to do with the image."""
    g = torch.Generator().manual_seed(0)
    return Detector({"nothing": lambda x: torch.rand(len(x), len(images), generator=g)}, torch.arange(len(images)))


def unsure(real, step):
    g = torch.Generator().manual_seed(len(real.patients))
    return {"loss": torch.randn(len(real.patients), generator=g)}


def sure(real, step):
    return {"loss": torch.zeros(len(real.patients)) - float(real.patients[0].startswith("t"))}


@pytest.fixture(scope="module", params=[(16, 16), (12, 12, 12)], ids=["2d", "3d"])
def sets(request):
    size = request.param
    training, held_out = real(smooth(40, 0, *size), "t"), real(smooth(120, 1, *size), "h")
    return training, held_out, Synthetic(smooth(60, 2, *size), {}, "w")


def test_copies_fail_and_are_shown_first(sets):
    training, held_out, clean = sets
    images = clean.images.clone()
    images[10:40] = training.images[:30]
    found = audit(training, held_out, replace(clean, images=images), LIMITS, unsure, detector=flat)
    assert found.verdict == "FAIL"
    assert "copy rate" in found.reasons[0]
    assert 30 <= found.record["copies"]["count"] <= 33  # of the 30 others one in a hundred, by chance
    assert 30 <= found.record["copies"]["patients_copied"]["count"] <= 33
    assert found.record["copies"]["permutation_p"] < 0.01
    assert all(pair.copy and pair.synthetic - 10 == pair.training for pair in found.pairs)
    assert found.record["gate"]["recall"]["exact"]["rate"] == 1.0


def test_a_blind_detector_is_never_a_pass(sets):
    training, held_out, clean = sets
    found = audit(training, held_out, clean, LIMITS, unsure, detector=blind)
    assert found.verdict == "INCONCLUSIVE"
    assert "misses planted copies" in found.reasons[0]
    assert found.record["copies"]["excess_p"] > 0.01
    assert found.record["copies"]["permutation_p"] > 0.01


def test_a_model_that_gives_its_patients_away_fails_without_a_copy(sets):
    training, held_out, clean = sets
    found = audit(training, held_out, clean, LIMITS, sure, detector=flat)
    assert found.verdict == "FAIL"
    assert "the attack loss finds at least" in found.reasons[0]
    assert found.record["membership"]["loss"]["tpr"] == 1.0


def test_the_same_audit_gives_the_same_numbers(sets):
    one, two = (audit(*sets, LIMITS, unsure) for _ in range(2))
    assert one == two


def test_sets_that_prove_nothing_are_refused(sets):
    training, held_out, clean = sets
    with pytest.raises(
        PrivacyError, match=r"60 synthetic images are too few for an audit: audit.synthetic asks for 1000"
    ):
        audit(training, held_out, clean, LIMITS.model_copy(update={"synthetic": 1000}), unsure)
    with pytest.raises(PrivacyError, match="120 held-out patients are too few"):
        audit(training, held_out, clean, LIMITS.model_copy(update={"held_out": 300}), unsure)
    with pytest.raises(PrivacyError, match="7 training patients are too few"):
        audit(training.some(7), held_out, clean, LIMITS, unsure)
    names = ("t3", *held_out.patients[1:])
    with pytest.raises(PrivacyError, match="1 patients are both trained on and held out, for instance t3"):
        audit(training, replace(held_out, patients=names), clean, LIMITS, unsure)
    images = held_out.images.clone()
    images[5] = 0.9 * training.images[8].flip(1)
    with pytest.raises(
        PrivacyError,
        match=r"1 held-out patients were trained on under another name, for instance h5, whose h5 is t8 of t8",
    ):
        audit(training, Real({"image": images}, held_out.patients, held_out.names), clean, LIMITS, unsure)


def settings(cache, dims=2):
    return parse_config({**tree(cohort(patients=18), cache, dims), "audit": SMALL_AUDIT}, "test")


@pytest.fixture(scope="module", params=[2, 3])
def run(request, tmp_path_factory):
    """A run of nine training patients, and a set of six samples."""
    folder = tmp_path_factory.mktemp("audited")
    config = settings(folder / "cache", request.param)
    run = fit(config, folder / "run")
    model, card = run.load_model(CPU)
    sample_set(model, card, config, 6, folder / "set", 0, write_niftis)
    return run, folder


def test_an_audit_is_two_files_with_every_number_and_no_path(run, tmp_path):
    run, folder = run
    titles = []
    for name in ("a", "b"):
        record = audit_run(run, folder / "set", tmp_path / name, CPU, lambda t, n: titles.append(t) or (lambda: None))
    for file in ("audit.json", "audit.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    stored = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert stored["verdict"] == record["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert set(stored["membership"]) == {"loss", "SimA", "FCRE"}
    assert stored["limits"]["held_out"] == 1
    assert stored["limits_fixed"] == "yes"
    assert len(stored["hashes"]["synthetic"]) == 6
    assert len(stored["pairs"]) == 6
    assert str(folder) not in json.dumps(stored)
    page = (tmp_path / "a" / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    assert "default: 300" in page
    assert "What this does not prove" in page
    assert "Attacks on the model" in titles


def test_moved_limits_and_another_manifest_are_refused(run, tmp_path):
    run, folder = run
    shutil.copytree(run.folder, tmp_path / "moved")
    moved = Run(tmp_path / "moved")
    moved.config_path.write_text(moved.config_path.read_text().replace("held_out: 1", "held_out: 2"))
    with pytest.raises(PrivacyError, match="section audit is not the one that the model was trained with"):
        audit_run(moved, folder / "set", tmp_path / "a", CPU)
    shutil.copy(run.config_path, moved.config_path)
    manifest = moved.manifest()
    Manifest(manifest.cases[1:], manifest.folder).save_copy(moved.manifest_path)
    with pytest.raises(RunError, match="is not the manifest that the model was trained from"):
        audit_run(moved, folder / "set", tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()


def test_sets_of_others_are_refused(run, tmp_path):
    run, folder = run
    shutil.copytree(folder / "set", tmp_path / "set")
    sidecar = tmp_path / "set" / "sample_00003.json"
    stated = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**stated, "weights": "0" * 64}))
    with pytest.raises(PrivacyError, match="sample_00003: was made by the weights 000000000000"):
        audit_run(run, tmp_path / "set", tmp_path / "a", CPU)
    sidecar.write_text("{}")
    with pytest.raises(PrivacyError, match=r"sidecar of sample_00003 does not say that a model drew it"):
        audit_run(run, tmp_path / "set", tmp_path / "a", CPU)
    with pytest.raises(PrivacyError, match="is no synthetic set"):
        audit_run(run, tmp_path, tmp_path / "a", CPU)


def test_paths_do_not_get_into_a_record():
    config = settings("/data/PLANTED^NAME").model_dump()
    assert "PLANTED" not in json.dumps(without_paths(config))
    assert without_paths(config)["train"]["steps"] == 6
