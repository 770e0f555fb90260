"""`meddiff encrypt`: a run or a release as one file that is nothing without its key."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, tell


def command(
    folder: Annotated[Path, typer.Argument(help="A run, a release, or another folder that nothing writes to.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The encrypted file, outside of the folder.")],
    key: Annotated[
        Path, typer.Option(help="File of the key, mode 0600; made if it is not there. Keep it, and secret.")
    ],
    remove: Annotated[
        bool,
        typer.Option(
            "--remove", help="Delete the plain folder once the file was read back, and a run's preprocessed volumes."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Encrypt a folder with AES-256-GCM, in chunks that cannot be changed, reordered or cut without notice.

    Nothing plain is written on the way. Deleting does not wipe a disk: where that matters, work on an encrypted volume.

    Example: `meddiff encrypt runs/ct -o ct.run.enc --key ~/.config/meddiff/encrypt.key --remove`
    """
    begin(quiet)
    from meddiff.engines.run import Run
    from meddiff.privacy.encryption import encrypt_folder, load_secret

    with tell.status("Encrypting, and reading back"):
        count = encrypt_folder(folder, output, load_secret(key, make=True))
    if remove:
        run = Run(folder)
        forgotten = run.forget_cache() if run.card_path.is_file() else 0
        shutil.rmtree(folder)
        tell.print(f"Removed {folder} and {forgotten} preprocessed volumes", highlight=False)
    tell.print(f"{count} files in {output}; back with meddiff decrypt {output} -o DIR --key {key}", highlight=False)
