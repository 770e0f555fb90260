"""Variants of real cases: noised to a level, then denoised (SDEdit, Meng et al. 2022), on the scan's own grid."""

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from meddiff.config import Config, SampleConfig
from meddiff.data.conditions import given_data, told
from meddiff.data.manifest import Case, Manifest, load_image, load_label
from meddiff.data.store import BACKGROUND, numbered
from meddiff.data.transforms import placing, preprocessing, to_meta
from meddiff.diffusion.noise import draw
from meddiff.diffusion.samplers import SAMPLERS, grid_steps
from meddiff.diffusion.sigmas import GRIDS
from meddiff.engines.card import Card, build_task, versions
from meddiff.engines.predict import bounded, check_task, check_voxels
from meddiff.engines.sets import CaseSet, Write
from meddiff.engines.volumes import Seen, in_batches
from meddiff.imaging.volume import Volume
from meddiff.seeds import generator
from meddiff.tasks.synthesis import Synthesis

FINE = 1000  # levels of the grid that a strength chooses from


def strength_grid(sample: SampleConfig, strength: float) -> Tensor:
    """The end of the sampling grid from the level that lies `strength` (0..1) of the way to its noisiest; decreasing, to 0.

    >>> strength_grid(SampleConfig(steps=5, sampler="euler"), 1.0)[0]
    tensor(80.)
    """
    levels = GRIDS[sample.grid](FINE, sample.sigma_min, sample.sigma_max)[:-1]
    start = float(levels[round((1 - strength) * (FINE - 1))])
    steps = max(1, ceil(strength * grid_steps(sample.sampler, sample.steps)))
    if steps == 1:
        return torch.tensor([start, 0.0])
    return GRIDS[sample.grid](steps, sample.sigma_min, start)


def vary_set(
    model: nn.Module,
    card: Card,
    config: Config,
    manifest: Manifest,
    cases: Sequence[Case],
    folder: Path,
    strength: float,  # 0: nothing but the model's grid, 1: no more of the case than its condition
    copies: int,
    seed: int,
    write: Write,
    on_case: Callable[[Case], None] | None = None,
) -> Manifest:
    """`copies` variants of each case as files with sidecars, and their manifest, in the patients' own splits.

    The label map stays the case's; where the run draws label maps it is drawn anew with the image. A variant has the class
    and whatever else the run conditions on from its case. RunError where the folder holds anything but this very set;
    ImageError where a scan is not for this model.
    """
    check_task(config)
    check_voxels(config)
    settings = {
        "weights": card.weights,
        "step": card.step,
        "seed": seed,
        "strength": strength,
        "sigma": float(strength_grid(config.sample, strength)[0]),  # model units
        "sample": config.sample.model_dump(mode="json", exclude={"batch"}),
        "versions": versions(),
    }
    own = CaseSet(folder, settings, "variant_")
    lines = []
    for case in cases:
        read: Source | None = None
        for copy in range(copies):
            name = f"variant_{case.case.replace('/', '_')}_{copy}"
            record = {"source": case.case, "source_sha256": case.source(config.data.modality).sha256, "copy": copy}
            written = own.kept(name, record)
            if written is None:
                read = read or Source(config, card, manifest, case)
                image, label = read.variant(model, strength, seed, name)
                written = write(folder / name, image, label, read.labels)
                own.keep(name, record, written)
            lines.append(
                own.case(
                    name,
                    written,
                    case.geometry,
                    (card.space.modality, card.space.unit),
                    labels={name: number for name, number in case.labels.items() if number},
                    classes=case.classes,
                    patient=case.patient,
                    split=case.split,
                )
            )
        if on_case:
            on_case(case)
    result = Manifest(tuple(lines), folder.absolute())
    result.write(folder / "manifest.jsonl")
    return result


class Source:
    """A real case in front of a model, with all that the model conditions on."""

    def __init__(self, config: Config, card: Card, manifest: Manifest, case: Case) -> None:
        task = build_task(config, card.known)
        assert isinstance(task, Synthesis)
        self.config, self.task, self.card = config, task, card
        self.volume = load_image(manifest, case, config.data.modality)
        self.label = load_label(manifest, case) if case.label else None
        self.labels = {name: number for name, number in case.labels.items() if number}
        self.seen = Seen(self.volume, config, card)
        self.batch = {"image": self.seen.images.clamp(-1, 1)}
        count = len(self.seen.images)
        if config.needs_labels:
            channels = numbered(load_label(manifest, case), case, tuple(card.labels))
            there = placing(config.data, label=True)({"image": to_meta(channels)})["image"].as_tensor()
            self.batch["label"] = self.seen.batch(there, outside=0.0)
        if config.condition.image:
            other = load_image(manifest, case, config.condition.image.modality)
            given = preprocessing(given_data(config.data, config.condition.image))({"image": to_meta(other)})["image"]
            self.batch["given"] = self.seen.batch(given.as_tensor(), outside=-1.0)
        self.batch |= {name: v.expand(count, *v.shape[1:]) for name, v in told(config, card.known, [case]).items()}

    def variant(self, model: nn.Module, strength: float, seed: int, name: str) -> tuple[Volume, Volume | None]:
        """The image of a variant and its label map, on the scan's own grid.

        Slices that show less than `data.min_foreground`, which the model was never trained on, stay as they are.
        """
        config, sample, seen = self.config, self.config.sample, self.seen
        device = next(model.parameters()).device
        levels = strength_grid(sample, strength)
        x0, cond = self.task.x0(self.batch), self.task.condition(self.batch)
        denoise = seen.windowed(model, sample)
        share = (seen.images > BACKGROUND).flatten(1).float().mean(1)
        rows = torch.nonzero((share >= config.data.min_foreground) | (seen.dims == 3))[:, 0]
        result = x0.clone()
        with torch.no_grad():
            for part in in_batches(len(rows), sample.batch):
                here = rows[part]
                given = None if cond is None else cond.map(lambda v, here=here: v[here].to(device))  # type: ignore[misc]
                starts, way = ([generator(seed, what, name, int(i)) for i in here] for what in ("start", "way"))
                x = x0[here] + levels[0] * draw(config.diffusion.noise, x0.shape[1:], starts)
                steered = bounded(denoise, config, device, given)
                drawn = SAMPLERS[sample.sampler](steered, x.to(device), levels, given, generators=way)
                result[here] = drawn.cpu()
        maps = seen.back(seen.unbatch(result))
        values = (maps[0].clip(-1, 1) - seen.offset) / seen.scale
        image = Volume(values.astype(np.float32), self.volume.geometry, self.volume.modality, self.volume.unit)
        if not config.data.paired:
            return image, self.label
        label = self.task.numbers(maps[1:].argmax(0))
        return image, Volume(label, self.volume.geometry, "SEG", "label")
