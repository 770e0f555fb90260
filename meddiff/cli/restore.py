"""`meddiff restore`: clean scans from a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.cli.over import each, with_options

if TYPE_CHECKING:
    from meddiff.data.inputs import Scan


def command(
    run: Annotated[
        Path, typer.Argument(help="A run folder with task restoration; or synthesis, which removes white noise.")
    ],
    inputs: Annotated[
        list[Path], typer.Argument(help="NIfTI files, DICOM series folders, folders of either, or a manifest.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    sigma: Annotated[
        str, typer.Option(help="Noise level in the scan's unit (HU for CT); auto measures it in the scan.")
    ] = "auto",
    estimate: Annotated[
        Literal["mean", "sample"],
        typer.Option(help="mean is nearest to the truth; sample has the texture of a clean scan, and invents detail."),
    ] = "mean",
    mask: Annotated[
        Path | None,
        typer.Option(help="Fill in one scan: a NIfTI mask on its grid, 1 where it was not measured, 0 elsewhere."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples for the standard deviation.")] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations per sample; 1 draws no samples.")] = None,
    format: Annotated[
        Literal["nifti", "dicom"], typer.Option(help="dicom is a derived series and needs a DICOM series as input.")
    ] = "nifti",
    split: Annotated[str | None, typer.Option(help="Of a manifest given as input: train, val or test.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Restore scans: the clean scan on the scan's own grid, and how much the samples differ.

    Writes CASE_restored.nii.gz, or the DICOM series CASE_restored/; CASE_std.nii.gz, the standard deviation over samples;
    CASE.png, the scan, the result, their difference and the standard deviation; and CASE.json, which says what was
    estimated and at what noise level. Scans that fail are listed and the others go on; exit code 1 then.

    Example: `meddiff restore runs/denoise scans/ -o results --sigma auto`
    """
    begin(quiet)
    from meddiff.data.inputs import find_scans
    from meddiff.engines.outputs import write_restored
    from meddiff.engines.processes import join
    from meddiff.engines.restore import restore
    from meddiff.engines.run import Run
    from meddiff.engines.trainer import choose_device
    from meddiff.errors import ConfigError
    from meddiff.imaging.nifti import read_nifti
    from meddiff.report.overlays import save_restored

    try:
        level = None if sigma == "auto" else float(sigma)
    except ValueError:
        raise ConfigError(f"--sigma {sigma!r}: give auto, or the noise level as a number in the scan's unit.") from None
    join(device)
    opened = Run.open(run)
    own = opened.config()
    task = "synthesis" if own.task == "synthesis" else "restoration"
    config = with_options(own, run, task, samples=samples, steps=steps)
    model, card = opened.load_model(choose_device(device))
    scans, refused = find_scans(inputs, split)
    if mask is not None and len(scans) != 1:
        raise ConfigError(f"--mask {mask} belongs to one scan; {len(scans)} were found. Give that one.")
    missing = None if mask is None else read_nifti(mask)
    with progress(quiet) as bar:

        def one(scan: "Scan") -> None:
            volume = scan.read(card.space.modality)
            result = restore(
                model, config, card, volume, scan.name, seed, estimate=estimate, sigma=level, missing=missing
            )
            if result.sigma is not None:
                how = "measured" if level is None else "given"
                tell.print(
                    f"{scan.name}: noise of {result.sigma:.4g} {volume.unit}, {how}", highlight=False, markup=False
                )
            write_restored(output, scan, result, card, config, seed, estimate, format, mask)
            save_restored(output / f"{scan.name}.png", volume, result, config.data)

        failed = each(scans, one, bar, "Restoring")
    for refusal in refused:
        tell.print(f"Not a scan: {refusal.path} ({refusal.reason})", highlight=False, markup=False)
    tell.print(f"{len(scans) - failed} of {len(scans)} scans restored; results in {output}", highlight=False)
    raise typer.Exit(1 if failed else 0)
