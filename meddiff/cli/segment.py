"""`meddiff segment`: label maps of scans from a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.cli.over import each, with_options, writable

if TYPE_CHECKING:
    from meddiff.data.inputs import Scan


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train` with task segmentation.")],
    inputs: Annotated[
        list[Path], typer.Argument(help="NIfTI files, DICOM series folders, folders of either, or a manifest.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    samples: Annotated[int | None, typer.Option(min=1, help="Samples per scan; the config's unless given.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Network evaluations per sample; 1 gives the direct segmentation.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Sample until every label's volume is known this well, for instance 0.05; at most 64."),
    ] = None,
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty", help="Call slices and windows of nothing but background background, unseen: faster."
        ),
    ] = False,
    format: Annotated[
        Literal["nifti", "seg", "both"],
        typer.Option(help="seg is DICOM SEG and needs a DICOM series as input; both gives SEG where it can."),
    ] = "nifti",
    split: Annotated[str | None, typer.Option(help="Of a manifest given as input: train, val or test.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Segment scans: label map, probabilities and entropy on the scan's own grid, and volumes with intervals.

    Writes CASE_label.nii.gz, CASE_probability.nii.gz (background, then the labels), CASE_entropy.nii.gz (0 sure, 1 no
    idea), CASE_seg.dcm, CASE.png to look at, and CASE.json. Scans that fail are listed and the others go on; exit code 1 then.

    Example: `meddiff segment runs/seg scans/ -o results --samples 8`
    """
    begin(quiet)
    from meddiff.data.inputs import find_scans
    from meddiff.engines.outputs import check_format, write_segmented
    from meddiff.engines.processes import join
    from meddiff.engines.run import Run
    from meddiff.engines.segment import segment
    from meddiff.engines.trainer import choose_device
    from meddiff.errors import ConfigError
    from meddiff.report.overlays import save_segmented

    if tolerance is not None and not tolerance > 0:
        raise ConfigError(f"--tolerance {tolerance:g}: must be above 0, for instance 0.05 for 5 % of every volume.")
    join(device)
    opened = Run.open(run)
    options = {"samples": samples, "steps": steps, "skip_empty": skip_empty or None}
    config = with_options(opened.config(), run, "segmentation", **options)
    model, card = opened.load_model(choose_device(device))
    scans, refused = find_scans(inputs, split)
    writable(output)
    with progress(quiet) as bar:

        def one(scan: "Scan") -> None:
            check_format(scan, format)
            volume = scan.read(card.space.modality)
            result = segment(model, config, card, volume, scan.name, seed, tolerance=tolerance)
            write_segmented(output, scan, result, volume, card, config, seed, format)
            save_segmented(output / f"{scan.name}.png", volume, result, config.data)

        failed = each(scans, one, bar, "Segmenting")
    for refusal in refused:
        tell.print(f"Not a scan: {refusal.path} ({refusal.reason})", highlight=False, markup=False)
    tell.print(f"{len(scans) - failed} of {len(scans)} scans segmented; results in {output}", highlight=False)
    raise typer.Exit(1 if failed else 0)
