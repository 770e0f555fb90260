"""`meddiff phantom`: a cohort of computed heads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell


def command(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    patients: Annotated[int, typer.Option("--patients", "-n", help="How many heads.")],
    modality: Annotated[Literal["ct", "mr"], typer.Option(help="Contrast.")] = "ct",
    format: Annotated[Literal["nifti", "dicom"], typer.Option(help="nifti is an nnU-Net raw folder.")] = "nifti",
    size: Annotated[int, typer.Option(help="Voxels per axis, over 240 mm.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed, other heads.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Make a cohort of computed heads, every patient different, with label maps (NIfTI) or a planted identity (DICOM).

    Example: `meddiff phantom data/heads --patients 40 --modality ct --format dicom`
    """
    begin(quiet)
    from meddiff.imaging.phantom import write_cohort

    with progress(quiet) as bar:
        task = bar.add_task("Heads", total=patients, note="")
        written = write_cohort(
            folder,
            patients,
            modality=modality,
            format=format,
            size=size,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done),
        )
    tell.print(f"{patients} heads, {len(written)} files in {folder}", highlight=False)
