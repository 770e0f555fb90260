"""`meddiff train`: from a config to a run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from meddiff.cli.console import Quiet, begin, progress, tell

if TYPE_CHECKING:
    from meddiff.engines.fit import Session

NEXT = {
    "synthesis": "sample {} -n 16",
    "segmentation": "segment {} SCANS",
    "restoration": "restore {} SCANS",
    "autoencoder": "evaluate {}",
}  # by task


def command(
    config: Annotated[Path, typer.Argument(help="A YAML config, for instance configs/synthesis_2d_ct.yaml.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run folder: new, or with --resume an existing one.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, for instance train.steps=500.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of the run.")] = False,
    force: Annotated[bool, typer.Option(help="Resume although the config or the data changed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model. The run folder holds everything: config, manifest, weights, checkpoints, log, pictures.

    SIGTERM and SIGUSR1 save a checkpoint at the end of the step; exit code 143 then, and --resume goes on. Several GPUs or
    processes: `torchrun --nproc-per-node 4 -m meddiff train ...`, the same config and the same model.

    Example: `meddiff train configs/synthesis_2d_ct.yaml -o runs/ct --set train.steps=2000`
    """
    begin(quiet)
    from meddiff.config_file import load_config
    from meddiff.engines.fit import fit
    from meddiff.engines.processes import join
    from meddiff.report.previews import previews

    settings = load_config(config, set_ or ())
    join(settings.train.device)
    with progress(quiet) as bar:
        preparing = bar.add_task("Preprocessing", total=None, note="")
        run = fit(
            settings,
            output,
            resume=resume,
            force=force,
            attach=[watch(bar, preparing), previews],
            on_case=lambda case: bar.advance(preparing),
        )
    tell.print(
        f"Trained to step {settings.train.steps}: {run.folder}. Next: meddiff {NEXT[settings.task].format(run.folder)} -o DIR",
        highlight=False,
    )


def watch(bar: Progress, preparing: TaskID) -> Callable[["Session"], None]:
    """A handler that shows step, loss, held-out loss, rate and time left."""

    def attach(session: "Session") -> None:
        from ignite.engine import Events

        bar.update(preparing, visible=False)
        engine, total = session.engine, session.config.train.steps
        task = bar.add_task("Training", total=total, completed=engine.state.iteration, note="")

        def show() -> None:
            metrics, speed = engine.state.metrics, bar.tasks[-1].speed
            shown = [
                f"{name} {metrics[key]:.4f}"
                for key, name in (("loss", "loss"), ("held_out", "held-out"), ("epsilon", "epsilon"))
                if key in metrics
            ]
            if speed:
                shown.append(f"{speed:.2f} steps/s")
            bar.update(task, completed=engine.state.iteration, note=", ".join(shown))

        engine.add_event_handler(Events.ITERATION_COMPLETED, show)

    return attach
