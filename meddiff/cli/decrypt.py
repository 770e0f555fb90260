"""`meddiff decrypt`: what `meddiff encrypt` or `meddiff release --encrypt-key` wrote, as a folder again."""

from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, tell


def command(
    file: Annotated[Path, typer.Argument(help="The encrypted file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder, readable by you only.")],
    key: Annotated[Path, typer.Option(help="File of the key.")],
    quiet: Quiet = False,
) -> None:
    """Decrypt a folder. It appears only when all of it is authentic: one changed byte, a cut or another key is refused.

    Example: `meddiff decrypt ct.run.enc -o runs/ct --key ~/.config/meddiff/encrypt.key`
    """
    begin(quiet)
    from meddiff.privacy.encryption import decrypt_folder, load_secret

    with tell.status("Decrypting"):
        count = decrypt_folder(file, output, load_secret(key))
    tell.print(f"{count} files in {output}", highlight=False)
