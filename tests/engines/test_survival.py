"""What happens to a run on a bad day: kills, signals, full disks, bad numbers, bad files, a second writer."""

import json
import os
import random
import resource
import signal
import time
from multiprocessing import active_children

import pytest
import torch
import yaml
from cohort import cohort, config, tree
from ignite.engine import Events
from launched import command, ended, start
from safetensors.torch import load_file

from meddiff.data.manifest import Manifest
from meddiff.data.store import Store
from meddiff.engines.checkpoint import best_checkpoint, load_checkpoint
from meddiff.engines.fit import fit
from meddiff.engines.run import Run
from meddiff.errors import ManifestError, RunError, Stopped

STEPS = 8


def settings(cache, **changes):
    """A config; changes of `data` and of `train`."""
    plain = config(cohort(), cache, steps=STEPS)
    data = {k: v for k, v in changes.items() if k in type(plain.data).model_fields}
    train = {k: v for k, v in changes.items() if k not in data}
    return plain.model_copy(
        update={"data": plain.data.model_copy(update=data), "train": plain.train.model_copy(update=train)}
    )


def at(step, act, event=Events.ITERATION_COMPLETED):
    """A handler that acts once, at a step; what it gets is the session."""
    return lambda session: session.engine.add_event_handler(event(once=step), lambda: act(session))


@pytest.fixture(autouse=True)
def one_thread(two_threads):
    """As in the processes that are killed: another number of threads may be other bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The uninterrupted run."""
    torch.set_num_threads(1)
    return fit(settings(cache), tmp_path_factory.mktemp("runs") / "whole")


def assert_same(run, whole):
    """Weights, average and optimiser of two runs are the same bits."""
    assert run.weights_path.read_bytes() == whole.weights_path.read_bytes()
    (step, state), (step_whole, state_whole) = (load_checkpoint(r.checkpoints, {}) for r in (run, whole))
    assert step == step_whole
    assert flat(state) == flat(state_whole)


def flat(state, name=""):
    """Name -> value of everything in a state, tensors as their bytes."""
    if isinstance(state, list | tuple):  # loading makes lists of tuples
        state = dict(enumerate(state))
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{name}.{key}").items()}
    return {name: state.numpy().tobytes() if isinstance(state, torch.Tensor) else state}


def trained(plain, folder, resume):
    torch.set_num_threads(1)
    fit(plain, folder, resume=resume, force=True)  # force: another number of workers is the same model


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_with_a_torn_checkpoint_it_still_ends_in_the_same_bits(cache, tmp_path, whole, workers):
    run, rng, resume = Run(tmp_path / "run"), random.Random(workers), False
    for _ in range(2):
        process = start(trained, settings(cache, workers=workers), run.folder, resume, said=tmp_path / "said")
        while not any(run.checkpoints.glob("step_*.json")) and process.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.join()
        resume = True
    newest = max(run.checkpoints.glob("step_*.pt"))
    if newest.stem != "step_00000002":
        newest.write_bytes(newest.read_bytes()[: rng.randrange(newest.stat().st_size)])
    assert ended(start(trained, settings(cache, workers=1), run.folder, True, said=tmp_path / "said")) == 0
    assert_same(run, whole)
    assert not list(run.folder.rglob(".*.partial"))
    assert [json.loads(line)["step"] for line in run.log_path.read_text().splitlines()] == [STEPS]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_a_signal_saves_at_the_end_of_the_step(cache, tmp_path, whole, number, workers):
    def ask(session):
        for process in active_children():  # clusters send it to every process of a job
            os.kill(process.pid, number)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match="after step 3, which is saved"):
        fit(settings(cache, workers=workers), tmp_path / "run", attach=[at(3, ask, Events.ITERATION_STARTED)])
    assert signal.getsignal(number) == signal.SIG_DFL
    assert load_checkpoint(tmp_path / "run" / "checkpoints", {})[0] == 3
    assert_same(fit(settings(cache), tmp_path / "run", resume=True), whole)


