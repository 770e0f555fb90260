"""Which number of `meddiff evaluate` can be trusted at which n? Real images, damaged on purpose, are judged as samples would be.

    python scripts/measure_quality.py configs/synthesis_2d_mr.yaml --n 32 128 256 --json quality.json

For each n and each set a metric is given, and how many standard deviations of as many training images it is away from them: above
3 the metric has noticed. `training` is another draw of training images, which nothing should notice.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from meddiff.cli.console import begin, show
from meddiff.config_file import load_config
from meddiff.data.manifest import Manifest
from meddiff.engines.evaluate import judge_of, real_images
from meddiff.engines.quality import Figure
from meddiff.seeds import generator

SHOWN = (
    *(
        f"{space}/{m}"
        for space in ("encoder", "radiomic")
        for m in ("kid", "frechet", "precision", "recall", "density", "coverage")
    ),
    "sliced_wasserstein",
    "ms_ssim",
)


def blurred(images: Tensor) -> Tensor:
    """A moving average over 3 voxels an axis, half of it."""
    pool = F.avg_pool2d if images.ndim == 4 else F.avg_pool3d
    return torch.lerp(images, pool(images, 3, 1, 1, count_include_pad=False), 0.5)


def noisy(images: Tensor) -> Tensor:
    """Noise of 2.5 % of the range."""
    return (images + 0.05 * torch.randn(images.shape, generator=generator(0, "damage"))).clamp(-1, 1)


def fewer(images: Tensor) -> Tensor:
    """Every eighth image, eight times."""
    return images[::8].repeat_interleave(8, 0)[: len(images)]


def half(images: Tensor) -> Tensor:
    """The brighter half of the images, twice: what lies on one side is never drawn."""
    order = images.flatten(1).mean(1).argsort(descending=True)
    return images[order[: (len(images) + 1) // 2]].repeat(2, *[1] * (images.ndim - 1))[: len(images)]


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    "training": lambda images: images,
    "blurred": blurred,
    "noisy": noisy,
    "an eighth, repeated": fewer,
    "brighter half": half,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="config of a synthesis; only its data are used")
    parser.add_argument(
        "--set", action="append", default=[], help="override a setting, for instance data.manifest=m.jsonl"
    )
    parser.add_argument("--n", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    begin(False)
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for n in given.n:
        config = load_config(given.config, [*given.set, f"evaluate.n={n}"])
        real = real_images(config, Manifest.read(config.data.manifest), given.split)
        judge, _ = judge_of(real, config, torch.device("cpu"))
        drawn = real.training[torch.randperm(len(real.training), generator=generator(1, "measure", n))[: judge.n]]
        figures = {name: judge.judge(act(drawn)) for name, act in DAMAGE.items()}
        found[str(judge.n)] = {
            name: {metric: {**vars(f), "away": away(f)} for metric, f in of.items()} for name, of in figures.items()
        }
        table = Table(f"n = {judge.n}", *DAMAGE)
        for metric in (m for m in SHOWN if m in figures["training"]):
            table.add_row(metric, *(f"{of[metric].value:.3f} ({away(of[metric]):+.1f})" for of in figures.values()))
        show(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def away(figure: Figure) -> float:
    """In standard deviations of as many training images."""
    return (figure.value - figure.train) / max(figure.train_std, 1e-9)


if __name__ == "__main__":
    main()
