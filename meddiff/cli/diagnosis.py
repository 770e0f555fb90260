"""`meddiff evaluate --diagnosis`: a class-conditional run as a classifier."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from meddiff.cli.console import progress, show, tell

if TYPE_CHECKING:
    from meddiff.engines.run import Run


def diagnose_run(
    opened: "Run", output: Path, split: str, seed: int, device: str, limit: int | None, quiet: bool
) -> None:
    """Write `diagnosis.json` and `probabilities.csv` of a split, and show the metrics."""
    from meddiff.engines.checkpoint import write_atomic
    from meddiff.engines.diagnose import diagnose
    from meddiff.engines.trainer import choose_device
    from meddiff.report.cases import write_table

    config, manifest = opened.config(), opened.manifest()
    model, card = opened.load_model(choose_device(device))
    with progress(quiet) as bar:
        task = bar.add_task("Diagnosing", total=None, note="images")
        scores, probability, calibration, metrics = diagnose(
            model, card, config, manifest, split, seed, limit, lambda n: bar.advance(task, n)
        )
    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "probabilities.csv", scores.rows(probability, card.classes))
    facts = {
        "n": len(scores.names),
        "patients": len(set(scores.patients)),
        "of": "images" if config.condition.of_label else "cases",
        "classes": card.classes,
        "split": split,
        "seed": seed,
        "interval": "95 % bootstrap over patients",
        "calibration": {"split": "val", **asdict(calibration)},
        "evaluate": config.evaluate.model_dump(mode="json", include={"draws", "draw_sigmas"}),
        "weights": card.weights,
        "step": card.step,
    }
    write_atomic(output / "diagnosis.json", json.dumps({"metrics": metrics, **facts}, indent=2).encode())
    table = Table("metric", "value", "95 % interval")
    for name, value in metrics.items():
        interval = f"{value['low']:.3f} to {value['high']:.3f}" if "low" in value else ""
        table.add_row(name.replace("_", " "), f"{value['value']:.4f}", interval)
    show(table)
    tell.print(f"n = {facts['n']} {facts['of']}; {output / 'diagnosis.json'}, probabilities.csv", highlight=False)
