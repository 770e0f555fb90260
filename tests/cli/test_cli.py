import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cohort import cohort, tree

from meddiff.cli import main
from meddiff.data.manifest import Manifest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(capsys, *arguments):
    """(exit code, stderr) of the command line."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code, re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.fixture(autouse=True)
def private_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDDIFF_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("MEDDIFF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree(cohort(), tmp_path / "cache")))
    return path


def test_the_road_from_dicom_to_samples(tmp_path, capsys, config):
    assert run(capsys, "phantom", tmp_path / "d", "--patients", 6, "--format", "dicom", "--size", 16)[0] == 0
    (tmp_path / "d" / "notes.txt").write_text("not an image")
    code, said = run(capsys, "scan", tmp_path / "d", "-o", tmp_path / "m.jsonl", "--list")
    assert code == 0
    assert "6 cases of 6 patients (train 4, val 1, test 1)" in said
    assert "not-an-image" in said
    assert "PLANTED" not in (tmp_path / "m.jsonl").read_text()
    assert run(capsys, "prepare", tmp_path / "m.jsonl", config)[0] == 0
    code, said = run(capsys, "train", config, "-o", tmp_path / "run", "--set", f"data.manifest={tmp_path / 'm.jsonl'}")
    assert code == 0, said
    assert {p.name for p in (tmp_path / "run" / "previews").iterdir()} == {
        "forward.png",
        "step_00000006.png",
        "reverse.png",
    }
    for name in ("a", "b"):
        assert run(capsys, "sample", tmp_path / "run", "-n", 2, "-o", tmp_path / name)[0] == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert (
        run(
            capsys, "sample", tmp_path / "run", "-n", 2, "-o", tmp_path / "png", "--format", "png", "--sampler", "heun"
        )[0]
        == 0
    )
    assert (tmp_path / "png" / "sample_00001.png").stat().st_size > 100
    assert run(capsys, "evaluate", tmp_path / "run", "-o", tmp_path / "e")[0] == 0
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["n"] >= 2
    for path in ("run", "m.jsonl", "a/sample_00000.nii.gz", "d"):
        assert run(capsys, "info", tmp_path / path)[0] == 0
    assert run(capsys, "train", config, "-o", tmp_path / "run", "--resume", "--force", "--set", "train.steps=8")[0] == 0


def test_the_road_from_a_class_to_pairs_variants_and_a_diagnosis(tmp_path, capsys, config):
    train = ["train", config, "--quiet", "--set", "condition.classes={label: lesion, voxels: 1}"]
    assert run(capsys, *train, "-o", tmp_path / "pairs", "--set", "data.paired=true")[0] == 0
    sample = ["sample", tmp_path / "pairs", "-n", 2, "-o", tmp_path / "set", "--class", "lesion", "--guidance", 2]
    assert run(capsys, *sample, "--format", "dicom")[0] == 0
    record = json.loads((tmp_path / "set" / "sample_00001.json").read_text())
    assert (record["asked"], record["evaluations"]) == ({"class": "lesion"}, 10)
    assert run(capsys, "info", tmp_path / "set" / "manifest.jsonl")[0] == 0
    code, said = run(capsys, "sample", tmp_path / "pairs", "-n", 2, "-o", tmp_path / "no", "--class", "tumour")
    assert (code, "'tumour' is unknown; choose one of no lesion, lesion" in said) == (2, True)
    assert not (tmp_path / "no").exists()
    code, said = run(capsys, "augment", tmp_path / "pairs", cohort(), "-o", tmp_path / "v", "--split", "val")
    assert (code, "2 variants of 2 cases" in said) == (0, True)
    assert run(capsys, *train, "-o", tmp_path / "images")[0] == 0
    code, said = run(capsys, "evaluate", tmp_path / "images", "--diagnosis", "--split", "train", "-o", tmp_path / "d")
    assert code == 0, said
    found = json.loads((tmp_path / "d" / "diagnosis.json").read_text())
    assert found["n"] == len((tmp_path / "d" / "probabilities.csv").read_text().splitlines()) - 1
    assert 0 <= found["metrics"]["auroc/lesion"]["value"] <= 1


def test_prepare_leaves_nothing_for_training_to_prepare(tmp_path, capsys, config):
    paired = ["--set", "data.paired=true"]
    code, said = run(capsys, "prepare", cohort(), config, *paired)
    assert (code, "8 of 8 cases ready" in said) == (0, True)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(made) == 3 * 8  # image, label map and record of each
    assert run(capsys, "train", config, "-o", tmp_path / "run", "--quiet", *paired)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == made


def test_prepare_names_what_cannot_be_read_and_prepares_the_rest(tmp_path, capsys, config):
    shutil.copytree(cohort().parent, tmp_path / "copy")
    manifest = tmp_path / "copy" / cohort().name
    case = Manifest.read(manifest).cases[3]
    (path,) = Manifest.read(manifest).resolve(case.image[0])
    path.write_bytes(path.read_bytes()[:-9])
    code, said = run(capsys, "prepare", manifest, config, "--set", "data.unreadable_limit=0.2")
    assert (code, "7 of 8 cases ready" in said, case.case in said) == (0, True, True)
    code, said = run(capsys, "prepare", manifest, config)
    assert (code, "1 of 8 cases cannot be read, which is more than data.unreadable_limit = 0.01" in said) == (2, True)


def test_scan_twice_gives_the_same_bytes(tmp_path, capsys):
    run(capsys, "phantom", tmp_path / "d", "--patients", 3, "--size", 16)
    (tmp_path / "one").mkdir()
    for name in ("one", "two"):
        assert run(capsys, "scan", tmp_path / "d", "-o", tmp_path / f"{name}.jsonl")[0] == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "nowhere", "-o", "m.jsonl"], "nowhere: is not a folder"),
        (["scan", "empty", "-o", "m.jsonl"], "empty: holds no file"),
        (["scan", "texts", "-o", "m.jsonl"], "none of 1 files is in a case"),
        (["scan", "texts", "-o", "m.txt"], "a manifest is a .jsonl file"),
        (["scan", "texts", "-o", "m.jsonl", "--split", "a,b"], "give three shares"),
        (["train", "no.yaml", "-o", "run"], "no.yaml: cannot be read"),
        (["train", "c.yaml", "-o", "run", "--set", "train.step=3"], "unknown key train.step; did you mean steps?"),
        (["train", "c.yaml", "-o", "run", "--set", "network.channels=[30, 60]"], "does not divide by norm_groups"),
        (["train", "c.yaml", "-o", "run", "--set", "data.size=[1, 1]"], "too small for 2 levels"),
        (["train", "c.yaml", "-o", "run", "--set", "data.manifest=no.jsonl"], "no.jsonl: cannot be read as a manifest"),
        (["train", "c.yaml", "-o", "texts"], "not empty and is not a run"),
        (["train", "c.yaml", "-o", "run", "--set", "train.precision=fp16"], "fp16 needs a CUDA device"),
        (["sample", "texts", "-n", "1", "-o", "s"], "is not a run folder"),
        (["audit", "texts", "texts", "-o", "a"], "is not a run folder"),
        (["release", "texts", "-o", "r"], "is no synthetic set"),
        (["decrypt", "texts/a.txt", "-o", "d", "--key", "nokey"], "nokey: the key cannot be read"),
        (["info", "nowhere"], "does not exist"),
        (["info", "texts"], "holds no run, manifest"),
        (["phantom", "texts", "--patients", "2"], "not an empty folder"),
        (["demo", "-o", "texts"], "exists and is not empty"),
    ],
)
def test_bad_input_is_one_clear_message_and_changes_nothing(tmp_path, capsys, monkeypatch, config, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    before = sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "cache") and p.name != "key")
    code, said = run(capsys, *arguments)
    assert message in said
    assert code == 2
    assert "Traceback" not in said
    after = sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "cache") and p.name != "key")
    assert after == before


@pytest.mark.parametrize(
    "name",
    [
        "",
        "demo",
        "phantom",
        "scan",
        "deidentify",
        "prepare",
        "train",
        "sample",
        "segment",
        "restore",
        "evaluate",
        "audit",
        "release",
        "encrypt",
        "decrypt",
        "info",
    ],
)
def test_help_teaches_with_an_example(capsys, name):
    with pytest.raises(SystemExit) as e:
        main([*([name] if name else []), "--help"])
    assert e.value.code == 0
    shown = capsys.readouterr().out
    assert f"meddiff {name}".strip() in re.sub(r"\s+", " ", shown)
    assert "Example" in shown or not name


def test_a_user_sees_no_more_than_errors_when_quiet(tmp_path, capsys):
    code, said = run(capsys, "phantom", tmp_path / "d", "--patients", 1, "--size", 16, "--quiet")
    assert (code, said.strip()) == (0, "")


@pytest.mark.parametrize("script", ["train.py", "synthesize.py", "evaluate.py", "segment.py", "denoise.py"])
def test_scripts_take_the_arguments_of_the_command(script):
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


def test_repairs_of_a_scan_are_asked_for_and_told(tmp_path, capsys):
    assert run(capsys, "phantom", tmp_path / "d", "--patients", 3, "--format", "dicom", "--size", 16)[0] == 0
    next(iter(sorted((tmp_path / "d").rglob("slice_0005.dcm")))).unlink()
    code, said = run(capsys, "scan", tmp_path / "d", "-o", tmp_path / "m.jsonl")
    assert code == 0
    assert "2 cases of 2 patients" in said
    assert "15 irregular-spacing" in said
    code, said = run(capsys, "scan", tmp_path / "d", "-o", tmp_path / "m.jsonl", "--fill-gaps", "--workers", 2)
    assert code == 0
    assert "3 cases of 3 patients" in said
    assert "cases repaired: 1 by fill-gaps" in said
    repaired = [json.loads(line)["repairs"] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert sorted(repaired) == [[], [], ["fill-gaps"]]


def test_the_command_line_starts_without_the_libraries_of_its_commands():
    """Each process that reads headers imports it again, and so does every --help."""
    heavy = ("torch", "monai", "numpy", "pydicom", "nibabel", "pydantic")
    code = f"import sys, meddiff.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
