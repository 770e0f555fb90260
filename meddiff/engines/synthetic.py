"""From a trained run to a set of synthetic cases: files, sidecars, manifest. Taken up where it was left."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from meddiff.config import Config
from meddiff.data.conditions import facts
from meddiff.data.givens import Given
from meddiff.data.manifest import Case, Manifest
from meddiff.data.transforms import placed
from meddiff.engines.asked import Asked
from meddiff.engines.card import Card, build_task, versions
from meddiff.engines.predict import check_task, draw_samples, evaluations
from meddiff.engines.processes import barrier, first, gathered, mine
from meddiff.engines.sets import CaseSet, Write, Written
from meddiff.engines.volumes import in_batches
from meddiff.tasks.synthesis import Synthesis

CLASS_COLUMN = "class"  # of the manifest, where the run's classes come from a label


def sample_set(
    model: nn.Module,
    card: Card,
    config: Config,
    n: int,
    folder: Path,
    seed: int,
    write: Write,
    asked: Asked | None = None,
    on_case: Callable[[Written], None] | None = None,  # told each case, also those that were there
) -> Manifest:
    """`n` samples as files, each beside a JSON sidecar, and the manifest of the set.

    Samples that the folder holds already are kept. Several processes share the batches, and a batch has the same bytes whoever
    draws it; each returns the whole manifest. Refuses a folder that holds anything but this very set, and a request
    that the model does not know.
    """
    check_task(config)
    asked = asked or Asked()
    task = build_task(config, card.known)
    assert isinstance(task, Synthesis)
    asked.check(config, task)
    guided = config.sample.guidance != 1
    settings = {
        "weights": card.weights,
        "step": card.step,
        "seed": seed,
        "sample": config.sample.model_dump(mode="json", exclude={"batch"}),
        "evaluations": evaluations(config.sample, guided) if config.baseline is None else 1,
        "versions": versions(),
    }
    own = CaseSet(folder, settings, "sample_")
    barrier()  # every process has looked at the folder before one writes there
    cases: list[Case] = []
    for part in mine(in_batches(n, config.sample.batch)):
        names = [f"sample_{i:05d}" for i in range(part.start, part.stop)]
        wanted = [asked.of(i, seed) for i in range(part.start, part.stop)]
        there = [own.kept(name, {"asked": record}) for name, (record, _) in zip(names, wanted, strict=True)]
        # a batch that is there in part is drawn as a whole, so that the bytes are those of an uninterrupted run
        drawn = draw_samples(model, config, names, seed, cond=asked.condition(task, wanted)) if None in there else ()
        for name, (record, given), written, sample in zip(
            names, wanted, there, drawn or [None] * len(names), strict=True
        ):
            if written is None:
                assert sample is not None
                volumes = task.outcome(sample, card.space, given.values.get("label") if given else None)
                written = write(folder / name, volumes["image"], volumes.get("label"), card.labels)
                own.keep(name, {"asked": record}, written)
            if not written.picture:
                cases.append(_case(own, name, written, card, config, record, given))
            if on_case:
                on_case(written)
    every = sorted((case for part in gathered(cases) for case in part), key=lambda case: case.case)
    manifest = Manifest(tuple(every), folder.absolute())
    if every and first():
        manifest.write(folder / "manifest.jsonl")
    return manifest


def _case(
    own: CaseSet,
    name: str,
    written: Written,
    card: Card,
    config: Config,
    record: Mapping[str, Any],  # what it was asked for
    given: Given | None,
) -> Case:
    """The line of the manifest. What was drawn for somebody's label map stays in that patient's split."""
    space, source = card.space, given.case if given else None
    grid = placed(np.zeros(config.data.size, np.uint8), space.spacing_mm, space.axis).geometry
    classes = {} if source is None else facts(config, source)
    if "class" in record:
        assert config.condition.classes is not None
        classes[config.condition.classes.column or CLASS_COLUMN] = record["class"]
    return own.case(
        name,
        written,
        grid,
        (space.modality, space.unit),
        labels=card.labels,
        classes=classes | {key: f"{value:g}" for key, value in record.get("covariates", {}).items()},
        patient=name if source is None else source.patient,
        split="train" if source is None else source.split,
    )
