import pytest
import torch
from cohort import cohort, tree
from safetensors.torch import load_file
from test_fit import Stopped, stop_at

from meddiff.config_file import parse_config
from meddiff.engines.fit import fit
from meddiff.engines.predict import draw_samples
from meddiff.engines.run import Run
from meddiff.engines.sets import write_niftis
from meddiff.engines.synthetic import sample_set
from meddiff.errors import ConfigError, RunError


def config(cache, kind, dims=2, **changes):
    settings = tree(cohort(), cache, dims)
    settings["baseline"] = {"kind": kind, "latent": 4}
    settings |= changes
    return parse_config(settings, "test")


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_a_baseline_trains_resumes_to_the_same_bits_and_samples_like_any_run(tmp_path, kind):
    whole = fit(config(tmp_path / "cache", kind), tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(config(tmp_path / "cache", kind), tmp_path / "cut", attach=[stop_at(3)])
    cut = fit(config(tmp_path / "cache", kind), tmp_path / "cut", resume=True)
    one, two = load_file(whole.weights_path), load_file(cut.weights_path)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    model, card = whole.load_model(torch.device("cpu"))
    settings = whole.config()
    for name in ("a", "b"):
        sample_set(model, card, settings, 2, tmp_path / name, 0, write_niftis)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert '"evaluations": 1' in (tmp_path / "a" / "sample_00000.json").read_text()
    assert whole.training_seconds() > 0


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_a_baseline_of_volumes_trains(tmp_path, kind):
    run = fit(config(tmp_path / "cache", kind, 3), tmp_path / "run")
    model, _ = run.load_model(torch.device("cpu"))
    (sample,) = draw_samples(model, run.config(), ["a"], 0)
    assert sample.shape == (1, 16, 16, 16)
    with pytest.raises(RunError, match="no other size"):
        list(draw_samples(model, run.config(), ["a"], 0, size=(24, 16, 16)))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("network", {"attention": [False, True], "head_channels": 8}, "it has no network.attention"),
        ("network", {"checkpointing": True}, "it has no network.checkpointing"),
        ("train", {"parallel": "fsdp"}, "it has no train.parallel fsdp"),
        ("train", {"reference": 8}, "it has no train.reference"),
        ("diffusion", {"parameterization": "v"}, "it has no diffusion"),
        ("data", {"paired": True}, "it has no data.paired"),
        ("data", {"size": [17, 16]}, "does not divide by 2"),
        ("baseline", {"kind": "flow"}, "baseline"),
        ("baseline", {"latents": 3}, "unknown key baseline.latents; did you mean latent?"),
    ],
)
def test_settings_that_a_baseline_cannot_use_are_refused(tmp_path, section, changes, message):
    settings = tree(cohort(), tmp_path)
    settings["baseline"] = {"kind": "vae"}
    settings.setdefault(section, {}).update(changes)
    with pytest.raises(ConfigError, match=message):
        parse_config(settings, "test")


def test_a_baseline_of_another_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="it has no task segmentation"):
        config(tmp_path, "vae", task="segmentation")


def test_a_run_without_a_log_does_not_know_its_time(tmp_path):
    assert torch.tensor(Run(tmp_path).training_seconds()).isnan()
