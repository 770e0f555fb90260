"""A training step with differential privacy against a plain one on as many images.

    python scripts/bench_privacy.py [--quick] [--json FILE]

Both see P patients x 4 images x 4 draws of noise, through the step that `meddiff train` takes: 2D with 4 patients of 64 x 64 and the
network of configs/synthesis_2d_ct.yaml, 3D with 2 patients of 24 x 24 x 24; `2d_single` is 16 patients with one image and one draw
each, the worst there is. The plain step takes them in one pass, and in as many passes as there are patients (`train.accumulate`),
which is what a private one does. Contenders take turns; medians.
`private_*_ratio` is the time of a private step over that of a plain one: less is better.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from meddiff.config import DiffusionConfig, TrainConfig
from meddiff.config_file import parse_config
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.engines.budget import Budget
from meddiff.engines.ema import EMA
from meddiff.engines.private import private_trainer
from meddiff.engines.trainer import Skips, optimizer_for, trainer
from meddiff.networks.unet import UNet
from meddiff.privacy_config import PrivacyConfig
from meddiff.tasks.synthesis import Synthesis

CPU = torch.device("cpu")
DIFFUSION = DiffusionConfig(sigma_data=0.5)
COHORT = 100  # patients, of whom some are drawn in a step


@dataclass(frozen=True)
class Case:
    """A network and what it is shown."""

    patients: int
    size: tuple[int, ...]
    network: dict[str, Any]
    images: int = 4  # of a patient
    draws: int = 4  # of noise for each


HEADS = {"channels": (48, 64, 96, 128), "attention": (False, False, True, True), "patch": 2}
CASES = {
    "2d": Case(4, (64, 64), HEADS),
    "2d_single": Case(16, (64, 64), HEADS, images=1, draws=1),
    "3d": Case(2, (24, 24, 24), {"channels": (16, 32, 64)}),
}


def contenders(case: Case) -> dict[str, Callable[[], None]]:
    """The steps by name; each on its own network."""
    dims, n = len(case.size), case.patients * case.images
    images = torch.randn(n, 1, *case.size, generator=torch.Generator().manual_seed(0))
    own = {"image": images, "seed": torch.arange(n), "unreadable": torch.full((n,), -1)}
    all_at_once = {name: values.repeat_interleave(case.draws, 0) for name, values in own.items()}
    data = {"manifest": "m.jsonl", "size": list(case.size), "spacing_mm": [1.0] * dims}
    tree = {
        "task": "synthesis",
        "data": data,
        "network": {"spatial_dims": dims, "channels": [8]},
        "train": {"steps": 1},
    }
    task = Synthesis(parse_config(tree, "the benchmark"))

    def network() -> tuple[nn.Module, EMA]:
        torch.manual_seed(0)
        unet = UNet(spatial_dims=dims, in_channels=1, out_channels=1, blocks=1, noise_scale=250.0, **case.network)
        model = Preconditioned(unet, "edm", 0.5)
        return model, EMA(model, 0.999)

    def plain(passes: int) -> Callable[[], None]:
        train = TrainConfig(steps=1000, batch=n * case.draws, accumulate=passes)
        model, ema = network()
        off = torch.amp.GradScaler("cpu", enabled=False)
        engine = trainer(model, ema, optimizer_for(model, train), off, task, DIFFUSION, train, CPU)
        return lambda: _step(engine, all_at_once)

    def private() -> Callable[[], None]:
        privacy = PrivacyConfig(epsilon=8.0, delta=1e-3, images_per_patient=case.images, noise_multiplicity=case.draws)
        train = TrainConfig(steps=1000, batch=case.patients, privacy=privacy)
        model, ema = network()
        guarded = Budget(train, COHORT).guarded(optimizer_for(model, train), CPU)
        engine = private_trainer(model, ema, guarded, task, DIFFUSION, train, CPU, Skips())
        return lambda: _step(engine, own)

    return {"plain": plain(1), "plain_in_parts": plain(case.patients), "private": private()}


def _step(engine: Any, batch: dict[str, Any]) -> None:
    engine.run([batch], epoch_length=1, max_epochs=engine.state.epoch + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 9")
    parser.add_argument("--json", help="write the medians here")
    options = parser.parse_args()
    result: dict[str, float] = {}
    for name, case in CASES.items():
        steps = contenders(case)
        times: dict[str, list[float]] = {step: [] for step in steps}
        for _ in range(1 + (3 if options.quick else 9)):  # the first round warms up
            for step, act in steps.items():
                began = time.perf_counter()
                act()
                times[step].append(time.perf_counter() - began)
        medians = {step: statistics.median(values[1:]) for step, values in times.items()}
        result |= {f"{step}_{name}_s": value for step, value in medians.items()}
        result[f"private_{name}_ratio"] = medians["private"] / medians["plain"]
        result[f"private_{name}_to_parts_ratio"] = medians["private"] / medians["plain_in_parts"]
    for key, value in result.items():
        print(f"{key:32} {value:8.3f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
