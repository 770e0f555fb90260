"""What commands say and how: messages on stderr, a progress bar on a terminal only, silence with --quiet."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from meddiff.engines.processes import first


class Tell(Console):
    """The console on stderr."""

    escape = staticmethod(escape)

    def fail(self, message: str, **how: Any) -> None:
        """Print what failed, also with --quiet."""
        before, self.quiet = self.quiet, False
        self.print(message, highlight=False, **how)
        self.quiet = before


class Once(logging.Filter):
    """Lets a message through the first time only."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.said
        self.said.add(message)
        return new


tell = Tell(stderr=True)
WIDTH = 140  # characters of a table, where no terminal says how wide it is
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def begin(quiet: bool) -> None:
    """Send our log to stderr; with `quiet`, errors only. Of several processes the first one speaks for all."""
    quiet = quiet or not first()
    handler = RichHandler(console=tell, show_time=False, show_path=False, show_level=True, markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(Once())
    logger = logging.getLogger("meddiff")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    tell.quiet = quiet
    for noisy in ("ignite", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def show(table: Table) -> None:
    """A table on stderr, wide enough to read."""
    wide = None if tell.is_terminal else WIDTH
    Console(stderr=True, width=wide, quiet=tell.quiet).print(table)


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A progress bar with a free `note` beside it; nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=tell, disable=quiet or tell.quiet or not tell.is_terminal) as bar:
        yield bar
