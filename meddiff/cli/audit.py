"""`meddiff audit`: whether a synthetic set holds copies of patients, and its model gives them away."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, progress, show, tell


def command(
    run: Annotated[Path, typer.Argument(help="The run folder of `meddiff train` that the set was sampled from.")],
    synthetic: Annotated[Path, typer.Argument(help="A folder of `meddiff sample`, NIfTI or DICOM.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for audit.json and audit.html.")],
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Look for copies of training patients in a synthetic set, and attack the model: PASS, FAIL or INCONCLUSIVE.

    A copy detector is trained on the fly and has to find planted copies first; held-out patients say what chance looks like.
    The limits are the section `audit` of the run's config, fixed before the training. `meddiff release` asks for a PASS.
    audit.html shows images of patients and stays inside. Exit code 1 where the verdict is not PASS.

    Example: `meddiff sample runs/ct -n 1000 -o samples/ct && meddiff audit runs/ct samples/ct -o audits/ct`
    """
    begin(quiet)
    from rich.table import Table

    from meddiff.engines.run import Run
    from meddiff.engines.trainer import choose_device
    from meddiff.report.audit_run import audit_run

    with progress(quiet) as bar:
        now: list = []

        def stage(title: str, total: int | None) -> Callable[[], None]:
            for earlier in now:
                bar.update(earlier, visible=False)
            now[:] = [bar.add_task(title, total=total, note="")]
            return lambda: bar.advance(now[0])

        record = audit_run(Run.open(run), synthetic, output, choose_device(device), stage)
    table = Table("what", "found", "95 % interval")
    copies = record["copies"]
    rows = [("copies", copies["rate"], copies["low"], copies["high"])]
    rows += [
        (f"patients found by {name}", a["tpr"], a["tpr_low"], a["tpr_high"]) for name, a in record["membership"].items()
    ]
    for what, value, low, high in rows:
        table.add_row(what, f"{value:.2%}", f"{low:.2%} to {high:.2%}")
    show(table)
    tell.print(
        f"[bold]{record['verdict']}[/]: {tell.escape('; '.join(record['reasons']))}", highlight=False, soft_wrap=True
    )
    tell.print(f"{output / 'audit.html'} (shows patients: keep it inside)", highlight=False)
    if record["verdict"] != "PASS":
        raise typer.Exit(1)
