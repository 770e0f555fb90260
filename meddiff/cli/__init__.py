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
    plan,
    prepare,
    release,
    restore,
    sample,
    scan,
    segment,
    train,
)
from meddiff.cli.console import tell
from meddiff.engines.processes import launched, rank
from meddiff.errors import ConfigError, MeddiffError, Stopped

SHARED = ("train", "sample", "segment", "restore", "scan", "prepare")  # commands that several processes do together

app = typer.Typer(
    name="meddiff",
    help="Diffusion models for medical images: scan a folder, train, sample, evaluate. Start with `meddiff demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS = (
    demo, phantom, scan, deidentify, prepare, plan, train, sample, augment, segment, restore, evaluate,
    audit, release, encrypt, decrypt, info,
)  # fmt: skip
for module in COMMANDS:
    app.command(name=module.__name__.rpartition(".")[2])(module.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exit code 0 done, 1 our failure, 2 bad input, 130 interrupted, 143 stopped by a signal.

    Under `torchrun` several processes do one command; each says only what failed in it.
    """
    who = f"meddiff (process {rank()})" if launched() else "meddiff"
    try:
        _refuse_alone(sys.argv[1:] if arguments is None else arguments)
        app(args=None if arguments is None else list(arguments), prog_name="meddiff")
    except MeddiffError as e:
        tell.fail(f"[bold red]{who}:[/] {tell.escape(str(e))}", soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        tell.print("meddiff: interrupted; a run goes on from its last checkpoint with --resume.", highlight=False)
        sys.exit(130)
    except Stopped as e:
        tell.print(f"meddiff: {e}", highlight=False, markup=False, soft_wrap=True)
        sys.exit(143)


def _refuse_alone(arguments: Sequence[str]) -> None:
    """ConfigError where several processes were started for a command that is one process's."""
    command = next((a for a in arguments if not a.startswith("-")), "")
    if launched() and command not in SHARED:
        raise ConfigError(
            f"meddiff {command} is done by one process; call it without torchrun. {', '.join(SHARED)} take several."
        )
