"""What it costs to ask for a class: 256 conditional slices of 64 x 64, 16 evaluations each, against the network alone.

    python scripts/bench_conditional.py [--quick] [--json FILE]

The network of `configs/synthesis_2d_ct_lesion.yaml` with random weights, float32, batches of 16. A round is one batch by
`draw_samples`, with noise, conditions, sampler and clamp, and after it as many bare evaluations of the network; processor time, so
that other work on the machine counts for little. Medians over rounds, times 16 for 256 slices; `_ratio` is the one over the other.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from meddiff.config_file import load_config
from meddiff.data.conditions import Known
from meddiff.diffusion.denoiser import Condition
from meddiff.engines.asked import Asked
from meddiff.engines.card import build_model, build_task
from meddiff.engines.predict import draw_samples, evaluations

CONFIG = Path(__file__).parents[1] / "configs" / "synthesis_2d_ct_lesion.yaml"
KNOWN = Known({"lesion": 4}, ("no lesion", "lesion"))
BATCH, SLICES = 16, 256


def seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def measured(guidance: float, rounds: int) -> tuple[float, float, float]:
    """Seconds of 256 slices, of the network alone, and the median ratio of the two."""
    config = load_config(CONFIG, [f"sample.guidance={guidance}", f"sample.batch={BATCH}"])
    model = build_model(config, 0.5, tuple(KNOWN.labels), KNOWN.classes).eval().requires_grad_(False)
    task, asked = build_task(config, KNOWN), Asked(("lesion",))
    names = [f"sample_{i:05d}" for i in range(BATCH)]
    x, label = torch.randn(BATCH, 1, *config.data.size), Condition(label=torch.ones(BATCH, dtype=torch.long))
    count = evaluations(config.sample, guidance != 1)

    def sampled() -> None:
        cond = asked.condition(task, [asked.of(i, 0) for i in range(BATCH)])
        list(draw_samples(model, config, names, 0, cond=cond))

    @torch.no_grad()
    def alone() -> None:
        for _ in range(count):
            model.network(x, torch.zeros(()), label)

    pairs = [(seconds(sampled), seconds(alone)) for _ in range(rounds)][1:]
    ours, network = (statistics.median(pair[i] for pair in pairs) * SLICES / BATCH for i in (0, 1))
    return ours, network, statistics.median(a / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", help="write the medians here")
    options = parser.parse_args()
    result: dict[str, float] = {}
    for name, guidance in (("by_class", 1.0), ("guided", 2.0)):
        found = measured(guidance, 4 if options.quick else 12)
        result |= dict(zip((f"{name}_256_s", f"{name}_network_256_s", f"{name}_ratio"), found, strict=True))
    for name, value in result.items():
        print(f"{name:28} {value:9.3f}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
