"""`meddiff scan`: from folders to a manifest."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from meddiff.cli.console import Quiet, begin, progress, tell
from meddiff.errors import ManifestError

Layout = Literal["auto", "dicom", "pairs", "nnunet", "decathlon", "bids", "medmnist"]


def command(
    folders: Annotated[list[Path], typer.Argument(help="Folders that hold the images, at any depth, or a DICOMDIR.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The manifest to write, .jsonl.")],
    layout: Annotated[Layout, typer.Option(help="How the folders are laid out; auto looks.")] = "auto",
    split: Annotated[str, typer.Option(help="Shares of patients for train, val, test.")] = "0.7,0.15,0.15",
    key: Annotated[Path | None, typer.Option(help="Key of the pseudonyms; made on first use, keep it secret.")] = None,
    fill_gaps: Annotated[
        bool, typer.Option("--fill-gaps", help="Make up a missing DICOM slice from its neighbours.")
    ] = False,
    resample_tilt: Annotated[
        bool, typer.Option("--resample-tilt", help="Undo a tilted CT gantry by resampling.")
    ] = False,
    regions: Annotated[
        str,
        typer.Option(
            help="Regions of SEG and RTSTRUCT that become labels 1, 2, ..., by name; the first wins where they overlap."
        ),
    ] = "",
    record: Annotated[
        str,
        typer.Option(help="What DICOM headers say of the person, for models to be asked for: sex, age, manufacturer."),
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Processes that read DICOM headers; 0: one for each core.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="List every case and every refused file.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the images of some folders and write the manifest that every other command reads.

    Every file is accounted for: in a case, or in NAME.refused.jsonl with the reason. Patients become keyed pseudonyms and
    are never in two splits.

    Example: `meddiff scan /data/ct /data/more -o data_manifests/ct.jsonl --regions 'tumour|GTV,liver,body|external'`
    """
    begin(quiet)
    from meddiff.data.facts import Share
    from meddiff.data.keys import load_key
    from meddiff.data.scan import scan, write_scan
    from meddiff.engines.processes import first, first_alone, gathered, join, mine
    from meddiff.imaging.dicom_stack import FILL_GAPS, RESAMPLE_TILT

    join()
    shares = _shares(split)
    if output.suffix != ".jsonl":
        raise ManifestError(f"{output}: a manifest is a .jsonl file; name it so.")
    with first_alone():
        secret = load_key(key)
    with progress(quiet) as bar:
        opened = bar.add_task("DICOM headers", total=None, note="", visible=False)
        task = bar.add_task("Files", total=None, note="")
        cases, refused = scan(
            folders,
            layout=layout,
            split=shares,
            key=secret,
            root=output.absolute().parent,
            repairs=[name for name, asked in ((FILL_GAPS, fill_gaps), (RESAMPLE_TILT, resample_tilt)) if asked],
            regions=[name.strip() for name in regions.split(",")] if regions else [],
            record=[name.strip() for name in record.split(",")] if record else [],
            workers=workers or os.cpu_count() or 1,
            headers=lambda done, total: bar.update(opened, completed=done, total=total, visible=True),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            share=Share(mine, gathered),
        )
    if not first():
        return
    beside = write_scan(output, cases, refused)
    if show:
        table = Table("case", "split", "modality", "shape", "spacing mm", "first file", title="Accepted")
        for case in cases:
            source = case.image[0]
            named = source.path or (source.files or ("",))[0]
            spacing = " x ".join(f"{s:.3g}" for s in case.spacing_mm)
            names = ", ".join(s.modality for s in case.image)
            table.add_row(case.case, case.split, names, " x ".join(map(str, case.shape)), spacing, named)
        tell.print(table)
        table = Table("file", "reason", "detail", title="Refused")
        for one in refused:
            table.add_row(one.path, one.reason, one.detail)
        tell.print(table)
    splits = Counter(case.split for case in cases)
    patients = len({case.patient for case in cases})
    shown = ", ".join(f"{name} {splits[name]}" for name in ("train", "val", "test"))
    tell.print(f"{len(cases)} cases of {patients} patients ({shown}) in {output}", highlight=False)
    repaired = Counter(repair for case in cases for repair in case.repairs)
    if repaired:
        made = ", ".join(f"{n} by {repair}" for repair, n in sorted(repaired.items()))
        tell.print(f"cases repaired: {made}; each case of the manifest names its own", highlight=False)
    if refused:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(one.reason for one in refused).most_common())
        files = "1 file" if len(refused) == 1 else f"{len(refused)} files"
        tell.print(f"{files} refused ({reasons}); each with its reason in {beside}", highlight=False)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise ManifestError(f"--split {text!r}: give three shares, for instance 0.7,0.15,0.15.") from e
