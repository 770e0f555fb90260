import pytest
import torch
from cohort import cohort, tree

from meddiff.config_file import parse_config
from meddiff.data.manifest import Manifest
from meddiff.engines.transfer import ARMS, arms, judged, train_arms
from meddiff.errors import ConfigError, ManifestError


def config(tmp_path, **changes):
    settings = tree(cohort(), tmp_path / "cache", steps=1)
    settings |= {"task": "segmentation", "diffusion": {"process": "direct"}, **changes}
    return parse_config(settings, "test")


def drawn(**changes):
    """The cohort as if it were another set: its cases under other names, and all of them in the split test."""
    manifest = Manifest.read(cohort())
    cases = [
        case.model_copy(update={"case": f"s{i}", "patient": f"s{i}", "split": "test", **changes})
        for i, case in enumerate(manifest.cases)
    ]
    return Manifest(tuple(cases), manifest.folder)


def test_arms_differ_in_what_is_trained_on_and_in_nothing_else(tmp_path):
    real, synthetic = Manifest.read(cohort()), drawn()
    found = arms(real, synthetic, config(tmp_path))
    assert tuple(found) == ARMS
    trained = {name: [c.case for c in m.split("train")] for name, m in found.items()}
    assert trained["real"] == [c.case for c in real.split("train")]
    assert trained["synthetic"] == [c.case for c in synthetic.cases]
    assert trained["real + synthetic"] == trained["real"] + trained["synthetic"]
    for split in ("val", "test"):
        assert {tuple(c.case for c in m.split(split)) for m in found.values()} == {
            tuple(c.case for c in real.split(split))
        }


def test_every_arm_is_trained_and_tested_on_the_same_real_cases(tmp_path):
    real = Manifest.read(cohort())
    settings = config(tmp_path)
    runs = train_arms(settings, arms(real, drawn(), settings), tmp_path / "runs", lambda name: [])
    rows = list(judged(runs, real, "test", torch.device("cpu")))
    tested = {name: [row["case"] for arm, row in rows if arm == name] for name in ARMS}
    assert set(map(tuple, tested.values())) == {tuple(c.case for c in real.split("test"))}
    assert all(0 <= row["dice"] <= 1 for _, row in rows)


def test_sets_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path):
    real, settings = Manifest.read(cohort()), config(tmp_path)
    numbers = {name: k + 1 for name, k in real.cases[0].labels.items()}
    with pytest.raises(ManifestError, match="numbers its labels"):
        arms(real, drawn(labels=numbers), settings)
    with pytest.raises(ManifestError, match="has no label map"):
        arms(real, drawn(label=None), settings)
    with pytest.raises(ManifestError, match="more than once"):
        arms(real, real, settings)
    with pytest.raises(ConfigError, match="direct segmentation"):
        train_arms(config(tmp_path, diffusion={}), {}, tmp_path / "runs", lambda name: [])
    assert not (tmp_path / "runs").exists()
