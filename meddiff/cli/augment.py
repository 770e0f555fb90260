"""`meddiff augment`: variants of real cases from a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.cli.over import with_options

if TYPE_CHECKING:
    from meddiff.data.manifest import Case


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train` with task synthesis.")],
    manifest: Annotated[Path, typer.Argument(help="The cases to vary.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder for the set; what it holds of it is kept.")],
    strength: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="0 changes nothing, 1 keeps no more than class and label map.")
    ] = 0.4,
    n: Annotated[int, typer.Option("-n", min=1, help="Variants of each case.")] = 1,
    split: Annotated[
        str, typer.Option(help="Which cases: train, val or test. Variants of held-out cases are no training data.")
    ] = "train",
    guidance: Annotated[
        float | None, typer.Option(min=0.0, help="Above 1 exaggerates the class; twice the evaluations.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations of strength 1; fewer for less.")] = None,
    format: Annotated[Literal["nifti", "dicom"], typer.Option(help="dicom writes label maps as SEG.")] = "nifti",
    seed: Annotated[int, typer.Option(help="Another seed, other variants.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Make labelled variants of real cases: each scan is noised to a level that --strength sets, and denoised.

    They lie on the scan's own grid and stay in their patient's split, with the case's label map and class; values beyond the
    run's intensities are cut. The sidecar names case and strength. **A variant is not anonymous: it shows its patient.**

    Example: `meddiff augment runs/ct data_manifests/heads.jsonl -o variants --strength 0.4`
    """
    begin(quiet)
    from meddiff.data.manifest import Manifest
    from meddiff.engines.evaluate_cases import held_out
    from meddiff.engines.run import Run
    from meddiff.engines.sets import write_dicom, write_niftis
    from meddiff.engines.trainer import choose_device
    from meddiff.engines.variants import vary_set

    opened = Run.open(run)
    config = with_options(opened.config(), run, "synthesis", steps=steps, guidance=guidance)
    model, card = opened.load_model(choose_device(device))
    given = Manifest.read(manifest)
    cases = held_out(given, split)
    write = write_niftis if format == "nifti" else write_dicom
    with progress(quiet) as bar:
        task = bar.add_task("Varying", total=len(cases), note="")

        def done(case: "Case") -> None:
            bar.update(task, advance=1, note=case.case)

        vary_set(model, card, config, given, cases, output, strength, n, seed, write, done)
    tell.print(f"{n * len(cases)} variants of {len(cases)} cases in {output}", highlight=False)
