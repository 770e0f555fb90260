"""`meddiff evaluate`: how good a trained model is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meddiff.cli.console import Quiet, begin, progress, show, tell
from meddiff.cli.diagnosis import diagnose_run
from meddiff.cli.over import writable

if TYPE_CHECKING:
    from meddiff.data.manifest import Manifest
    from meddiff.engines.card import Card
    from meddiff.engines.run import Run


@dataclass(frozen=True)
class Asked:
    """What is evaluated, on which cases, and where to."""

    run: "Run"
    others: list["Run"]
    manifest: "Manifest"
    split: str
    limit: int | None  # cases
    images: int | None  # of a case
    seed: int
    device: str
    output: Path
    quiet: bool

    def facts(self, card: "Card") -> dict[str, Any]:
        """What metrics.json says of the evaluation as a whole."""
        return {
            "split": self.split,
            "manifest": self.manifest.digest,
            "seed": self.seed,
            "weights": card.weights,
            "step": card.step,
        }


def command(
    run: Annotated[Path, typer.Argument(help="A run folder of `meddiff train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for metrics.json and pictures.")],
    split: Annotated[str, typer.Option(help="The split to compare with: val or test.")] = "test",
    manifest: Annotated[
        Path | None,
        typer.Option(
            help="Cases from elsewhere in place of the run's own, for instance another hospital's; none may have been trained on."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Annotated[str, typer.Option(help="cuda, mps, cpu; auto takes the first there is.")] = "auto",
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another run in the same table, for instance one with diffusion.process=direct; may be repeated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many cases.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Restoration: only so many slices of a case, evenly spread.")
    ] = None,
    synthetic: Annotated[
        Path | None,
        typer.Option(
            help="The manifest of a synthetic set with label maps: intensities by tissue beside the real ones."
        ),
    ] = None,
    diagnosis: Annotated[
        bool,
        typer.Option("--diagnosis", help="Synthesis by class: as a classifier; writes every case's probabilities."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run on held-out data.

    Synthesis: kernel and Frechet distance, precision, recall, density and coverage in two spaces of features, sliced
    Wasserstein distance and diversity, all beside as many training images: methods.csv, comparison.png. Segmentation: Dice,
    surface distances and calibration of every case. Restoration: PSNR, SSIM and MAE, beside non-local means and wavelets, how
    far the texture is from that of clean images, and degradations.jsonl, what was done to each image; a run of synthesis as
    --baseline restores without having been trained to. Autoencoder: PSNR, SSIM and MAE of whole reconstructions. Cases with
    their mean and 95 % interval go to metrics.json and cases.csv, every method to methods.csv, and the worst, median and best
    case to cases.png. Diagnosis: AUROC and calibration to diagnosis.json, and the probabilities of every case to
    probabilities.csv.

    Example: `meddiff evaluate runs/seg --baseline runs/direct --split test -o runs/seg/evaluation`

    On scans from elsewhere: `meddiff scan /data/other -o data_manifests/other.jsonl --split 0,0,1`, then the same with
    `--manifest data_manifests/other.jsonl`
    """
    begin(quiet)
    from meddiff.cli.evaluate_synthesis import synthesis
    from meddiff.engines.evaluate_cases import cases_from
    from meddiff.engines.run import Run
    from meddiff.errors import ConfigError

    opened = Run.open(run)
    writable(output)
    if manifest and (diagnosis or opened.config().task == "synthesis"):
        raise ConfigError(
            "--manifest is for segmentation, restoration and autoencoders: samples are compared with held-out images of what "
            "they learned from. Leave it out."
        )
    if diagnosis:
        diagnose_run(opened, output, split, seed, device, limit, quiet)
        return
    others = [Run.open(one) for one in baseline or ()]
    task = opened.config().task
    if images is not None and task != "restoration":
        raise ConfigError(f"--images is for restoration, and {run} is of {task}. Leave it out; --limit chooses cases.")
    if synthetic and task != "synthesis":
        raise ConfigError(f"--synthetic is for runs of synthesis; this run is of {task}.")
    if task == "synthesis":
        if limit:
            raise ConfigError("--limit is for segmentation and restoration; of synthesis, evaluate.n says how many.")
        synthesis(opened, others, output, split, seed, device, synthetic)
        return
    judged = cases_from(manifest, [opened, *others]) if manifest else opened.manifest()
    work = {"segmentation": _segmentation, "restoration": _restoration, "autoencoder": _autoencoder}
    work[task](Asked(opened, others, judged, split, limit, images, seed, device, output, quiet))


