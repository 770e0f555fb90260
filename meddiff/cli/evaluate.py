"""`meddiff evaluate`: how good a trained model is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from meddiff.cli.console import Quiet, begin, tell


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for metrics.json and pictures.")],
    split: Annotated[str, typer.Option(help="The split to compare with: val or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare samples with held-out images, beside the training images as the floor; for synthesis.

    Writes metrics.json (sliced Wasserstein distances and their ratio, with n) and comparison.png: samples, held-out
    images, and the training image nearest to each sample.

    Example: `meddiff evaluate runs/ct --split test -o runs/ct/evaluation`
    """
    begin(quiet)
    from meddiff.engines.checkpoint import write_atomic
    from meddiff.engines.evaluate import compare
    from meddiff.engines.run import Run
    from meddiff.engines.trainer import choose_device
    from meddiff.report.figures import save_panels

    opened = Run.open(run)
    config, manifest = opened.config(), opened.manifest()
    model, card = opened.load_model(choose_device(device))
    with tell.status("Sampling and measuring"):
        result = compare(model, config, manifest, split, seed)
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "split": split,
        "seed": seed,
        "weights": card.weights,
        "step": card.step,
        "sample": config.sample.model_dump(),
    }
    write_atomic(output / "metrics.json", json.dumps({**result.numbers, **facts}, indent=2).encode())
    count = 32 if config.network.spatial_dims == 2 else 2
    panels = [
        ("Samples", result.samples),
        (f"Held-out ({split})", result.held_out),
        ("Nearest training", result.closest),
    ]
    columns = 4 if count == 32 else 1
    every = max(1, len(result.samples) // count)
    save_panels(output / "comparison.png", [(title, images[::every][:count]) for title, images in panels], columns)
    tell.print(
        f"n = {result.numbers['n']}: sliced Wasserstein {result.numbers['sliced_wasserstein']:.4f}, of the training images "
        f"{result.numbers['sliced_wasserstein_train']:.4f}, ratio {result.numbers['ratio']:.3f}; {output / 'metrics.json'}",
        highlight=False,
    )
