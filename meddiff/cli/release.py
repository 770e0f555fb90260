"""`meddiff release`: a synthetic set that may leave."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.errors import PrivacyError

if TYPE_CHECKING:
    from meddiff.report.release import Sink


def command(
    synthetic: Annotated[Path, typer.Argument(help="A folder of `meddiff sample`, NIfTI or DICOM.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder; with --encrypt-key the name of one encrypted file.")
    ],
    audit: Annotated[Path | None, typer.Option(help="The folder of `meddiff audit` that passed this very set.")] = None,
    format: Annotated[
        Literal["nifti", "dicom"], typer.Option(help="Label maps of a DICOM release are DICOM SEG.")
    ] = "nifti",
    licence: Annotated[str | None, typer.Option(help="What the cards say about the licence.")] = None,
    unaudited: Annotated[
        bool, typer.Option("--unaudited", help="Release without an audit that passed; every file and card says so.")
    ] = False,
    encrypt_key: Annotated[
        Path | None,
        typer.Option(
            help="Write one encrypted file, never a plain one; the key is made there if it is not. Keep it secret."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a synthetic set with a data card and a model card, if an audit passed for exactly these files and this model.

    Refused, with the reason: no audit, FAIL or INCONCLUSIVE, a file that changed after the audit, another model.

    Example: `meddiff release samples/ct --audit audits/ct -o release/ct --format dicom --licence CC-BY-4.0`
    """
    begin(quiet)
    from meddiff.privacy.audit.sets import open_set
    from meddiff.privacy.encryption import archive, load_secret
    from meddiff.privacy.gate import admit, read_audit, verify
    from meddiff.report.cards import NO_LICENCE
    from meddiff.report.release import new_folder, write_release

    manifest = open_set(synthetic)
    record = None if audit is None else read_audit(audit)
    if unaudited:
        verify(manifest)
        tell.print(
            f"{synthetic} is released UNAUDITED: every file and both cards say so.", style="yellow", highlight=False
        )
    else:
        admit(manifest, record)
    if encrypt_key is not None and format == "dicom" and any(case.label for case in manifest.cases):
        raise PrivacyError(
            "--encrypt-key: a DICOM SEG cannot be built without plain files on the way. Release NIfTI, or encrypt the release "
            "with `meddiff encrypt`."
        )
    target: AbstractContextManager[Sink] = (
        new_folder(output) if encrypt_key is None else archive(output, load_secret(encrypt_key, make=True))
    )
    with progress(quiet) as bar, target as sink:
        task = bar.add_task("Writing", total=len(manifest.cases), note="")
        write_release(
            manifest,
            record,
            sink,
            audited=not unaudited,
            format=format,
            licence=licence or NO_LICENCE,
            on_case=lambda: bar.advance(task),
        )
    tell.print(f"{len(manifest.cases)} images in {output}, with data_card.md and model_card.md", highlight=False)