def test_sigterm_ends_the_command_with_143_and_resume_goes_on(cache, tmp_path):
    path, folder = tmp_path / "c.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(tree(cohort(), cache, steps=100000, checkpoint_every=100000)))
    process = start(command, "train", path, "-o", folder, said=tmp_path / "said")
    while not (folder / "log.jsonl").exists() and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    asked = time.monotonic()
    assert ended(process) == 143
    assert time.monotonic() - asked < 30
    assert "which is saved; --resume goes on" in " ".join((tmp_path / "said").read_text().split())
    assert load_checkpoint(folder / "checkpoints", {})[0] >= 10


def test_a_run_stopped_before_its_first_checkpoint_starts_again(cache, tmp_path, whole, caplog):
    def fail(session):
        raise OSError("the machine is gone")

    with pytest.raises(OSError, match="the machine is gone"):
        fit(settings(cache), tmp_path / "run", attach=[at(1, fail)])
    assert_same(fit(settings(cache), tmp_path / "run", resume=True), whole)
    assert "stopped before its first checkpoint" in caplog.text


def test_a_full_disk_leaves_the_last_checkpoint(cache, tmp_path, whole, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(session):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    try:
        with pytest.raises(RunError, match=r"step_00000006\.pt: cannot be written .*Free space"):
            fit(settings(cache), tmp_path / "run", attach=[at(5, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / "run" / "checkpoints", {})[0] == 4
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: os.statvfs_result and type("Usage", (), {"free": 1000}))
        with pytest.raises(RunError, match=r"a checkpoint takes \d+ MiB, the disk has 0 MiB left.*--resume"):
            fit(settings(cache), tmp_path / "run", resume=True)
    assert_same(fit(settings(cache), tmp_path / "run", resume=True), whole)


def poisoned(*steps):
    """A handler that makes the images of some steps NaN."""

    def attach(session):
        def spoil(engine):
            if engine.state.iteration in steps:
                engine.state.batch["image"].fill_(torch.nan)

        session.engine.add_event_handler(Events.ITERATION_STARTED, spoil)

    return attach


def test_a_batch_that_is_not_finite_changes_nothing(cache, tmp_path, caplog):
    before = {}

    def keep(session):
        before.update({name: value.clone() for name, value in session.model.state_dict().items()})

    def compare(session):
        torch.testing.assert_close(dict(session.model.state_dict()), before, rtol=0, atol=0)
        assert session.ema.updates == 3

    run = fit(settings(cache), tmp_path / "run", attach=[poisoned(4), at(3, keep), at(4, compare)])
    assert "at step 4: the step is skipped; 1 skipped so far" in caplog.text
    step, state = load_checkpoint(run.checkpoints, {})
    assert (step, state["skips"]) == (STEPS, {"all": 1, "in_a_row": 0})
    assert all(torch.isfinite(v).all() for v in load_file(run.weights_path).values())


def test_too_many_steps_that_are_not_finite_end_the_run(cache, tmp_path):
    with pytest.raises(RunError, match=r"loss is nan .* at step 6, and 3 steps in a row were skipped.*Lower train\.lr"):
        fit(settings(cache, nonfinite_limit=3), tmp_path / "run", attach=[poisoned(4, 5, 6)])
    step, state = load_checkpoint(tmp_path / "run" / "checkpoints", {})
    assert (step, state["skips"]) == (4, {"all": 1, "in_a_row": 1})


def test_a_killed_loader_process_is_a_clear_error_and_leaves_a_checkpoint(cache, tmp_path, whole):
    def kill(session):
        for process in active_children():
            process.kill()

    with pytest.raises(
        RunError, match=r"A loader process ended.*fewer data\.workers\. The checkpoint of step 4 is whole"
    ):
        fit(settings(cache, workers=1), tmp_path / "run", attach=[at(5, kill)])
    assert_same(fit(settings(cache), tmp_path / "run", resume=True), whole)


def hold(folder, ready):
    with Run(folder).writing():
        ready.touch()
        time.sleep(60)


def test_a_run_has_one_writer_and_a_killed_one_lets_go(cache, tmp_path, whole):
    run = fit(settings(cache, steps=2), tmp_path / "run")
    process = start(hold, run.folder, tmp_path / "ready", said=tmp_path / "said")
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(RunError, match="another process is training this run"):
        fit(settings(cache), run.folder, resume=True, force=True)
    process.kill()
    process.join()
    fit(settings(cache), run.folder, resume=True, force=True)


def spoiled(plain, number):
    """A handler that empties the preprocessed file of a training case."""
    case = Manifest.read(plain.data.manifest).split("train")[number]
    store = Store(plain.data)
    return lambda session: (store.folder / f"{store.key(case)}.npy").write_bytes(b""), case.case


def test_a_case_that_becomes_unreadable_is_left_out_and_listed(tmp_path, caplog):
    plain = settings(tmp_path / "cache", unreadable_limit=0.5)
    spoil, name = spoiled(plain, 0)
    run = fit(plain, tmp_path / "run", attach=[at(2, spoil)])
    (line,) = run.quarantine_path.read_text().splitlines()
    assert json.loads(line)["case"] == name
    assert "cannot be read" in json.loads(line)["why"]
    assert "It is left out; so far 1 of 6 cases" in caplog.text
    with pytest.raises(ManifestError, match=r"1 of 6 cases cannot be read.*data\.unreadable_limit = 0\.01"):
        fit(settings(tmp_path / "cache"), tmp_path / "other", attach=[at(2, spoil)])


def test_a_scan_that_cannot_be_read_is_left_out_from_the_start(tmp_path):
    manifest = Manifest.read(cohort(patients=4))
    (path,) = manifest.resolve(manifest.split("train")[1].image[0])
    content, times = path.read_bytes(), path.stat()
    plain = config(cohort(patients=4), tmp_path / "cache", steps=2)
    try:
        path.write_bytes(content[:100])
        with pytest.raises(ManifestError, match="has changed since the scan"):
            fit(plain, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        tolerant = plain.model_copy(update={"data": plain.data.model_copy(update={"unreadable_limit": 0.5})})
        run = fit(tolerant, tmp_path / "run")
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(run.quarantine_path.read_text().splitlines()) == 1
    assert run.load_model(torch.device("cpu"))[1].train_cases == len(manifest.split("train")) - 1


def test_the_best_checkpoint_stays_beside_the_newest(cache, tmp_path):
    losses = iter([3.0, 1.0, 2.0, 2.5])

    def pretend(session):
        def measured(engine):
            engine.state.metrics["held_out"] = next(losses)
            session.keeper.measured = engine.state.iteration

        session.engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), measured)

    run = fit(settings(cache, validate_every=100), tmp_path / "run", attach=[pretend])
    assert [p.stem[-1] for p in sorted(run.checkpoints.glob("*.pt"))] == ["4", "6", "8"]
    best = best_checkpoint(run.checkpoints)
    assert (best.step, best.held_out) == (4, 1.0)


def test_weights_and_card_are_mended_after_a_kill_between_them(cache, tmp_path, whole):
    run = fit(settings(cache), tmp_path / "run")
    run.weights_path.write_bytes(b"of another step")
    with pytest.raises(RunError, match="has SHA-256"):
        run.load_model(torch.device("cpu"))
    assert_same(fit(settings(cache), run.folder, resume=True), whole)
    run.load_model(torch.device("cpu"))


def test_switches_of_memory_change_nothing_but_rounding(cache, tmp_path, whole):
    run = fit(settings(cache, channels_last=True, ema_device="cpu"), tmp_path / "run")
    for name, value in load_file(whole.weights_path).items():
        torch.testing.assert_close(load_file(run.weights_path)[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_in_another_memory_layout(cache, tmp_path, whole):
    def stop(session):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(settings(cache), tmp_path / "run", attach=[at(5, stop)])
    run = fit(settings(cache, channels_last=True), tmp_path / "run", resume=True)
    for name, value in load_file(whole.weights_path).items():
        torch.testing.assert_close(load_file(run.weights_path)[name], value, rtol=1e-3, atol=1e-4)
