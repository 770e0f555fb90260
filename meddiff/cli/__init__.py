"""The command line: one small file a command; what a command does lives below, in `data`, `engines` and `report`."""

import sys
from collections.abc import Sequence

import typer

from meddiff.cli import (
    audit,
    augment,
    decrypt,
    deidentify,
    demo,
    encrypt,
    evaluate,
    info,
    phantom,
    prepare,
    release,
    restore,
    sample,
    scan,
    segment,
    train,
)
from meddiff.cli.console import tell
from meddiff.errors import MeddiffError

app = typer.Typer(
    name="meddiff",
    help="Diffusion models for medical images: scan a folder, train, sample, evaluate. Start with `meddiff demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS = (
    demo, phantom, scan, deidentify, prepare, train, sample, augment, segment, restore, evaluate,
    audit, release, encrypt, decrypt, info,
)  # fmt: skip
for module in COMMANDS:
    app.command(name=module.__name__.rpartition(".")[2])(module.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 0 done, 1 our failure, 2 bad input, 130 interrupted."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="meddiff")
    except MeddiffError as e:
        tell.print(f"[bold red]meddiff:[/] {tell.escape(str(e))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        tell.print("meddiff: interrupted; a run goes on from its last checkpoint with --resume.", highlight=False)
        sys.exit(130)