def _segmentation(asked: Asked) -> None:
    from meddiff.engines.evaluate_cases import held_out, method, segmented
    from meddiff.engines.trainer import choose_device
    from meddiff.report.overlays import case_pictures
    from meddiff.report.tables import write_methods

    device = choose_device(asked.device)
    own = method("ensemble", asked.run, device)
    methods = [own]
    if own.config.diffusion.process != "direct" and own.config.sample.steps > 1:
        methods.append(own.with_sample("one evaluation", steps=1))
    methods += [method(f"baseline {other.folder.name}", other, device) for other in asked.others]
    cases = held_out(asked.manifest, asked.split)[: asked.limit]
    shown: dict[str, list[Any]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with progress(asked.quiet) as bar:
        task = bar.add_task("Segmenting", total=len(cases) * len(methods), note="")
        drawn = segmented(
            methods,
            asked.manifest,
            cases,
            asked.seed,
            keep=lambda case, volume, truth, result: shown.update(
                {case.case: case_pictures(volume, truth, result, own.config.data)}
            ),
        )
        for name, row in drawn:
            rows.setdefault(name, []).append(row)
            bar.update(task, advance=1, note=f"{row['case']}: {name} {row['dice']:.3f}")
    labels = {name: k for k, name in enumerate(own.card.labels, 1)}
    write_methods(asked.output, rows, "dice", True, shown.__getitem__, labels, asked.facts(own.card))
    _tell(
        rows,
        ("dice", *(f"dice/{name}" for name in labels), "calibration_error", "error_auroc", "energy_distance"),
        asked.output,
    )


def _restoration(asked: Asked) -> None:
    from meddiff.data.files import write_lines
    from meddiff.engines.evaluate_cases import method
    from meddiff.engines.evaluate_restored import empty_sets, restored
    from meddiff.engines.trainer import choose_device
    from meddiff.metrics import classical
    from meddiff.report.overlays import restored_pictures
    from meddiff.report.tables import write_methods

    device = choose_device(asked.device)
    methods = [method("diffusion", asked.run, device)]
    methods += [method(f"baseline {other.folder.name}", other, device) for other in asked.others]
    if not classical.available():
        tell.print(
            "Without scikit-image there are no non-local means and wavelets to compare with: pip install 'meddiff[compare]'",
            highlight=False,
        )
    shown: dict[str, dict[str, list[Any]]] = {}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    undone: dict[str, list[str]] = {}
    sets: dict[str, Any] = {}
    with progress(asked.quiet) as bar:
        task = bar.add_task("Restoring", total=None, note="")
        for one in restored(
            methods, asked.manifest, asked.split, asked.seed, classical.available(), asked.limit, asked.images
        ):
            shown.setdefault(one.level, {})[one.case.case] = restored_pictures(one.clean, one.degraded, one.results)
            sets.setdefault(one.level, empty_sets(methods[0].config, asked.manifest, asked.split)).add(
                one.case.patient, one.clean, one.results
            )
            for name, row in one.rows.items():
                rows.setdefault(one.level, {}).setdefault(name, []).append(row)
            undone.setdefault(one.level, []).extend(json.dumps({"case": one.case.case, **p}) for p in one.parameters)
            best = max(one.rows.items(), key=lambda pair: pair[1]["psnr"])
            bar.update(task, advance=1, note=f"{one.level}, {one.case.case}: {best[0]} {best[1]['psnr']:.2f} dB")
    facts = asked.facts(methods[0].card) | {"images_per_case": asked.images}
    for level, of_level in rows.items():
        folder = asked.output / level.replace(" ", "_") if len(rows) > 1 else asked.output
        apart = sets[level].distances()
        best_name = f"{methods[0].name}, one evaluation"
        ordered = {best_name: of_level[best_name], **of_level}
        write_methods(
            folder, ordered, "psnr", True, shown[level].__getitem__, {}, {**facts, "level": level, "sets": apart}
        )
        write_lines(folder / "degradations.jsonl", undone[level])
        tell.print(f"\n{level}", highlight=False)
        _tell(ordered, ("psnr", "ssim", "mae"), folder, apart)


def _autoencoder(asked: Asked) -> None:
    from meddiff.engines.fit import prepare
    from meddiff.engines.reconstruct import reconstructed
    from meddiff.engines.trainer import choose_device
    from meddiff.errors import ConfigError
    from meddiff.networks.autoencoder import Autoencoder
    from meddiff.report.overlays import reconstructed_pictures
    from meddiff.report.tables import write_methods

    if asked.others:
        raise ConfigError("--baseline is for segmentation and restoration; this run is an autoencoder.")
    model, card = asked.run.load_model(choose_device(asked.device))
    assert isinstance(model, Autoencoder)
    images = prepare(asked.run.config(), asked.manifest, asked.split)
    shown: dict[str, list[Any]] = {}
    rows = []
    with progress(asked.quiet) as bar:
        task = bar.add_task("Reconstructing", total=min(len(images.cases), asked.limit or len(images.cases)), note="")
        for row in reconstructed(
            model,
            images,
            card.space.scale,
            asked.limit,
            keep=lambda case, truth, found: shown.update({case.case: reconstructed_pictures(truth, found)}),
        ):
            rows.append(row)
            bar.update(task, advance=1, note=f"{row['case']}: {row['psnr']:.2f} dB")
    write_methods(asked.output, {"autoencoder": rows}, "psnr", True, shown.__getitem__, {}, asked.facts(card))
    _tell({"autoencoder": rows}, ("psnr", "ssim", "mae"), asked.output)


def _tell(
    rows: dict[str, list[dict[str, Any]]],
    columns: tuple[str, ...],
    output: Path,
    sets: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    from rich.table import Table

    short = [column.removeprefix("dice/").replace("_", " ") for column in columns]
    sets = sets or {}
    apart = [name for name in next(iter(sets.values()), {}) if "/" not in name]  # the levels of detail stay in the file
    table = Table("method", *short, *(name.replace("_", " ") for name in apart))
    for name, of_method in rows.items():
        means = [sum(row[c] for row in of_method) / len(of_method) for c in columns]
        table.add_row(name, *(f"{value:.4f}" for value in (*means, *(sets[name][a] for a in apart))))
    for name in sets.keys() - rows.keys():  # the clean images, which needed no restoring
        table.add_row(name, *("" for _ in columns), *(f"{sets[name][a]:.4f}" for a in apart))
    show(table)
    tell.print(
        f"n = {len(next(iter(rows.values())))} cases; {output / 'metrics.json'}, methods.csv, cases.png",
        highlight=False,
    )
