"""What is a synthetic set worth? Train a direct segmentation on real cases, on synthetic ones and on both; test on real ones.

    meddiff sample runs/paired -n 1000 -o samples/paired
    python scripts/train_synthetic_test_real.py data_manifests/heads.jsonl samples/paired/manifest.jsonl \\
        configs/segmentation_2d_ct.yaml -o transfer --set train.steps=1000

The config is of a segmentation; diffusion.process is set to direct, and every run gets the same number of steps. The folder holds
the three runs, metrics.json and cases.csv. A synthetic set must come from a model that saw the real training cases only.
"""

import argparse
import json
from pathlib import Path

from rich.table import Table

from meddiff.cli.console import begin, progress, show, tell
from meddiff.cli.train import watch
from meddiff.config_file import load_config
from meddiff.data.files import write_lines
from meddiff.data.manifest import Manifest
from meddiff.engines.trainer import choose_device
from meddiff.engines.transfer import arms, judged, train_arms
from meddiff.errors import MeddiffError, RunError
from meddiff.metrics.bootstrap import bootstrap_mean


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="manifest of real cases with label maps")
    parser.add_argument("synthetic", type=Path, help="manifest of a synthetic set with label maps")
    parser.add_argument("config", type=Path, help="config of a segmentation")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--set", action="append", default=[], help="override a setting, for instance train.steps=500")
    parser.add_argument("--split", default="test", help="the real cases to test on: val or test")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors and the table")
    return parser.parse_args()


def work(given: argparse.Namespace) -> None:
    if given.output.exists() and any(given.output.iterdir()):
        raise RunError(f"{given.output}: is not empty. Choose a new folder with -o.")
    overrides = [f"data.manifest={given.real}", "diffusion.process=direct", f"train.device={given.device}", *given.set]
    config = load_config(given.config, overrides)
    real = Manifest.read(given.real)
    manifests = arms(real, Manifest.read(given.synthetic), config)
    with progress(given.quiet) as bar:
        runs = train_arms(
            config, manifests, given.output, lambda name: [watch(bar, bar.add_task(name, total=None, note=""))]
        )
        task = bar.add_task("Testing", total=None, note="")
        rows: dict[str, list[dict]] = {}
        for name, row in judged(runs, real, given.split, choose_device(given.device)):
            rows.setdefault(name, []).append(row)
            bar.update(task, advance=1, note=f"{row['case']}: {name} {row['dice']:.3f}")
    write(given.output, rows, {name: len(m.split("train")) for name, m in manifests.items()})


def write(folder: Path, rows: dict[str, list[dict]], cases: dict[str, int]) -> None:
    metrics = [m for m in next(iter(rows.values()))[0] if m.startswith("dice") and "sample" not in m]
    found = {
        name: {
            metric: vars(bootstrap_mean([row[metric] for row in of], [row["patient"] for row in of]))
            for metric in metrics
        }
        for name, of in rows.items()
    }
    ratio = {name: of["dice"]["mean"] / found["real"]["dice"]["mean"] for name, of in found.items()}
    whole = {"arms": found, "of_real": ratio, "training_cases": cases}
    write_lines(folder / "metrics.json", json.dumps(whole, indent=2, allow_nan=False).split("\n"))
    lines = ["arm,case,patient," + ",".join(metrics)]
    lines += [
        ",".join([f'"{name}"', row["case"], row["patient"], *(repr(row[m]) for m in metrics)])
        for name, of in rows.items()
        for row in of
    ]
    write_lines(folder / "cases.csv", lines)
    table = Table("trained on", "cases", *(m.removeprefix("dice/") for m in metrics), "of real")
    for name, of in found.items():
        shown = [f"{of[m]['mean']:.3f} ({of[m]['low']:.3f} to {of[m]['high']:.3f})" for m in metrics]
        table.add_row(name, str(cases[name]), *shown, f"{ratio[name]:.2f}")
    show(table)


if __name__ == "__main__":
    given = options()
    begin(given.quiet)
    try:
        work(given)
    except MeddiffError as error:
        tell.print(f"[bold red]{Path(__file__).name}:[/] {tell.escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
