"""`meddiff sample`: images from a trained run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from meddiff.cli.console import Quiet, begin, progress, tell

SHOWN = 64  # samples in grid.png


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train`.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many samples.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the set.")],
    sampler: Annotated[
        str | None, typer.Option(help="euler, heun, dpmpp_2m or ancestral; the config's unless given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Network evaluations per sample.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Samples side by side; does not change them.")] = None,
    format: Annotated[
        Literal["nifti", "png"], typer.Option(help="nifti has units and a place, png is for looking.")
    ] = "nifti",
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw samples: one file each with a JSON sidecar, a manifest of the set, and grid.png to look at.

    The same command gives the same bytes, and sample 7 is the same whatever -n and --batch are.

    Example: `meddiff sample runs/ct -n 16 -o samples/ct --steps 16`
    """
    begin(quiet)
    import torch

    from meddiff.config import parse_config
    from meddiff.engines.predict import sample_set, write_image
    from meddiff.engines.processes import first, gathered, join
    from meddiff.engines.run import Run
    from meddiff.engines.trainer import choose_device
    from meddiff.report.figures import save_mosaic, write_png

    join(device)
    opened = Run.open(run)
    tree: dict[str, Any] = opened.config().model_dump(mode="json")
    given = {"sampler": sampler, "steps": steps, "batch": batch}
    tree["sample"] |= {name: value for name, value in given.items() if value is not None}
    config = parse_config(tree, f"{run} with the options given")
    model, card = opened.load_model(choose_device(device))
    shown: dict[str, torch.Tensor] = {}
    with progress(quiet) as bar:
        task = bar.add_task("Sampling", total=n, note="")

        def done(name: str, sample: torch.Tensor) -> None:
            if len(shown) < SHOWN:
                shown[name] = sample.clamp(-1, 1)
            bar.advance(task)

        write = write_image if format == "nifti" else write_png(card.space)
        sample_set(model, card, config, n, output, seed, write, done)
    every = [item for part in gathered(shown) for item in part.items()]
    if not first():
        return
    grid = torch.stack([sample for _, sample in sorted(every)[:SHOWN]])
    save_mosaic(output / "grid.png", grid, columns=8 if config.network.spatial_dims == 2 else 1)
    tell.print(f"{n} samples in {output}; look at {output / 'grid.png'}", highlight=False)
