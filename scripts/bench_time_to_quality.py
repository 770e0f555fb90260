"""How long it takes to be as good: synthesis and segmentation by a recipe of ours, and as users of MONAI do it.

    python scripts/bench_time_to_quality.py [--quick] [--json FILE] [--only synthesis|segmentation] [--manifest FILE]
        [--run RUN [--student RUN ...]] [--set KEY=VALUE] [--marks 1 2 3]

Synthesis: one trained network, whose denoiser is sampled by our recipe, by MONAI's DDPM with 1000 steps and by its DDIM with 50.
The n samples are drawn in batches that take turns; the time is that of drawing alone. `ratio` is the time of DDPM-1000 over that of
the fastest of ours whose sliced Wasserstein distance is not worse. Students that were distilled from that network have a ratio of their
own, since they have other weights, and took their own time to train.

Segmentation: our config, and the recipe of MONAI's tutorial on diffusion segmentation (Wolleb et al. 2021): a `DiffusionModelUNet`
of the same channels, blocks and attention that sees the image beside a noisy mask of each label and predicts the noise, 1000 steps
to a sample. Same slices, batch, precision and cores; the tutorial's Adam with `--monai-lr`, far above its own 2.5e-5, which is in its
favour, as is one sample in place of its five. Time to a Dice is that of training so far and of segmenting the held-out scans once;
reading data in advance, checkpoints and held-out losses are left out for both. `ratio` is the time of the best Dice that MONAI
reaches over that of our first that is at least as good: MONAI is trained for up to three times as long.

Without --manifest a cohort of computed heads is made. --quick: few patients, small images, small networks, minutes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai_recipes import TIMESTEPS, Tutorial, by_monai
from torch import Tensor

from meddiff.config import Config
from meddiff.config_file import load_config
from meddiff.data.loader import training_loader
from meddiff.data.manifest import Case, Manifest, load_image, load_label
from meddiff.data.scan import scan, write_scan
from meddiff.data.store import numbered
from meddiff.diffusion.denoiser import Preconditioned
from meddiff.engines.card import Card
from meddiff.engines.evaluate import real_images
from meddiff.engines.evaluate_cases import held_out, method
from meddiff.engines.fit import Session, fit, prepare
from meddiff.engines.predict import bounded, draw_samples
from meddiff.engines.quality import Judge
from meddiff.engines.run import Run
from meddiff.engines.segment import segment
from meddiff.engines.trainer import choose_device
from meddiff.engines.volumes import in_batches
from meddiff.errors import MeddiffError, RunError
from meddiff.imaging.phantom import write_cohort
from meddiff.imaging.volume import Volume
from meddiff.metrics.overlap import dice_per_label
from meddiff.metrics.radiomics import radiomics

CONFIGS = Path(__file__).parents[1] / "configs"
OWN_MARKS = (1 / 8, 1 / 4, 1 / 2, 1)  # of our training, after which it segments
ENDLESS = 1 << 30  # steps
QUICK = [
    "data.size=[32, 32]",
    "data.spacing_mm=[7.5, 7.5]",
    "network.channels=[16, 32]",
    "network.attention=[false, false]",
    "network.patch=1",
    "train.steps=240",
    "train.warmup=20",
]


class Point(NamedTuple):
    """How good something was after how long."""

    name: str
    seconds: float
    quality: float
    more: str = ""


def synthesis(
    run: Run, students: Sequence[Run], n: int, evaluations: Sequence[int], split: str
) -> tuple[list[Point], float]:
    """Distance against time of each way to draw n samples, and the distance of as many training images."""
    own = method("ours", run, choose_device("cpu"))
    if not isinstance(own.model, Preconditioned) or own.config.condition.any or own.config.data.paired:
        raise RunError(f"{run.folder}: MONAI's inferer draws images of nothing; give an unconditional run of images.")
    config = own.config.model_copy(update={"evaluate": own.config.evaluate.model_copy(update={"n": n})})
    real = real_images(config, run.manifest(), split)
    judge = Judge(real.training, real.held_out, real.patients, {"radiomic": radiomics}, config.evaluate.projections)
    ways: dict[str, Callable[[list[str]], Tensor]] = {}
    several = [own.with_sample(f"ours, {count} evaluations", steps=count) for count in evaluations]
    for student in students:
        learned = method("student", student, choose_device("cpu"))
        if learned.card.teacher != own.card.weights:
            raise RunError(f"{student.folder}: was not distilled from {run.folder}. Give a student of that run.")
        several.append(replace(learned, name=f"student, {learned.config.sample.steps} evaluations"))
    for sampled in several:
        ways[sampled.name] = lambda names, one=sampled: torch.stack(list(draw_samples(one.model, one.config, names, 0)))
    size = (1, *config.data.size)
    denoise = bounded(own.model, own.config, torch.device("cpu"), None)  # clamped and cast as our samplers use it
    ways["MONAI DDIM, 50 steps"] = by_monai(denoise, DDIMScheduler(TIMESTEPS), 50, size)
    ways["MONAI DDPM, 1000 steps"] = by_monai(denoise, DDPMScheduler(TIMESTEPS), TIMESTEPS, size)
    seconds, drawn = dict.fromkeys(ways, 0.0), {name: list[Tensor]() for name in ways}
    names = [f"evaluate_{i}" for i in range(judge.n)]
    for part in in_batches(judge.n, config.sample.batch):
        for name, way in ways.items():
            began = time.perf_counter()
            drawn[name].append(way(names[part]))
            seconds[name] += time.perf_counter() - began
    points = []
    for name, images in drawn.items():
        values = judge.values(judge.see(torch.cat(images).clamp(-1, 1)))
        kid = f"radiomic KID {values['radiomic/kid']:.3f}"
        points.append(Point(name, seconds[name], values["sliced_wasserstein"], kid))
    return points, fmean(judge.floor["sliced_wasserstein"])


@dataclass
class Held:
    """Held-out scans, with their label maps in the numbers of the channels."""

    volumes: list[Volume]
    truth: list[np.ndarray]
    names: list[str]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, cases: Sequence[Case], labels: Sequence[str], modality: str | None) -> "Held":
        maps = [numbered(load_label(manifest, case), case, tuple(labels)).array.astype(np.int64) for case in cases]
        return cls([load_image(manifest, c, modality) for c in cases], maps, [c.case for c in cases], tuple(labels))

    def judged(self, act: Callable[[Volume, str], np.ndarray]) -> tuple[float, float]:
        """Mean Dice over labels and scans, and how long it took to segment them."""
        began, values = time.perf_counter(), list[np.ndarray]()
        for volume, name in zip(self.volumes, self.names, strict=True):
            values.append(act(volume, name))
        seconds = time.perf_counter() - began
        numbers = {name: k for k, name in enumerate(self.labels, 1)}
        pairs = zip(values, self.truth, strict=True)
        return fmean(d for found, truth in pairs for d in dice_per_label(found, truth, numbers).values()), seconds


def segmentation(
    config: Config, folder: Path, cases: int, lr: float, marks: Sequence[float]
) -> tuple[list[Point], int, int]:
    """Dice against time of both recipes, ours first, and the parameters of both."""
    manifest = Manifest.read(config.data.manifest)
    images = prepare(config, manifest, "train")
    held = Held.of(manifest, held_out(manifest, "test")[:cases], images.labels, config.data.modality)
    steps, points, own, kept = config.train.steps, list[Point](), 0, list[Card]()
    rare = {"validate_every": steps, "checkpoint_every": steps, "preview_every": steps}
    config = config.model_copy(update={"train": config.train.model_copy(update=rare)})
    clock = Clock()

    def attach(session: Session) -> None:
        nonlocal own
        own = sum(p.numel() for p in session.model.parameters())
        kept.append(session.card)

        def look() -> None:
            clock.stop()
            dice, seconds = held.judged(lambda volume, name: _by_ours(session, volume, name))
            points.append(
                Point(
                    f"ours, {session.engine.state.iteration} steps",
                    clock.seconds + seconds,
                    dice,
                    _parts(clock, seconds),
                )
            )
            clock.start()

        session.engine.add_event_handler(Events.STARTED, clock.start)
        for mark in OWN_MARKS:
            session.engine.add_event_handler(Events.ITERATION_COMPLETED(once=max(1, round(mark * steps))), look)

    fit(config, folder, attach=[attach])
    clock.stop()
    tutorial, whole, clock = Tutorial(config, len(held.labels), lr), clock.seconds, Clock()
    waiting = [mark * whole for mark in marks]
    clock.start()
    loader = training_loader(images, config.train.batch, 0, ENDLESS, config.train.seed)  # the batches of ours, and on
    for now, batch in enumerate(loader):
        tutorial.step(batch, now)
        if clock.now() >= waiting[0]:
            clock.stop()
            dice, seconds = held.judged(lambda volume, name: tutorial.segment(volume, kept[0]))
            points.append(
                Point(f"MONAI's tutorial, {now + 1} steps", clock.seconds + seconds, dice, _parts(clock, seconds))
            )
            if not (waiting := waiting[1:]):
                break
            clock.start()
    return points, own, sum(p.numel() for p in tutorial.net.parameters())


class Clock:
    """Seconds between `start` and `stop`, all of them together."""

    def __init__(self) -> None:
        self.seconds, self.began = 0.0, 0.0

    def start(self) -> None:
        self.began = time.perf_counter()

    def now(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    def stop(self) -> None:
        self.seconds = self.now()


def _parts(clock: Clock, seconds: float) -> str:
    return f"training {clock.seconds:.1f} s, segmenting {seconds:.1f} s"


def _by_ours(session: Session, volume: Volume, name: str) -> np.ndarray:
    with session.ema.on(session.device) as model:
        return segment(model, session.config, session.card, volume, name, 0).probability.argmax(0)


def phantoms(folder: Path, patients: int) -> Path:
    """The manifest of a cohort of computed heads."""
    write_cohort(folder / "heads", patients, format="nifti", modality="ct")
    cases, refused = scan([folder / "heads"], root=folder, key=b"computed heads")
    write_scan(folder / "heads.jsonl", cases, refused)
    return folder / "heads.jsonl"


def show(title: str, what: str, points: Sequence[Point]) -> None:
    print(f"{title}\n{'':34}{'seconds':>10}{what:>12}")
    for point in points:
        print(f"{point.name:34}{point.seconds:10.1f}{point.quality:12.4f}   {point.more}")


def synthesis_result(run: Run, students: Sequence[Run], n: int, evaluations: Sequence[int]) -> dict[str, object]:
    points, floor = synthesis(run, students, n, evaluations, "test")
    show(f"Synthesis, {n} samples; as many training images are {floor:.4f} away", "distance", points)
    ratios = {}
    for who in ["ours", "student"] if students else ["ours"]:
        slow = points[-1]
        fast = [p for p in points if p.name.startswith(who) and p.quality <= slow.quality]
        ratio = slow.seconds / min(p.seconds for p in fast) if fast else 0.0
        print(f"time of DDPM-1000 over the fastest {who} that is not worse: {ratio:.1f}")
        ratios["synthesis_time_vs_monai_ddpm" + ("" if who == "ours" else "_distilled")] = round(ratio, 2)
    print()
    return {**ratios, **_flat("synthesis", points), "synthesis_floor": floor}


def segmentation_result(points: list[Point], own: int, other: int) -> dict[str, object]:
    show(f"Segmentation; {own / 1e6:.2f} million parameters, MONAI's network {other / 1e6:.2f}", "Dice", points)
    ours = [p for p in points if p.name.startswith("ours")]
    best = max((p for p in points if p not in ours), key=lambda p: p.quality)
    good = [p for p in ours if p.quality >= best.quality]
    ratio = best.seconds / min(p.seconds for p in good) if good else 0.0
    print(f"time of the best Dice of MONAI's over our first that is at least as good: {ratio:.2f}")
    sizes = {"segmentation_parameters": own, "segmentation_monai_parameters": other}
    return {"segmentation_time_vs_monai_tutorial": round(ratio, 2), **_flat("segmentation", points), **sizes}


def _flat(task: str, points: Sequence[Point]) -> dict[str, float]:
    return {
        f"{task}_{''.join(c if c.isalnum() else '_' for c in p.name)}_{what}": value
        for p in points
        for what, value in (("s", round(p.seconds, 2)), ("quality", round(p.quality, 5)))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 patients, 32 x 32, small networks, few steps")
    parser.add_argument("--json", type=Path, help="write times, qualities and ratios here")
    parser.add_argument("--only", choices=["synthesis", "segmentation"])
    parser.add_argument("--manifest", type=Path, help="of scans with label maps; computed heads unless given")
    parser.add_argument("--run", type=Path, help="a trained run of synthesis, in place of training one")
    parser.add_argument(
        "--student", type=Path, nargs="+", default=[], help="runs that were distilled from that of --run"
    )
    parser.add_argument("--synthesis", type=Path, default=CONFIGS / "synthesis_2d_ct.yaml", help="config")
    parser.add_argument("--segmentation", type=Path, default=CONFIGS / "segmentation_2d_ct.yaml", help="config")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the configs, as train.steps=1500"
    )
    parser.add_argument("--n", type=int, help="samples of synthesis (default: 256, quick 32)")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 8, 16], help="of ours, for synthesis")
    parser.add_argument("--cases", type=int, help="held-out scans to segment (default: 2, quick 1)")
    parser.add_argument(
        "--marks",
        type=float,
        nargs="+",
        help="multiples of our training time, after which MONAI segments (default: 1 2 3, quick 1)",
    )
    parser.add_argument("--monai-lr", type=float, default=3e-4, help="of the tutorial's Adam (default: 3e-4)")
    given = parser.parse_args()
    if given.student and not given.run:
        parser.error("--student: give its teacher with --run.")
    result: dict[str, object] = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        try:
            manifest = given.manifest or phantoms(folder, 8 if given.quick else 40)
            settings = [f"data.manifest={manifest}", "train.device=cpu", *(QUICK if given.quick else []), *given.set]
            if given.only != "segmentation":
                config = load_config(given.synthesis, [*settings, *(["train.reference=64"] if given.quick else [])])
                run = Run.open(given.run) if given.run else fit(config, folder / "synthesis")
                students = [Run.open(folder) for folder in given.student]
                result |= synthesis_result(run, students, given.n or (32 if given.quick else 256), given.evaluations)
            if given.only != "synthesis":
                config = load_config(given.segmentation, settings)
                marks = sorted(given.marks or ([1] if given.quick else [1, 2, 3]))
                found = segmentation(
                    config, folder / "segmentation", given.cases or (1 if given.quick else 2), given.monai_lr, marks
                )
                result |= segmentation_result(*found)
        except MeddiffError as e:
            parser.error(str(e))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
