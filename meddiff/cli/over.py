"""A command over many scans: what fails is said and the others go on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from meddiff.cli.console import tell
from meddiff.config import Config, parse_config
from meddiff.data.inputs import Scan
from meddiff.errors import MeddiffError, RunError


def with_options(config: Config, run: Path, task: str, **given: Any) -> Config:
    """The run's config with the options of `sample` that were given; RunError where the run is of another task."""
    if config.task != task:
        raise RunError(f"{run}: was trained for {config.task}, {task} is needed. Give a run of that task.")
    tree = config.model_dump(mode="json")
    tree["sample"] |= {name: value for name, value in given.items() if value is not None}
    return parse_config(tree, f"{run} with the options given")


def made(folder: Path) -> Path:
    """The folder for results, there before the work begins; RunError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be made ({error.strerror}). Choose a folder that you may write with -o."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(
            f"{folder}: cannot be written, its rights forbid it. Choose a folder that you may write with -o."
        )
    return folder


def each(scans: Sequence[Scan], work: Callable[[Scan], None], bar: Progress, title: str) -> int:
    """Do `work` on every scan; the number of those that failed, each with its message on stderr."""
    task = bar.add_task(title, total=len(scans), note="")
    failed = 0
    for scan in scans:
        bar.update(task, note=scan.name)
        try:
            work(scan)
        except (MeddiffError, OSError) as error:
            failed += 1
            tell.print(f"{scan.name}: {error}", style="red", highlight=False, markup=False)
        bar.advance(task)
    return failed
