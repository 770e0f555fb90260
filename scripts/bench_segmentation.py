"""What an ensemble costs: 8 samples of 6 evaluations of a 128 x 128 slice against 48 passes of the first network.

    python scripts/bench_segmentation.py [--quick] [--json FILE]

Both networks of `configs/segmentation_2d_mr.yaml` with random weights, one slice at a time as a batch of its samples, float32;
medians over interleaved rounds. Besides, the peak memory of one 3D volume of 128 x 128 x 128 voxels in windows of 64 x 64 x 64, for
one sample of 3 evaluations: more of them take longer and no more memory.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from meddiff.config import Config
from meddiff.config_file import load_config
from meddiff.engines.card import Card, build_model
from meddiff.engines.segment import segment
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.volume import Volume
from meddiff.tasks.task import Space

CONFIG = Path(__file__).parents[1] / "configs" / "segmentation_2d_mr.yaml"
LABELS = ("csf", "grey matter", "white matter")
SAMPLES, EVALUATIONS = 8, 6


def card(config: Config) -> Card:
    space = Space((1.0, 1.0, 1.0), config.data.axis, 0.01, -1.0, "MR", "a.u.")
    labels = {name: k for k, name in enumerate(LABELS, 1)}
    return Card(sigma_data=0.5, space=space, labels=labels, manifest="", train_cases=0, train_items=0)


def volume(shape: tuple[int, int, int]) -> Volume:
    array = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    return Volume(array, Geometry.make(shape, (1.0, 1.0, 1.0)), "MR", "a.u.")


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no volume")
    parser.add_argument("--json", help="write the medians here")
    options = parser.parse_args()
    settings = [
        "data.size=[128, 128]",
        "data.spacing_mm=[1, 1]",
        f"sample.samples={SAMPLES}",
        f"sample.steps={EVALUATIONS}",
    ]
    config = load_config(CONFIG, settings)
    model = build_model(config, 0.5, LABELS).eval().requires_grad_(False)
    slice_ = volume((128, 128, 1))
    image = torch.randn(SAMPLES, 1, 128, 128)

    def ensemble() -> None:
        segment(model, config, card(config), slice_, "slice", 0)

    def passes() -> None:
        with torch.no_grad():
            for _ in range(EVALUATIONS):
                model.network.first(image, torch.zeros(()))

    rounds: dict[str, list[float]] = {"ensemble_s": [], "passes_s": []}
    for _ in range(4 if options.quick else 12):
        rounds["ensemble_s"].append(seconds(ensemble))
        rounds["passes_s"].append(seconds(passes))
    result = {name: round(statistics.median(values[1:]), 4) for name, values in rounds.items()}
    result["ensemble_vs_48_passes"] = round(result["ensemble_s"] / result["passes_s"], 3)
    if not options.quick:
        dims = ["data.size=[64, 64, 64]", "data.spacing_mm=[1, 1, 1]", "network.spatial_dims=3", "sample.batch=1"]
        three = load_config(CONFIG, ["sample.samples=1", "sample.steps=3", *dims])
        model3 = build_model(three, 0.5, LABELS).eval().requires_grad_(False)
        result["volume_s"] = round(
            seconds(lambda: segment(model3, three, card(three), volume((128, 128, 128)), "v", 0)), 1
        )
        result["volume_peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    for name, value in result.items():
        print(f"{name:24} {value:10.4f}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
