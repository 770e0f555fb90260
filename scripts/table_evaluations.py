"""How good a run is with 1, 2, 4, ... network evaluations: one table, and the same as a picture.

    python scripts/table_evaluations.py RUN -o FOLDER [--evaluations 1 2 4 8 16 32 64 1000] [--split test] [--limit CASES]

Synthesis: sliced Wasserstein distance of `evaluate.n` samples to as many held-out images, and how far their power spectra are apart;
the row `training` is the mean of 20 random sets of training images. Segmentation: Dice and calibration error of the ensemble.
Restoration: PSNR and spectrum of one sample, by level of noise. One evaluation is the first answer, the best guess of everything:
for synthesis the mean of all images. Seconds are those of the whole row on this machine, metrics included.
Each row is told and kept as soon as it is found, so that what is stopped is not lost.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from rich.table import Table
from torch import Tensor

from meddiff.cli.console import begin, show, tell
from meddiff.engines.evaluate import real_images
from meddiff.engines.evaluate_cases import Method, held_out, method, segmented
from meddiff.engines.evaluate_restored import restored
from meddiff.engines.predict import bounded, check_task, check_voxels, draw_samples
from meddiff.engines.quality import Judge, draws
from meddiff.engines.run import Run
from meddiff.engines.trainer import choose_device
from meddiff.errors import MeddiffError, RunError
from meddiff.metrics.distances import spectrum_distance
from meddiff.metrics.sets import Sets
from meddiff.report.figures import save_figure
from meddiff.seeds import generator

Figures = Mapping[str, float]
RANGE = (-1.0, 1.0)


def at(own: Method, evaluations: int, samples: int | None = None, batch: int | None = None) -> Method:
    """The same run with so many evaluations; also with 1 and 2, which a config of sampling refuses as a waste."""
    asked = {"steps": evaluations, "samples": samples, "batch": batch}
    changed = {name: value for name, value in asked.items() if value is not None}
    sample = own.config.sample.model_copy(update=changed)
    return replace(own, name=str(evaluations), config=own.config.model_copy(update={"sample": sample}))


def synthesis(own: Method, run: Run, counts: Sequence[int], split: str) -> Iterator[tuple[str, Figures]]:
    """Every number of evaluations, and the training images."""
    check_task(own.config)
    check_voxels(own.config)
    if own.config.condition.any or own.config.data.paired:
        raise RunError(
            f"{run.folder}: draws what it is asked for; this table is of images of nothing. Give such a run."
        )
    real = real_images(own.config, run.manifest(), split)
    judge = Judge(real.training, real.held_out, real.patients, {}, own.config.evaluate.projections)
    names = [f"evaluate_{i}" for i in range(judge.n)]
    for count in counts:
        images = drawn(at(own, count), names).clamp(*RANGE)
        distance = judge.values(judge.see(images))["sliced_wasserstein"]
        yield str(count), {"sliced_wasserstein": distance, "spectrum_db": spectrum_distance(images, real.held_out)}
    floor = [spectrum_distance(real.training[index], real.held_out) for index in draws(len(real.training), judge.n)]
    yield "training", {"sliced_wasserstein": fmean(judge.floor["sliced_wasserstein"]), "spectrum_db": fmean(floor)}


def drawn(one: Method, names: Sequence[str]) -> Tensor:
    """Samples (n, 1, *size) of a run of synthesis; of one evaluation the first answer."""
    if one.config.sample.steps > 1:
        return torch.stack(list(draw_samples(one.model, one.config, names, 0)))
    device = next(one.model.parameters()).device
    sigma = torch.tensor(one.config.sample.sigma_max)
    noise = torch.stack([torch.randn(1, *one.config.data.size, generator=generator(0, "start", n)) for n in names])
    with torch.no_grad():
        denoise = bounded(one.model, one.config, device, None)
        return torch.cat([denoise(x.to(device), sigma).cpu() for x in (sigma * noise).split(one.config.sample.batch)])


def segmentation(
    own: Method, run: Run, counts: Sequence[int], split: str, limit: int | None
) -> Iterator[tuple[str, Figures]]:
    """Dice and calibration error of every number of evaluations, the mean over cases."""
    manifest = run.manifest()
    cases = held_out(manifest, split)[:limit]
    for count in counts:
        rows = [row for _, row in segmented([at(own, count)], manifest, cases, 0)]
        yield str(count), {name: fmean(row[name] for row in rows) for name in ("dice", "calibration_error")}


def restoration(
    own: Method, run: Run, counts: Sequence[int], split: str, limit: int | None, images: int | None
) -> Iterator[tuple[str, Figures]]:
    """PSNR and spectrum of one sample of every number of evaluations, or of the first answer, at every level of noise."""
    for count in counts:
        one, found = at(own, count, samples=1), dict[str, float]()
        name = f"{one.name}, one evaluation" if count == 1 else f"{one.name}, one sample"
        psnr, sets = defaultdict[str, list[float]](list), dict[str, Sets]()
        for case in restored([one], run.manifest(), split, 0, False, limit, images):
            psnr[case.level].append(case.rows[name]["psnr"])
            kept = sets.setdefault(case.level, Sets(case.clean, [case.case.patient] * len(case.clean), RANGE))
            kept.add(case.case.patient, case.clean, {name: case.results[name]})
        for level, values in psnr.items():
            of = torch.cat(sets[level].results[name]), torch.cat(sets[level].clean)
            found |= {f"psnr, {level}": fmean(values), f"spectrum_db, {level}": spectrum_distance(*of)}
        yield str(count), found


def timed(rows: Iterator[tuple[str, Figures]]) -> Iterator[tuple[str, Figures]]:
    """The rows, each with the seconds it took."""
    began = time.perf_counter()
    for name, figures in rows:
        yield name, {**figures, "seconds": time.perf_counter() - began}
        began = time.perf_counter()


def picture(path: Path, rows: Mapping[str, Figures]) -> None:
    """Every metric over the number of evaluations, the training images as a line."""
    counts = [name for name in rows if name.isdigit()]
    metrics = [name for name in rows[counts[0]] if name != "seconds"]
    figure, axes = plt.subplots(1, len(metrics), figsize=(4 * len(metrics), 3.2), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.plot([int(name) for name in counts], [rows[name][metric] for name in counts], "o-")
        for name in (name for name in rows if not name.isdigit()):
            axis.axhline(rows[name][metric], linestyle="--", color="grey", label=name)
            axis.legend()
        axis.set_xscale("log", base=2)
        axis.set_xticks([int(name) for name in counts], counts)
        axis.set_xlabel("network evaluations")
        axis.set_title(metric.replace("_", " "), fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of synthesis, segmentation or restoration")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for evaluations.json and evaluations.png"
    )
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="per sample")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, help="samples of synthesis (default: evaluate.n of the run)")
    parser.add_argument("--samples", type=int, help="of the ensemble of segmentation (default: sample.samples)")
    parser.add_argument(
        "--batch", type=int, help="images side by side (default: sample.batch), the more the better on a GPU"
    )
    parser.add_argument("--limit", type=int, help="only so many cases of segmentation and restoration")
    parser.add_argument("--images", type=int, help="only so many images of a case of restoration")
    given = parser.parse_args()
    if min(given.evaluations) < 1:
        parser.error(f"--evaluations {min(given.evaluations)}: at least 1 is needed.")
    begin(False)
    try:
        run = Run.open(given.run)
        own = method("run", run, choose_device("auto"))
        if given.n:
            evaluate = own.config.evaluate.model_copy(update={"n": given.n})
            own = replace(own, config=own.config.model_copy(update={"evaluate": evaluate}))
        own = at(own, own.config.sample.steps, given.samples, given.batch)
        if own.config.task == "synthesis":
            rows = synthesis(own, run, given.evaluations, given.split)
        elif own.config.task == "segmentation":
            rows = segmentation(own, run, given.evaluations, given.split, given.limit)
        elif own.config.task == "restoration":
            rows = restoration(own, run, given.evaluations, given.split, given.limit, given.images)
        else:
            raise RunError(f"{given.run}: a run of {own.config.task} is evaluated once; give one that samples.")
        given.output.mkdir(parents=True, exist_ok=True)
        found = dict[str, Figures]()
        facts = {"task": own.config.task, "split": given.split, "weights": own.card.weights, "rows": found}
        for name, figures in timed(rows):
            found[name] = figures
            row = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
            tell.print(f"{name}: {row}", highlight=False, soft_wrap=True)
            (given.output / "evaluations.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except MeddiffError as e:
        parser.error(str(e))
    table = Table("evaluations", *next(iter(found.values())))
    for name, figures in found.items():
        table.add_row(name, *(f"{value:.4g}" for value in figures.values()))
    show(table)
    picture(given.output / "evaluations.png", found)


if __name__ == "__main__":
    main()
