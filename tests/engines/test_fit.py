import json

import pytest
import torch
from cohort import cohort, config
from ignite.engine import Events
from safetensors.torch import load_file

from meddiff.config import TrainConfig
from meddiff.data.manifest import Manifest
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.fit import fit
from meddiff.engines.run import Run
from meddiff.engines.trainer import autocast, choose_device, computes_bf16, learning_rate
from meddiff.errors import ConfigError, ManifestError, RunError


def weights(run):
    return load_file(run.weights_path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stopped(Exception):
    pass


def stop_at(step):
    def attach(session):
        def stop():
            raise Stopped

        session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=step), stop)

    return attach


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return fit(config(cohort(), folder / "cache"), folder / "whole")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_folder_holds_everything(run):
    names = {p.name for p in run.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "manifest.jsonl",
        "weights.safetensors",
        "model.json",
        "checkpoints",
        "log.jsonl",
        "tensorboard",
    }
    records = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert records[-1]["step"] == 6
    assert records[-1]["held_out"] > 0
    model, card = run.load_model(torch.device("cpu"))
    assert card.step == 6
    assert card.space.unit == "HU"
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_interrupted_and_resumed_run_gives_the_weights_of_the_whole_one(tmp_path, dropout):
    settings = config(cohort(), tmp_path / "cache", ema=0.9)
    settings = settings.model_copy(update={"network": settings.network.model_copy(update={"dropout": dropout})})
    whole = fit(settings, tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(settings, tmp_path / "torn", attach=[stop_at(5)])  # the newest checkpoint is of step 4
    torn = fit(settings, tmp_path / "torn", resume=True)
    assert same(weights(whole), weights(torn))


def test_accumulated_parts_give_the_weights_of_the_whole_batch(tmp_path):
    one = fit(config(cohort(), tmp_path / "cache"), tmp_path / "one")
    parts = fit(config(cohort(), tmp_path / "cache", accumulate=2), tmp_path / "parts")
    for name, value in weights(one).items():
        torch.testing.assert_close(
            value, weights(parts)[name], rtol=1e-3, atol=1e-4
        )  # Adam divides rounding by its own size


def test_the_same_run_twice_gives_the_same_weights(run, tmp_path):
    again = fit(run.config(), tmp_path / "again")
    assert run.weights_path.read_bytes() == again.weights_path.read_bytes()


def test_a_volume_model_trains_with_checkpointing_and_bf16(tmp_path):
    settings = config(cohort(), tmp_path / "cache", dims=3, steps=2, precision="bf16")
    settings = settings.model_copy(update={"network": settings.network.model_copy(update={"checkpointing": True})})
    assert fit(settings, tmp_path / "run").weights_path.exists()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for path in run.checkpoints.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    newest = max(folder.glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1])
    step, _ = load_checkpoint(folder, {})
    assert step == 4
    assert "step_00000006.pt is damaged" in caplog.text
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint that can be read"):
        load_checkpoint(folder, {})


def test_a_folder_that_holds_something_is_not_trained_into(run, tmp_path):
    before = sorted(p.stat().st_mtime_ns for p in run.folder.rglob("*"))
    with pytest.raises(RunError, match=r"holds another run.*--resume"):
        fit(run.config(), run.folder)
    assert sorted(p.stat().st_mtime_ns for p in run.folder.rglob("*")) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and is not a run"):
        fit(run.config(), tmp_path)
    with pytest.raises(RunError, match="is not a run folder"):
        fit(run.config(), tmp_path, resume=True)


def test_another_config_does_not_resume_a_run(run):
    settings = run.config()
    changed = settings.model_copy(update={"train": settings.train.model_copy(update={"lr": 0.5})})
    with pytest.raises(RunError, match="written with another config"):
        fit(changed, run.folder, resume=True)


def test_a_split_without_cases_is_refused_before_anything_is_written(run, tmp_path):
    manifest = run.manifest()
    held_out = Manifest(manifest.split("test"), manifest.folder)
    held_out.write(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="no case in the split train"):
        fit(config(tmp_path / "m.jsonl", tmp_path / "cache"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path):
    def poison(session):
        def spoil():
            for p in session.engine.state.poisoned:
                p.data.fill_(float("nan"))

        session.engine.state.poisoned = list(session.model.parameters())
        session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), spoil)

    with pytest.raises(RunError, match=r"weights are not finite, model\..*Lower train\.lr"):
        fit(run.config(), tmp_path / "run", attach=[poison])
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*.pt")] == ["step_00000002.pt"]
    assert all(torch.isfinite(v).all() for v in weights(Run(tmp_path / "run")).values())


def test_the_learning_rate_warms_up_and_falls_like_a_cosine():
    train = TrainConfig(steps=110, warmup=10, lr=1.0)
    assert [learning_rate(train, s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(train, 60) == pytest.approx(0.5)
    assert learning_rate(train, 109) < 1e-3


def test_the_held_out_loss_stays_there_for_who_shows_it(run, tmp_path):
    seen = []

    def watch(session):
        def look(engine):
            seen.append("held_out" in engine.state.metrics)

        session.engine.add_event_handler(Events.ITERATION_COMPLETED, look)

    fit(run.config(), tmp_path / "run", attach=[watch])
    assert seen == [False, False, True, True, True, True]  # validate_every is 3, and the log is written at 6


def test_what_a_gpu_cannot_repeat_is_said_with_the_way_out(tmp_path):
    def attach(session):
        def act():
            raise RuntimeError("avg_pool3d_backward_cuda does not have a deterministic implementation, but you set ...")

        session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), act)

    with pytest.raises(ConfigError, match=r"avg_pool3d_backward_cuda.*train.deterministic=false.*step 2 is whole"):
        fit(config(cohort(), tmp_path / "cache"), tmp_path / "run", attach=[attach])


def test_devices_and_precisions_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"train\.device: 'warp' cannot be used"):
        choose_device("warp")
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, found cpu"):
        autocast(torch.device("cpu"), "fp16")


@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_computed_in_fp32_where_the_cpu_only_emulates_it(monkeypatch, caplog, able):
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: able)
    computes_bf16.cache_clear()
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), "bf16"), autocast(torch.device("cpu"), "bf16"):
        assert (x @ x).dtype == (torch.bfloat16 if able else torch.float32)
    assert caplog.text.count("This CPU has no fast bf16") == (not able)
    computes_bf16.cache_clear()


def test_weights_that_are_not_the_cards_are_refused(run, tmp_path):
    copy = Run(tmp_path / "copy")
    copy.folder.mkdir()
    for path in (run.config_path, run.card_path):
        (copy.folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="cannot be loaded"):
        copy.load_model(torch.device("cpu"))
    copy.weights_path.write_bytes(run.weights_path.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="has SHA-256"):
        copy.load_model(torch.device("cpu"))
