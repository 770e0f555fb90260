"""The model of cost, on probes whose costs are known exactly; and the probes themselves on a tiny network."""

import json
from math import prod

import pytest
from cohort import cohort, tree
from typer.testing import CliRunner

from meddiff.cli import app
from meddiff.cli import plan as cli
from meddiff.config_file import parse_config
from meddiff.data.conditions import Known
from meddiff.engines.measure import Drawn, Request, Step, measure_sample, measure_step
from meddiff.engines.plan import CONTEXT, Line, TooLargeError, plan
from meddiff.engines.trainer import computes_bf16
from meddiff.errors import ConfigError

MIB = 1 << 20


def config(size=(32, 32, 32), batch=8, accumulate=1, **network):
    raw = tree(cohort(), None, 3, batch=batch, accumulate=accumulate, steps=100)
    raw["data"]["size"] = list(size)
    raw["network"] |= network
    return parse_config(raw, "test")


def exact(asked=None, most=None):
    """A probe of 100 MiB of libraries; 10 MiB and 1 KiB a voxel (half of that with checkpointing), 1 s and 1 us a voxel."""

    def probe(request: Request) -> Step:
        voxels = request.batch * prod(request.size)
        if asked is not None:
            asked.append((request.batch, request.size))
        if most is not None and voxels > most:
            raise TooLargeError("more than there is")
        lean = 2 if request.config.network.checkpointing else 1
        return Step(
            seconds=1 + 1e-6 * voxels,
            libraries=100 * MIB,
            peak=110 * MIB + 1024 // lean * voxels,
            after=110 * MIB,
            flops=1e3 * voxels,
            parameters=1000,
        )

    return probe


def drawn(request):
    return Drawn(once=2.0, evaluation=0.5)


def test_a_line_goes_through_both_points_and_never_falls():
    line = Line.through((10, 7.0), (20, 9.0))
    assert (line(10), line(20), line(100)) == pytest.approx((7, 9, 25))
    assert Line.through((10, 5.0), (20, 4.0))(1000) == 4.0
    assert Line.through((10, 1.0), (20, 4.0))(40) == 8.0  # through 0 where the line would be below it there


def test_the_cost_of_a_batch_follows_from_two_smaller_ones():
    asked = []
    result = plan(config(), Known(), 4, 1e12, False, exact(asked), drawn)
    assert asked == [(2, (32, 32, 32)), (4, (32, 32, 32))]
    voxels = 8 * 32**3
    assert result.own.memory == 110 * MIB + 1024 * voxels + 4 * 32**3 * 4  # libraries, the step, held-out images
    assert result.own.step_s == pytest.approx(1 + 1e-6 * voxels)
    assert result.train_hours == pytest.approx(100 * result.own.step_s / 3600)
    assert result.flops_per_step == pytest.approx(1e3 * voxels)
    assert result.own.fits
    assert result.changes == ()


def test_a_sample_takes_its_evaluations_and_what_is_done_once():
    result = plan(config(), Known(), 0, 1e12, False, exact(), drawn)
    assert result.sample_s == pytest.approx((2.0 + 5 * 0.5) / 2)  # 5 evaluations, two samples side by side


def test_accumulated_batches_take_the_memory_of_one_and_the_time_of_all():
    result = plan(config(batch=8, accumulate=4), Known(), 0, 1e12, False, exact(), drawn)
    assert result.own.memory == 110 * MIB + 1024 * 2 * 32**3
    assert result.own.step_s == pytest.approx(4 * (1 + 1e-6 * 2 * 32**3))


def test_one_image_a_step_is_measured_whole_and_by_half():
    asked = []
    plan(config(batch=1), Known(), 0, 1e12, False, exact(asked), drawn)
    assert asked == [(1, (16, 32, 32)), (1, (32, 32, 32))]


def test_what_is_too_large_to_measure_follows_from_smaller_images():
    asked = []
    result = plan(config(size=(64, 64, 64), batch=1), Known(), 0, 1e12, False, exact(asked, most=70_000), drawn)
    assert asked[-2:] == [(1, (32, 32, 32)), (1, (32, 32, 64))]
    assert result.cost.smaller
    assert result.own.memory == 110 * MIB + 1024 * 64**3


def test_what_cannot_be_measured_at_all_is_told():
    with pytest.raises(ConfigError, match="does not fit into the memory of this machine"):
        plan(config(), Known(), 0, 1e12, False, exact(most=1), drawn)


