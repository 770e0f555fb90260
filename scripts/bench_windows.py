"""What windows cost: one evaluation of a 64 x 64 x 64 volume in windows of 32 x 32 x 32, one by one, side by side, empty ones unseen.

    python scripts/bench_windows.py [--quick] [--json FILE]

Both networks of `configs/segmentation_3d_ct.yaml` with random weights, float32. Half of the volume is air, as around a head in a
scan of the whole field. Processor time, so that other work on the machine counts for little; medians of rounds in which the ways
take turns. Ratios are over one window at a time, greater is better; `error_*` is the largest difference to it in probability, where
something is seen.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from meddiff.config_file import load_config
from meddiff.diffusion.compose import Empty, windowed
from meddiff.diffusion.denoiser import Condition, Denoiser
from meddiff.engines.card import build_model

CONFIG = Path(__file__).parents[1] / "configs" / "segmentation_3d_ct.yaml"
LABELS = ("csf", "grey matter", "white matter", "lesion")
SIZE, PATCH, OVERLAP = 64, 32, 8
AIR = -1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds instead of 5")
    parser.add_argument("--json", type=Path, help="write the medians here")
    options = parser.parse_args()
    config = load_config(CONFIG, [f"data.size=[{PATCH}, {PATCH}, {PATCH}]"])
    torch.manual_seed(0)
    model = build_model(config, 0.5, LABELS).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():  # as at the start of training, where every answer is the same
            nn.init.normal_(parameter, std=0.1)
    classes, draw = len(LABELS) + 1, torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, SIZE, SIZE, SIZE, generator=draw)
    image[:, :, SIZE // 2 :] = AIR
    x, cond = torch.randn(1, classes, SIZE, SIZE, SIZE, generator=draw), Condition(image)
    empty = Empty(lambda cond: (cond.image[:, :1] == AIR).flatten(1).all(1), torch.eye(classes)[0])
    patch, overlap = [PATCH] * 3, [OVERLAP] * 3
    ways: dict[str, Denoiser] = {
        "alone": windowed(model, patch, overlap),
        "by_4": windowed(model, patch, overlap, 4),
        "by_8": windowed(model, patch, overlap, 8),
        "by_4_skipping": windowed(model, patch, overlap, 4, empty),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(1 + (2 if options.quick else 5)):
        for name, way in ways.items():
            began = time.process_time()
            with torch.no_grad():
                found[name] = way(x, torch.tensor(1.0), cond)
            seconds[name].append(time.process_time() - began)
    result = {f"{name}_s": statistics.median(values[1:]) for name, values in seconds.items()}
    for name in list(ways)[1:]:
        result[f"{name}_vs_alone"] = result["alone_s"] / result[f"{name}_s"]
        inside = (slice(None), slice(None), slice(0, SIZE // 2 - OVERLAP))
        result[f"error_{name}"] = float((found[name][inside] - found["alone"][inside]).abs().max())
    for name, value in result.items():
        print(f"{name:28} {value:10.3g}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
