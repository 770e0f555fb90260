"""A command over many scans: what fails is said and the others go on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from meddiff.cli.console import tell
from meddiff.errors import MeddiffError, RunError

if TYPE_CHECKING:
    from meddiff.config import Config
    from meddiff.data.inputs import Scan


def with_options(config: "Config", run: Path, task: str, **given: Any) -> "Config":
    """The run's config with the options of `sample` that were given; RunError where the run is of another task."""
    from meddiff.config import parse_config

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


def each(scans: Sequence["Scan"], work: Callable[["Scan"], None], bar: Progress, title: str) -> int:
    """Do `work` on every scan, each process on its share; the number of all that failed, each with its message on stderr."""
    from meddiff.engines.processes import mine, total

    own = mine(scans)
    task = bar.add_task(title, total=len(own), note="")
    failed = 0
    for scan in own:
        bar.update(task, note=scan.name)
        try:
            work(scan)
        except (MeddiffError, OSError) as error:
            failed += 1
            tell.fail(f"{scan.name}: {error}", style="red", markup=False)
        bar.advance(task)
    return int(total(failed))
