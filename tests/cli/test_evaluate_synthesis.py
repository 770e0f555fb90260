import csv
import json
import re

import pytest
from cohort import cohort, tree

from meddiff.cli import main
from meddiff.config_file import parse_config
from meddiff.engines.fit import fit


def run(capsys, *arguments):
    """(exit code, stderr) of the command line."""
    with pytest.raises(SystemExit) as e:
        main([str(a) for a in arguments])
    return e.value.code, re.sub(r"\s+", " ", capsys.readouterr().err)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    settings = tree(cohort(), folder / "cache", steps=2)
    for name, changes in {"own": {}, "vae": {"baseline": {"kind": "vae", "latent": 4}}}.items():
        fit(parse_config({**settings, **changes}, "test"), folder / name)
    other = {**settings, "data": {**settings["data"], "size": [24, 24]}}
    fit(parse_config(other, "test"), folder / "other")
    return folder


def test_copies_come_from_the_audit_of_these_weights_only(runs, tmp_path, capsys):
    weights = json.loads((runs / "own" / "model.json").read_text())["weights"]
    audit = runs / "own" / "audit" / "audit.json"
    audit.parent.mkdir()
    for of, expected in ((weights, True), ("0" * 64, False)):
        audit.write_text(json.dumps({"weights": of, "copies": {"count": 3, "of": 977}}))
        code, said = run(capsys, "evaluate", runs / "own", "-o", tmp_path / "e")
        assert (code, "3/977" in said) == (0, expected)


def test_runs_and_tissues_come_into_one_table(runs, tmp_path, capsys):
    asked = ["--baseline", runs / "vae", "--synthetic", cohort()]
    for name in ("a", "b"):
        code, said = run(capsys, "evaluate", runs / "own", *asked, "-o", tmp_path / name)
        assert code == 0, said
    for word in ("baseline vae", "training images", "coverage", "parameters", "difference", "lesion: no voxel of it"):
        assert word in said
    for name in ("metrics.json", "methods.csv", "tissues.csv", "comparison.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    whole = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert set(whole["methods"]) == {"samples", "baseline vae"}
    assert whole["methods"]["samples"]["sliced_wasserstein"]["value"] == whole["sliced_wasserstein"]
    rows = list(csv.DictReader((tmp_path / "a" / "methods.csv").read_text().splitlines()))
    kid = {r["method"]: r for r in rows if r["metric"] == "encoder/kid"}
    assert float(kid["samples"]["low"]) <= float(kid["samples"]["value"]) <= float(kid["samples"]["high"])
    assert kid["samples"]["train"] == kid["baseline vae"]["train"]
    tissues = list(csv.DictReader((tmp_path / "a" / "tissues.csv").read_text().splitlines()))
    # the set that was given is the training set itself
    synthetic, training = (
        [{k: v for k, v in r.items() if k != "set"} for r in tissues if r["set"] == kind]
        for kind in ("synthetic", "training")
    )
    assert synthetic == training
    assert synthetic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own", "--baseline", "other"], "differs from samples in data.size"),
        (["own", "--limit", "3"], "evaluate.n says how many"),
        (["own", "--synthetic", "no.jsonl"], "cannot be read as a manifest"),
    ],
)
def test_what_does_not_compare_is_refused(runs, tmp_path, capsys, arguments, message):
    given = [runs / a if (runs / a).exists() else a for a in arguments]
    code, said = run(capsys, "evaluate", *given, "-o", tmp_path / "e")
    assert (code, message in said) == (2, True), said
    assert not (tmp_path / "e").exists()
