import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from cohort import SMALL_AUDIT, cohort, tree
from dicom_checks import errors_of, needs_dciodvfy

from meddiff.cli import main
from meddiff.config_file import parse_config
from meddiff.data.manifest import Manifest, load_image, load_label
from meddiff.engines.fit import fit
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.errors import PrivacyError
from meddiff.imaging.nifti import write_nifti
from meddiff.privacy.gate import admit, read_audit
from meddiff.report.audit_run import audit_run
from meddiff.report.cards import model_card, written

IDENTITY = (b"PLANTED", b"HOSPITAL", b"PHANTOM^", b"patient_0", b"193", b"19700101")


def command(*arguments):
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on DICOM series with a planted identity, six samples, and their audit."""
    folder = tmp_path_factory.mktemp("released")
    settings = parse_config({**tree(cohort("dicom", 18, 16), folder / "cache"), "audit": SMALL_AUDIT}, "test")
    run = fit(settings, folder / "run")
    model, card = run.load_model(torch.device("cpu"))
    sample_set(model, card, settings, 6, folder / "set", 0, write_niftis)
    (run.folder / "evaluation").mkdir()
    metrics = {"n": 8, "sliced_wasserstein": 0.125, "weights": card.weights}
    (run.folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    audit_run(run, folder / "set", folder / "audit", torch.device("cpu"))
    return folder


@pytest.fixture
def passed(made, tmp_path):
    """A copy of the set and its audit, with a verdict that lets it through: what a good model would have reached."""
    shutil.copytree(made / "set", tmp_path / "set")
    (tmp_path / "audit").mkdir()
    record = read_audit(made / "audit")
    record |= {"verdict": "PASS", "reasons": ["every figure is surely within its limit"]}
    (tmp_path / "audit" / "audit.json").write_text(json.dumps(record))
    return tmp_path


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_set_that_passed_is_released_with_its_cards(passed):
    for name in ("a", "b"):
        arguments = (
            "release",
            passed / "set",
            "--audit",
            passed / "audit",
            "-o",
            passed / name,
            "--licence",
            "CC-BY-4.0",
        )
        assert command(*arguments, "--quiet") == 0
    assert [p.read_bytes() for p in files(passed / "a")] == [p.read_bytes() for p in files(passed / "b")]
    samples, released = (Manifest.read(passed / name / "manifest.jsonl") for name in ("set", "a"))
    for before, after in zip(samples.cases, released.cases, strict=True):
        released.verify(after)
        np.testing.assert_array_equal(load_image(samples, before).array, load_image(released, after).array)
    image = nib.load(passed / "a" / "synthetic_00001.nii.gz")
    assert bytes(image.header["descrip"].item()) == b"synthetic, meddiff"
    card = json.loads((passed / "a" / "data_card.json").read_text())
    assert (card["images"], card["audited"], card["licence"]) == (6, True, "CC-BY-4.0")
    assert card["audit"]["verdict"] == "PASS"
    assert card["files"]["synthetic_00001.nii.gz"] == released.cases[0].image[0].sha256
    assert card["made_from"]["patients"] == 9
    model = json.loads((passed / "a" / "model_card.json").read_text())
    assert model["metrics"]["sliced_wasserstein"] == 0.125
    assert model["config"]["train"]["steps"] == 6
    for name in ("data_card.md", "model_card.md"):
        text = (passed / "a" / name).read_text()
        for said in ("PASS", "CC-BY-4.0", "not for diagnosis", "no proof of anonymity", card["made_by"]["weights"]):
            assert said in text, (name, said)


def test_the_model_card_says_what_was_promised_to_each_patient(passed):
    record, made_by = read_audit(passed / "audit"), {"weights": "0" * 64}
    record["model"]["privacy"] = {
        **{"unit": "patient", "epsilon": 7.98, "delta": 1e-3, "max_grad_norm": 1.0, "noise_multiplicity": 4},
        **{"images_per_patient": 4, "noise_multiplier": 2.5, "sample_rate": 0.25, "patients": 42, "steps": 300},
        "accountant": "Opacus 1.6.0, prv",
    }
    for audited in (True, False):
        text = written("model_card", model_card(made_by, record, audited, "CC0-1.0"))
        assert "Each of 42 training patients" in text
        assert "epsilon 7.980 at delta 0.001, spent in 300 steps" in text
    record["model"]["privacy"] = None
    assert "None: nothing bounds" in written("model_card", model_card(made_by, record, True, "CC0-1.0"))
    assert "Unknown, as no audit" in written("model_card", model_card(made_by, None, False, "CC0-1.0"))


@needs_dciodvfy
def test_dicom_of_a_release_is_valid_and_names_nobody(passed):
    assert (
        command("release", passed / "set", "--audit", passed / "audit", "-o", passed / "out", "--format", "dicom", "-q")
        == 0
    )
    slices = files(passed / "out")
    assert sum(p.suffix == ".dcm" for p in slices) == 6
    for path in slices:
        content = path.read_bytes()
        if path.suffix == ".dcm":
            assert errors_of(path) == []
            assert str(pydicom.dcmread(path).PatientName) == "SYNTHETIC^MEDDIFF"
        for word in IDENTITY[:4] if path.suffix == ".dcm" else IDENTITY[:3]:
            assert word not in content, (path.name, word)
    released = Manifest.read(passed / "out" / "manifest.jsonl")
    for case in released.cases:
        released.verify(case)
        assert load_image(released, case).unit == "HU"


def test_every_reason_to_refuse_is_named(passed, made, capsys):
    samples = Manifest.read(passed / "set" / "manifest.jsonl")
    record = read_audit(passed / "audit")
    admit(samples, record)
    with pytest.raises(PrivacyError, match="no audit was given"):
        admit(samples, None)
    for verdict in ("FAIL", "INCONCLUSIVE"):
        with pytest.raises(PrivacyError, match=f"the audit says {verdict}: because"):
            admit(samples, {**record, "verdict": verdict, "reasons": ["because"]})
    with pytest.raises(PrivacyError, match="sample_00005 was audited and is missing"):
        admit(Manifest(samples.cases[:5], samples.folder), record)
    with pytest.raises(PrivacyError, match=r"was made by the weights .*, the audit attacked 000000000000"):
        admit(samples, {**record, "weights": "0" * 64})
    relabelled = (samples.cases[0].model_copy(update={"classes": {"class": "lesion"}}), *samples.cases[1:])
    with pytest.raises(PrivacyError, match="the manifest was changed after the audit"):
        admit(Manifest(relabelled, samples.folder), record)
    with pytest.raises(PrivacyError, match="is no audit that can be read"):
        read_audit(made / "run")
    assert command("release", passed / "set", "-o", passed / "out") == 2
    assert "no audit was given" in " ".join(capsys.readouterr().err.split())
    assert not (passed / "out").exists()


def test_a_file_changed_after_the_audit_is_refused(passed, capsys):
    path = passed / "set" / "sample_00002.nii.gz"
    samples = Manifest.read(passed / "set" / "manifest.jsonl")
    volume = load_image(samples, samples.cases[2])
    volume.array[3, 3] += 1
    write_nifti(path, volume)
    for extra in ((), ("--unaudited",)):
        arguments = ("release", passed / "set", "--audit", passed / "audit", "-o", passed / "out", *extra)
        assert command(*arguments) == 2
        assert "sample_00002: " in (said := " ".join(capsys.readouterr().err.split()))
        assert "was changed after it was sampled" in said
    assert not (passed / "out").exists()


@pytest.mark.parametrize("format", ["nifti", "dicom"])
def test_an_unaudited_set_says_so_in_every_file(made, tmp_path, format):
    assert command("release", made / "set", "-o", tmp_path / "out", "--format", format, "--unaudited", "-q") == 0
    for path in files(tmp_path / "out"):
        if path.suffix == ".dcm":
            ds = pydicom.dcmread(path)
            assert "UNAUDITED" in ds.SeriesDescription
            assert "UNAUDITED" in ds.ImageComments
        elif path.name.endswith(".nii.gz"):
            assert b"UNAUDITED" in nib.load(path).header["descrip"].item()
        elif "card" in path.name:
            assert "NOBODY AUDITED THIS SET" in path.read_text()
        elif path.name != "manifest.jsonl":
            assert json.loads(path.read_text())["audited"] is False


def test_label_maps_leave_with_their_images(passed):
    samples = Manifest.read(passed / "set" / "manifest.jsonl")
    label = load_image(samples, samples.cases[0])
    label = type(label)((label.array > 0).astype(np.int32), label.geometry, "SEG", "label")
    cases = []
    for case in samples.cases:
        path = passed / "set" / f"{case.case}_label.nii.gz"
        write_nifti(path, label)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        source = case.image[0].model_copy(update={"modality": "SEG", "path": path.name, "sha256": sha256})
        cases.append(case.model_copy(update={"label": source, "labels": {"lesion": 1}}))
    Manifest(tuple(cases), samples.folder).write(passed / "set" / "manifest.jsonl")
    assert command("release", passed / "set", "-o", passed / "out", "--unaudited", "-q") == 0
    released = Manifest.read(passed / "out" / "manifest.jsonl")
    np.testing.assert_array_equal(load_label(released, released.cases[0]).array, label.array)
    assert "1 lesion" in (passed / "out" / "data_card.md").read_text()


def test_an_encrypted_release_is_never_plain_on_the_disk(passed):
    pytest.importorskip("cryptography")
    key = passed / "key"
    plain = ("release", passed / "set", "--audit", passed / "audit", "-q", "-o")
    assert command(*plain, passed / "out.enc", "--encrypt-key", key) == 0
    assert command("decrypt", passed / "out.enc", "-o", passed / "back", "--key", key, "-q") == 0
    assert command(*plain, passed / "out") == 0
    names = [p.relative_to(passed / "out") for p in files(passed / "out")]
    assert names == [p.relative_to(passed / "back") for p in files(passed / "back")]
    assert all((passed / "out" / n).read_bytes() == (passed / "back" / n).read_bytes() for n in names)
    assert b"synthetic_00001" not in (passed / "out.enc").read_bytes()
    assert not [p for p in passed.iterdir() if p.name.endswith(".partial")]


def test_an_encrypted_run_leaves_no_plain_run_and_no_cache(made, tmp_path):
    pytest.importorskip("cryptography")
    shutil.copytree(made / "run", tmp_path / "run")
    cache = made / "cache"
    shutil.copytree(cache, tmp_path / "kept")
    assert any(cache.iterdir())
    assert (
        command("encrypt", tmp_path / "run", "-o", tmp_path / "run.enc", "--key", tmp_path / "key", "--remove", "-q")
        == 0
    )
    assert not (tmp_path / "run").exists()
    assert not any(cache.iterdir())
    assert command("decrypt", tmp_path / "run.enc", "-o", tmp_path / "run", "--key", tmp_path / "key", "-q") == 0
    for path in files(made / "run"):
        assert path.read_bytes() == (tmp_path / "run" / path.relative_to(made / "run")).read_bytes()


def test_releases_do_not_mix(made, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert command("release", made / "set", "-o", tmp_path / "out", "--unaudited") == 2
    assert "exists already" in capsys.readouterr().err