def test_what_would_help_is_named_with_what_it_takes():
    gpu = plan(config(), Known(), 4, 200 * MIB, True, exact(), drawn)
    assert gpu.own.memory == 10 * MIB + 1024 * 8 * 32**3 + CONTEXT
    result = plan(config(), Known(), 0, 300 * MIB, False, exact(), drawn)
    assert not result.own.fits
    found = {change.what: change for change in result.changes}
    assert found["network.checkpointing=true"].memory == 110 * MIB + 512 * 8 * 32**3
    assert found["train.accumulate=2"].memory == 110 * MIB + 1024 * 4 * 32**3
    assert found["train.accumulate=2"].fits
    assert found["train.accumulate=2"].step_s == pytest.approx(2 * (1 + 4e-6 * 32**3))
    smaller = next(change for what, change in found.items() if what.startswith("data.size="))
    assert smaller.fits
    latent = next(change for what, change in found.items() if what.startswith("diffusion.latent"))
    assert latent.memory == 110 * MIB + 1024 * 8 * 8**3


def test_the_probes_measure_a_step_and_a_sample(tmp_path):
    raw = tree(cohort(), tmp_path, 2)
    request = Request(config=parse_config(raw, "test"), batch=2, size=(16, 16))
    step = measure_step(request)
    assert step.seconds > 0
    assert step.peak >= step.after > 0
    twice = measure_step(request.model_copy(update={"batch": 4}))
    assert twice.flops == pytest.approx(2 * step.flops, rel=0.1)
    assert twice.parameters == step.parameters
    assert measure_sample(request).once >= 0


@pytest.mark.parametrize("task", ["segmentation", "restoration", "autoencoder"])
def test_every_task_is_measured(task, tmp_path):
    raw = tree(cohort(), tmp_path, 2)
    raw["task"] = task
    if task == "restoration":
        raw["data"]["degradation"] = {"kind": "gaussian"}
    labels = ("a", "b") if task == "segmentation" else ()
    request = Request(config=parse_config(raw, "test"), labels=labels, batch=1, size=(16, 16))
    assert measure_step(request).flops > 0
    assert measure_sample(request).once >= 0


@pytest.fixture
def in_process(monkeypatch):
    acts = {"step": measure_step, "sample": measure_sample}
    monkeypatch.setattr(cli, "_probe", lambda kind, request, memory: acts[kind](request).model_dump_json())


def test_the_command_writes_its_figures(in_process, tmp_path):
    (tmp_path / "c.yaml").write_text(parse_config(tree(cohort(), tmp_path, device="cpu"), "test").dump())
    options = ["plan", str(tmp_path / "c.yaml"), "--json", str(tmp_path / "p.json")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "p.json").read_text())
    assert figures["fits"]
    assert figures["memory_from"].startswith("measured on cpu: line through 1 x 16 x 16 and 2 x 16 x 16")
    done = CliRunner().invoke(app, [*options, "--device-memory", "24GiB", "--device-tflops", "20"])
    assert done.exit_code == 0, done.output
    absent = json.loads((tmp_path / "p.json").read_text())
    assert absent["memory_budget_bytes"] == 24 * 2**30
    assert "an assumption" in absent["memory_from"]
    assert absent["step_s"] == pytest.approx(absent["flops_per_step"] / 20e12)
    assert absent["time_from"] == "20 TFLOP/s and the operations of one step"


def test_a_cpu_that_only_emulates_bf16_is_named(in_process, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: False)
    computes_bf16.cache_clear()
    (tmp_path / "c.yaml").write_text(
        parse_config(tree(cohort(), tmp_path, precision="bf16", device="cpu"), "test").dump()
    )
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "c.yaml")])
    computes_bf16.cache_clear()
    assert done.exit_code == 0, done.output
    assert caplog.text.count("This CPU has no fast bf16") == 1


def test_a_private_run_is_not_planned_as_if_it_were_none(tmp_path):
    private = tree(cohort(), tmp_path, privacy={"epsilon": 1, "delta": 0.01})
    (tmp_path / "c.yaml").write_text(parse_config(private, "test").dump())
    assert "only plain steps are planned" in str(CliRunner().invoke(app, ["plan", str(tmp_path / "c.yaml")]).exception)


def test_a_probe_runs_in_a_process_of_its_own(tmp_path):
    request = Request(config=parse_config(tree(cohort(), tmp_path, device="cpu"), "test"), batch=1, size=(16, 16))
    step = Step.model_validate_json(cli._probe("step", request, 1 << 34))
    assert step.libraries > 100 * MIB
    assert step.peak > step.libraries


@pytest.mark.parametrize("text", ["24 bananas", "", "-1GiB", "0"])
def test_a_size_that_is_none_is_told(text):
    with pytest.raises(ConfigError, match="Write it as 24GiB"):
        cli._bytes(text)


def test_sizes_are_powers_of_two():
    assert cli._bytes("24GiB") == cli._bytes("24G") == cli._bytes(" 24 gb ") == 24 * 2**30
    assert cli._bytes("1.5k") == 1536
