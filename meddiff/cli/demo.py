"""`meddiff demo`: the whole road on computed heads, in minutes, on a laptop."""

import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from meddiff.cli.console import Quiet, begin, tell
from meddiff.errors import RunError

PATIENTS = 20
SETTINGS: dict[str, Any] = {
    "task": "synthesis",
    "data": {
        "spacing_mm": [3.75, 3.75],
        "size": [64, 64],
        "intensity": {"kind": "window", "low": -200, "high": 400},
        "min_foreground": 0.1,
    },
    "network": {
        "spatial_dims": 2,
        "channels": [32, 64, 96, 128],
        "blocks": 1,
        "attention": [False, False, True, True],
        "patch": 2,
    },
    "diffusion": {"training": {"kind": "lognormal", "mean": 0.2, "std": 1.8}},
    "train": {
        "steps": 1000,
        "batch": 16,
        "lr": 1e-3,
        "precision": "bf16",
        "channels_last": True,
        "reference": 512,
        "preview_every": 500,
        "validate_every": 500,
    },
    "sample": {"steps": 16},
}


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")] = Path("meddiff-demo"),
    steps: Annotated[int | None, typer.Option(help="Training steps; fewer are faster and worse.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make computed heads as DICOM, scan them, train a small model and sample from it: a few minutes without a GPU.

    Example: `meddiff demo -o demo`
    """
    begin(quiet)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output}: exists and is not empty. Choose a new folder with -o.")
    began = time.monotonic()
    from meddiff.cli import phantom, sample, scan, train
    from meddiff.config_file import parse_config

    manifest, run, config = output / "heads.jsonl", output / "run", output / "config.yaml"
    shown = 1

    def step(what: str) -> None:
        nonlocal shown
        tell.print(f"[bold]{shown}.[/] {what}", highlight=False)
        shown += 1

    step(f"{PATIENTS} computed heads as DICOM series, with a planted identity")
    phantom.command(output / "dicom", PATIENTS, format="dicom", quiet=quiet)
    step("Scan: group, sort, check, pseudonymise, split by patient")
    scan.command([output / "dicom"], manifest, key=output / "pseudonym.key", quiet=quiet)
    tree = {**SETTINGS, "data": {**SETTINGS["data"], "manifest": str(manifest), "cache": str(output / "cache")}}
    if steps is not None:
        tree["train"] = {**tree["train"], "steps": steps}
    config.write_text(parse_config(tree, "the demo").dump(), encoding="utf-8")
    step(f"Train {tree['train']['steps']} steps; pictures of the progress in {run / 'previews'}")
    train.command(config, run, quiet=quiet)
    step("Sample 16 images")
    sample.command(run, 16, output / "samples", quiet=quiet)
    # ru_maxrss is in KiB, on macOS in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    tell.print(
        f"Done in {time.monotonic() - began:.0f} s with at most {peak:.1f} GiB of memory. ", end="", highlight=False
    )
    tell.print(f"Look at {output / 'samples' / 'grid.png'} and {run / 'previews'}", highlight=False)
