"""On a GPU: what a CPU does, to rounding; and the same bytes twice. Skipped where there is none."""

import numpy as np
import pytest
import torch
from cohort import cohort, tree
from ignite.engine import Events

from meddiff.config_file import parse_config
from meddiff.data.manifest import load_image
from meddiff.engines.checkpoint import load_checkpoint
from meddiff.engines.fit import fit
from meddiff.engines.measure import Request, measure_step
from meddiff.engines.predict import draw_samples
from meddiff.engines.restore import restore
from meddiff.engines.segment import segment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROUNDING = {"rtol": 1e-3, "atol": 1e-3}


def settings(cache, task="synthesis", dims=2, *, network=None, **train):
    plain = tree(cohort(), cache, dims, **train)
    plain["network"] |= {"attention": [False, True], "head_channels": 8} | (network or {})
    if task == "segmentation":
        plain["sample"] = {"steps": 3, "samples": 2, "batch": 8, "sigma_min": 0.3}
    if task == "restoration":
        plain["data"]["degradation"] = {"kind": "gaussian"}
        plain["sample"] = {"steps": 4, "samples": 2, "batch": 8, "sigma_max": 5.0}
    return parse_config({**plain, "task": task}, "test")


class Stopped(Exception):
    pass


def stop(session):
    """After the third step."""

    def act():
        raise Stopped

    session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), act)


def each_loss(losses):
    def attach(session):
        session.engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"])
        )

    return attach


@pytest.fixture(scope="module", params=["synthesis", "segmentation", "restoration"])
def runs(request, tmp_path_factory):
    """One config, trained by both."""
    folder = tmp_path_factory.mktemp(request.param)
    losses = {"cpu": [], "cuda": []}
    for device, noted in losses.items():
        config = settings(folder / "cache", request.param, device=device)
        run = fit(config, folder / device, attach=[each_loss(noted)])
    return run, losses


def test_a_gpu_learns_what_a_cpu_learns(runs):
    _, losses = runs
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-3)


def test_what_a_gpu_trained_gives_the_same_on_both(runs):
    run, _ = runs
    config, manifest = run.config(), run.manifest()
    scan = load_image(manifest, manifest.split("test")[0])
    found = []
    for device in (GPU, CPU):
        model, card = run.load_model(device)
        if config.task == "synthesis":
            found.append(torch.stack(list(draw_samples(model, config, ["a", "b", "c"], 0))))
        elif config.task == "segmentation":
            found.append(torch.from_numpy(segment(model, config, card, scan, "a", 0).probability))
        else:
            restored = restore(model, config, card, scan, "a", 0, sigma=30.0)
            found.append(torch.from_numpy(restored.image.array / 600))
    torch.testing.assert_close(*found, **ROUNDING)


@pytest.mark.parametrize("task", ["synthesis", "segmentation", "restoration"])
@pytest.mark.parametrize(
    ("dims", "train"), [(2, {"precision": "bf16"}), (3, {}), (3, {"precision": "bf16", "channels_last": True})], ids=str
)
def test_the_same_run_twice_and_an_interrupted_one_give_the_same_bytes(tmp_path, task, dims, train):
    config = settings(tmp_path / "cache", task, dims, **train)
    one, two = (fit(config, tmp_path / name) for name in ("one", "two"))
    with pytest.raises(Stopped):
        fit(config, tmp_path / "three", attach=[stop])
    three = fit(config, tmp_path / "three", resume=True)
    assert one.weights_path.read_bytes() == two.weights_path.read_bytes() == three.weights_path.read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_that_began_on_a_gpu_goes_on_without_one(tmp_path):
    with pytest.raises(Stopped):
        fit(settings(tmp_path / "cache", device="cuda"), tmp_path / "run", attach=[stop])
    run = fit(settings(tmp_path / "cache", device="cpu"), tmp_path / "run", resume=True, force=True)
    assert load_checkpoint(run.checkpoints, {})[0] == 6


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "train",
    [
        {"precision": "fp16"},
        {"precision": "bf16", "channels_last": True},
        {"precision": "bf16", "compile": True},
        {"precision": "bf16", "ema_device": "cpu", "accumulate": 2},
    ],
    ids=str,
)
def test_every_switch_of_training_learns(tmp_path, dims, train):
    losses = []
    config = settings(tmp_path / "cache", dims=dims, network={"checkpointing": dims == 3}, **train)
    fit(config, tmp_path / "run", attach=[each_loss(losses)])
    assert len(losses) == 6
    assert np.isfinite(losses).all()


def test_a_step_is_measured_in_the_memory_of_the_gpu(tmp_path):
    step = measure_step(Request(config=settings(tmp_path / "cache"), batch=4, size=(16, 16)))
    assert step.libraries <= step.after < step.peak < 2**30
