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
    from meddiff.config_file import parse_config

    if config.task != task:
        raise RunError(f"{run}: was trained for {config.task}, {task} is needed. Give a run of that task.")
    tree = config.model_dump(mode="json")
    tree["sample"] |= {name: value for name, value in given.items() if value is not None}
    return parse_config(tree, f"{run} with the options given")


def writable(folder: Path) -> Path:
    """The folder for results, which need not be there yet; RunError where it could not be made or written."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise RunError(f"{folder}: cannot be made ({nearest} is a file). Choose a folder that you may write with -o.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(
            f"{folder}: cannot be written, the rights of {nearest} forbid it. Choose a folder that you may write with -o."
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
