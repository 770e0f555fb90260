"""`meddiff evaluate`: how good a trained model is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meddiff.cli.console import Quiet, begin, progress, show, tell
from meddiff.cli.diagnosis import diagnose_run
from meddiff.cli.over import made

if TYPE_CHECKING:
    from torch import Tensor

    from meddiff.data.manifest import Case
    from meddiff.engines.run import Run


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for metrics.json and pictures.")],
    split: Annotated[str, typer.Option(help="The split to compare with: val or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another run in the same table, for instance one with diffusion.process=direct; may be repeated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many cases.")] = None,
    diagnosis: Annotated[
        bool,
        typer.Option("--diagnosis", help="Synthesis by class: as a classifier; writes every case's probabilities."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run on held-out data.

    Synthesis: sliced Wasserstein distance of samples to held-out images, beside that of the training images, and
    comparison.png. Segmentation: Dice, surface distances and calibration of every case. Restoration: PSNR, SSIM and MAE,
    beside non-local means and wavelets. Cases with their mean and 95 % interval go to metrics.json and cases.csv, every
    method to methods.csv, and the worst, median and best case to cases.png. Diagnosis: AUROC and calibration to
    diagnosis.json, and the probabilities of every case to probabilities.csv.

    Example: `meddiff evaluate runs/seg --baseline runs/direct --split test -o runs/seg/evaluation`
    """
    begin(quiet)
    from meddiff.engines.run import Run

    opened = Run.open(run)
    made(output)
    if diagnosis:
        diagnose_run(opened, output, split, seed, device, limit, quiet)
        return
    others = [Run.open(one) for one in baseline or ()]
    work = {"synthesis": _synthesis, "segmentation": _segmentation, "restoration": _restoration}
    work[opened.config().task](opened, others, output, split, seed, device, limit, quiet)


def _synthesis(
    opened: "Run", others: list["Run"], output: Path, split: str, seed: int, device: str, limit: int | None, quiet: bool
) -> None:
    from meddiff.engines.checkpoint import write_atomic
    from meddiff.engines.evaluate import compare
    from meddiff.engines.trainer import choose_device
    from meddiff.errors import ConfigError
    from meddiff.report.figures import save_panels

    if others or limit:
        raise ConfigError("--baseline and --limit are for segmentation and restoration; this run is of synthesis.")
    config, manifest = opened.config(), opened.manifest()
    model, card = opened.load_model(choose_device(device))
    with tell.status("Sampling and measuring"):
        result = compare(model, config, manifest, split, seed)
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


def _segmentation(
    opened: "Run", others: list["Run"], output: Path, split: str, seed: int, device: str, limit: int | None, quiet: bool
) -> None:
    from meddiff.engines.evaluate_cases import held_out, method, segmented
    from meddiff.engines.trainer import choose_device
    from meddiff.report.overlays import case_pictures
    from meddiff.report.tables import write_methods

    where = choose_device(device)
    own = method("ensemble", opened, where)
    methods = [own]
    if own.config.diffusion.process != "direct" and own.config.sample.steps > 1:
        methods.append(own.with_sample("one evaluation", steps=1))
    methods += [method(f"baseline {other.folder.name}", other, where) for other in others]
    manifest = opened.manifest()
    cases = held_out(manifest, split)[:limit]
    shown: dict[str, list[Any]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with progress(quiet) as bar:
        task = bar.add_task("Segmenting", total=len(cases) * len(methods), note="")
        drawn = segmented(
            methods,
            manifest,
            cases,
            seed,
            keep=lambda case, volume, truth, result: shown.update(
                {case.case: case_pictures(volume, truth, result, own.config.data.axis)}
            ),
        )
        for name, row in drawn:
            rows.setdefault(name, []).append(row)
            bar.update(task, advance=1, note=f"{row['case']}: {name} {row['dice']:.3f}")
    labels = {name: k for k, name in enumerate(own.card.labels, 1)}
    facts = {"split": split, "seed": seed, "weights": own.card.weights, "step": own.card.step}
    write_methods(output, rows, "dice", True, shown.__getitem__, labels, facts)
    _tell(
        rows,
        ("dice", *(f"dice/{name}" for name in labels), "calibration_error", "error_auroc", "energy_distance"),
        output,
    )


def _restoration(
    opened: "Run", others: list["Run"], output: Path, split: str, seed: int, device: str, limit: int | None, quiet: bool
) -> None:
    from meddiff.engines.evaluate_cases import Sets, method, restored
    from meddiff.engines.trainer import choose_device
    from meddiff.metrics import classical
    from meddiff.report.overlays import restored_pictures
    from meddiff.report.tables import write_methods

    where = choose_device(device)
    methods = [method("diffusion", opened, where), *(method(f"baseline {o.folder.name}", o, where) for o in others)]
    if not classical.available():
        tell.print(
            "Without scikit-image there are no non-local means and wavelets to compare with: pip install 'meddiff[compare]'",
            highlight=False,
        )
    shown: dict[tuple[str, str], list[Any]] = {}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    sets: dict[str, Sets] = {}

    def keep(level: str, case: "Case", clean: "Tensor", degraded: "Tensor", results: Mapping[str, "Tensor"]) -> None:
        shown[level, case.case] = restored_pictures(clean, degraded, results)
        sets.setdefault(level, Sets()).add(clean, results)

    with progress(quiet) as bar:
        task = bar.add_task("Restoring", total=None, note="")
        for level, name, row in restored(
            methods,
            opened.manifest(),
            split,
            seed,
            classical.available(),
            limit,
            keep=keep,
        ):
            rows.setdefault(level, {}).setdefault(name, []).append(row)
            bar.update(task, advance=1, note=f"{level}, {row['case']}: {name} {row['psnr']:.2f} dB")
    facts = {"split": split, "seed": seed, "weights": methods[0].card.weights, "step": methods[0].card.step}
    for level, of_level in rows.items():
        of_shown = {case: pictures for (at, case), pictures in shown.items() if at == level}
        folder = output / level.replace(" ", "_") if len(rows) > 1 else output
        apart = sets[level].distances()
        best = f"{methods[0].name}, one evaluation"
        ordered = {best: of_level[best], **of_level}
        write_methods(folder, ordered, "psnr", True, of_shown.__getitem__, {}, {**facts, "level": level, "sets": apart})
        tell.print(f"\n{level}", highlight=False)
        _tell(ordered, ("psnr", "ssim", "mae"), folder, apart)


def _tell(
    rows: dict[str, list[dict[str, Any]]],
    columns: tuple[str, ...],
    output: Path,
    sets: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    from rich.table import Table

    short = [column.removeprefix("dice/").replace("_", " ") for column in columns]
    table = Table("method", *short, *(name.replace("_", " ") for name in (next(iter(sets.values())) if sets else ())))
    for name, of_method in rows.items():
        means = [sum(row[c] for row in of_method) / len(of_method) for c in columns]
        table.add_row(name, *(f"{value:.4f}" for value in (*means, *(sets[name].values() if sets else ()))))
    show(table)
    tell.print(
        f"n = {len(next(iter(rows.values())))} cases; {output / 'metrics.json'}, methods.csv, cases.png",
        highlight=False,
    )
