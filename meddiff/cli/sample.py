"""`meddiff sample`: images from a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.cli.over import with_options

if TYPE_CHECKING:
    from meddiff.engines.sets import Written

SHOWN = 64  # samples at most in grid.png


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train`.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many samples.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the set; what it holds of it is kept.")],
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="What class to draw; several are drawn in turn.")
    ] = None,
    covariate: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER, for instance age=61; may be repeated.")
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--given", "--mask", help="Label maps to paint, or images to draw for: a manifest or a NIfTI file."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the manifest that is given: train, val or test.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help="Above 1 exaggerates what was asked for; twice the evaluations.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="euler, heun, dpmpp_2m or ancestral; the config's unless given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations per sample.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Samples side by side; does not change them.")] = None,
    format: Annotated[
        Literal["nifti", "png", "dicom"],
        typer.Option(help="nifti and dicom have units and a place (label maps as SEG), png is for looking."),
    ] = "nifti",
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw samples: one file each with a JSON sidecar, a manifest of the set, and grid.png to look at.

    The same command gives the same bytes, and sample 7 is the same whatever -n and --batch are. A set that was cut short is
    completed. Where the run draws label maps, `meddiff train` learns segmentation from the manifest as it is.

    Example: `meddiff sample runs/ct -n 16 -o samples/ct --class lesion --guidance 2`
    """
    begin(quiet)
    from meddiff.data.givens import Givens
    from meddiff.engines.asked import Asked, numbers
    from meddiff.engines.processes import first, gathered, join
    from meddiff.engines.run import Run
    from meddiff.engines.sets import write_dicom, write_niftis
    from meddiff.engines.synthetic import sample_set
    from meddiff.engines.trainer import choose_device
    from meddiff.report.set_pictures import save_grid, write_png

    join(device)
    opened = Run.open(run)
    options = {"sampler": sampler, "steps": steps, "batch": batch, "guidance": guidance}
    config = with_options(opened.config(), run, "synthesis", **options)
    model, card = opened.load_model(choose_device(device))
    writers = {"nifti": write_niftis, "dicom": write_dicom, "png": write_png(card.space)}
    shown: list[Written] = []
    with progress(quiet) as bar:
        task = bar.add_task("Sampling", total=n, note="")
        givens = None if given is None else Givens(given, config, card.known, split)
        asked = Asked(tuple(class_ or ()), numbers(covariate or ()), givens)

        def done(written: "Written") -> None:
            if len(shown) < SHOWN:
                shown.append(written)
            bar.advance(task)

        sample_set(model, card, config, n, output, seed, writers[format], asked, done)
    every = sorted((written for part in gathered(shown) for written in part), key=lambda written: written.image)
    if not first():
        return
    save_grid(output / "grid.png", every[:SHOWN], card.space, card.labels, 8 if config.network.spatial_dims == 2 else 1)
    tell.print(f"{n} samples in {output}; look at {output / 'grid.png'}", highlight=False)
