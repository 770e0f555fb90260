"""Several processes do what one does: training, its held-out loss, its checkpoints, samples, segmentation, restoration, scan."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from cohort import cohort, tree
from ignite.engine import Events
from launched import command, together
from safetensors.torch import load_file

from meddiff.config import Config
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.fit import fit
from meddiff.engines.processes import join, rank
from meddiff.engines.run import Run

# Adam divides a gradient by its own size: where that is near 0, rounding in another order moves a weight by a share of lr
WEIGHTS = {"rtol": 1e-3, "atol": 1e-4}
LOSSES = {"rtol": 1e-4, "atol": 1e-5}


def settings(cache, dims=2, task="synthesis", **train):
    plain = tree(cohort(), cache, dims, **{"steps": 6, "batch": 8, "checkpoint_every": 2, "validate_every": 3, **train})
    if task == "segmentation":
        plain |= {"task": task, "sample": {"steps": 4, "samples": 2, "batch": 4}}
    return plain


def train(plain, folder, losses, dies=None, resume=False):
    """Train, and note the loss of every step; the last process kills itself at the step `dies`."""
    join("cpu")
    noted = []

    def attach(session):
        def note(engine):
            noted.append((engine.state.output["loss"], engine.state.metrics.get("held_out")))
            if engine.state.iteration == dies and rank() == int(os.environ["WORLD_SIZE"]) - 1:
                os.kill(os.getpid(), signal.SIGKILL)

        session.engine.add_event_handler(Events.ITERATION_COMPLETED, note)

    fit(Config.model_validate(plain), folder, attach=[attach], resume=resume)
    losses.with_name(f"{losses.name}.{rank()}").write_text(json.dumps(noted))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def alone(folder):
    """The run of one process."""
    assert together(
        1, train, settings(folder / "cache"), folder / "alone", folder / "losses", said=folder / "said"
    ) == [0]
    return Run(folder / "alone")


def losses(path, n=1):
    """What every process noted; they must agree."""
    each = [json.loads(path.with_name(f"{path.name}.{r}").read_text()) for r in range(n)]
    assert all(one == each[0] for one in each)
    return torch.tensor([[loss, nan if held is None else held] for loss, held in each[0] for nan in [float("nan")]])


def assert_same_run(run, other):
    for name, value in load_file(run.weights_path).items():
        torch.testing.assert_close(load_file(other.weights_path)[name], value, **WEIGHTS)


@pytest.mark.parametrize(
    ("n", "changed"),
    [(2, {}), (2, {"accumulate": 2}), (4, {}), (2, {"parallel": "fsdp"}), (2, {"parallel": "fsdp", "accumulate": 2})],
    ids=str,
)
def test_processes_train_what_one_process_trains(folder, tmp_path, alone, n, changed):
    plain = settings(folder / "cache", **changed)
    assert together(n, train, plain, tmp_path / "run", tmp_path / "losses", said=tmp_path / "said") == [0] * n
    run = Run(tmp_path / "run")
    torch.testing.assert_close(losses(tmp_path / "losses", n), losses(folder / "losses"), equal_nan=True, **LOSSES)
    assert_same_run(run, alone)
    noted = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    assert [line["step"] for line in noted] == [6]  # one process writes
    step, state = load_checkpoint(run.checkpoints, {})
    step_alone, state_alone = load_checkpoint(alone.checkpoints, {})
    assert step == step_alone == 6
    assert state["updates"] == state_alone["updates"] == 6
    for name, value in state_alone["model"].items():
        torch.testing.assert_close(state["model"][name], value, **WEIGHTS)
    assert state["optimizer"]["state"].keys() == state_alone["optimizer"]["state"].keys()


def test_a_checkpoint_of_shared_weights_goes_on_in_one_process(folder, tmp_path, alone):
    plain = settings(folder / "cache", parallel="fsdp")
    codes = together(2, train, plain, tmp_path / "run", tmp_path / "losses", 5, said=tmp_path / "said")
    assert codes[1] == -signal.SIGKILL
    assert codes[0] != 0
    assert load_checkpoint(Run(tmp_path / "run").checkpoints, {})[0] == 4
    assert together(1, train, plain, tmp_path / "run", tmp_path / "l", None, True, said=tmp_path / "said") == [0]
    assert_same_run(Run(tmp_path / "run"), alone)


def test_a_killed_process_ends_the_run_with_a_message_and_a_checkpoint_that_goes_on(folder, tmp_path, alone):
    path = tmp_path / "c.yaml"
    plain = settings(folder / "cache")
    path.write_text(yaml.safe_dump(plain))
    codes = together(2, killed, path, tmp_path / "run", said=tmp_path / "said")
    assert codes == [2, -signal.SIGKILL]
    said = " ".join((tmp_path / "said.0").read_text().split())
    assert "meddiff (process 0): Another process of this run ended" in said
    assert "The checkpoint of step 4 is whole; go on from it with --resume." in said
    assert together(2, train, plain, tmp_path / "run", tmp_path / "l", None, True, said=tmp_path / "said") == [0, 0]
    assert_same_run(Run(tmp_path / "run"), alone)


def killed(path, run):
    """`meddiff train`, whose last process kills itself at step 5."""
    import meddiff.report.previews as previews

    def attach(session):
        def die(engine):
            if engine.state.iteration == 5 and rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        session.engine.add_event_handler(Events.ITERATION_COMPLETED, die)

    previews.previews = attach
    command("train", path, "-o", run)


def everything(run, seg, scans, out):
    """Scan, sample and segment; commands, but that a command ends its process."""
    for arguments in (
        ("scan", scans, "-o", out / "m.jsonl", "--key", out / "key"),
        ("sample", run, "-n", "7", "-o", out / "samples"),
        ("segment", seg, out / "m.jsonl", "-o", out / "segmented"),
    ):
        with pytest.raises(SystemExit) as e:
            command(*arguments)
        assert e.value.code == 0, arguments


def test_scan_samples_and_segmentations_are_the_same_bytes_from_any_number_of_processes(folder, tmp_path, alone):
    seg = fit(Config.model_validate(settings(folder / "cache", task="segmentation", steps=2)), tmp_path / "seg")
    scans = cohort().parent / "data"
    for n in (1, 2):
        out = tmp_path / str(n)
        out.mkdir()
        (out / "key").write_text("a key for tests only")
        (out / "key").chmod(0o600)
        assert together(n, everything, alone.folder, seg.folder, scans, out, said=out / "said") == [0] * n
    one, two = (
        {p.relative_to(t): p.read_bytes() for p in t.rglob("*") if p.is_file()}
        for t in (tmp_path / "1", tmp_path / "2")
    )
    assert {p for p in one if not p.name.startswith("said")} == {p for p in two if not p.name.startswith("said")}
    assert [p for p in one if not p.name.startswith("said") and one[p] != two[p]] == []


def test_a_batch_that_cannot_be_shared_evenly_and_a_command_for_one_are_refused(folder, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings(folder / "cache", batch=3)))
    assert together(2, command, "train", path, "-o", tmp_path / "run", said=tmp_path / "said") == [2, 2]
    assert "train.batch = 3 is shared by 2 processes" in (tmp_path / "said.0").read_text()
    assert not (tmp_path / "run").exists()
    assert together(2, command, "evaluate", tmp_path, "-o", tmp_path / "e", said=tmp_path / "said") == [2, 2]
    assert "evaluate is done by one process; call it without torchrun" in (tmp_path / "said.1").read_text()


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_and_the_run_goes_on(folder, tmp_path):
    path, run = tmp_path / "c.yaml", Run(tmp_path / "run")
    path.write_text(yaml.safe_dump(settings(folder / "cache", steps=100000, checkpoint_every=100000)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "meddiff"]
    train = [*torchrun, "train", str(path), "-o", str(run.folder)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(train, stderr=said)
    while not run.log_path.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) != 0
    assert "Stopped by a signal after step" in " ".join((tmp_path / "said").read_text().split())
    step, _ = load_checkpoint(run.checkpoints, {})
    assert step >= 10
    shorter = ["--resume", "--force", "--set", f"train.steps={step + 2}"]
    assert subprocess.run([*train, *shorter], stderr=subprocess.DEVNULL, check=False).returncode == 0
    assert run.load_model(torch.device("cpu"))[1].step == step + 2


@pytest.mark.slow
def test_a_compiled_network_trains_to_rounding_as_the_other(folder, tmp_path, alone):
    plain = settings(folder / "cache", compile=True)
    result = together(1, train, plain, tmp_path / "run", tmp_path / "losses", said=tmp_path / "said", patience_s=900)
    assert result == [0]
    assert_same_run(Run(tmp_path / "run"), alone)
