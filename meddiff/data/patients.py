"""Batches of patients instead of images: who is in a step is drawn by chance that nobody can repeat (Poisson sampling)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from meddiff.data.loader import Draw, Items, outlive
from meddiff.seeds import derive


def by_patient(images: Items) -> dict[str, list[int]]:
    """The numbers of each patient's items, over all of its cases."""
    own: dict[str, list[int]] = {}
    for number, item in enumerate(images.items):
        own.setdefault(images.cases[item.case].patient, []).append(number)
    return own


class PatientSteps(Sampler[list[Draw]]):
    """The batches of the steps `start` to `stop`: each patient is in each with probability `rate`, `number` images of each.

    Which images, and every seed, follow from the seed, the step and the patient's own name alone: who else is in the data or
    in the batch changes nothing about a patient's part.
    """

    def __init__(
        self,
        patients: Mapping[str, Sequence[int]],  # their items
        rate: float,
        number: int,
        start: int,
        stop: int,
        seed: int,
        chance: Generator,  # `seeds.secret`: the guarantee needs that nobody knows who was drawn
    ) -> None:
        self.patients, self.rate, self.number = patients, rate, number
        self.start, self.stop, self.seed, self.chance = start, stop, seed, chance

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            drawn = torch.rand(len(self.patients), generator=self.chance, dtype=torch.float64) < self.rate
            chosen = [name for name, there in zip(self.patients, drawn.tolist(), strict=True) if there]
            yield [draw for name in chosen for draw in self._of(name, step)]

    def _of(self, name: str, step: int) -> list[Draw]:
        """As many different images of a patient as there are, then the same ones again with other seeds."""
        order = np.random.default_rng(derive(self.seed, "images", step, name)).permutation(self.patients[name])
        items = np.resize(order, self.number)
        return [Draw(int(item), derive(self.seed, "item", step, name, i)) for i, item in enumerate(items)]


def patient_loader(images: Items, steps: PatientSteps) -> DataLoader:
    """Batches as those of `training_loader`, the images of a patient one after the other; a batch may be of nobody.

    Such a batch is {"unreadable": ()}.
    """
    return DataLoader(
        cast(Dataset, images),
        batch_sampler=steps,
        collate_fn=_collated,
        num_workers=images.data.workers,
        persistent_workers=images.data.workers > 0,
        worker_init_fn=outlive if images.data.workers else None,
    )


def _collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    return default_collate(items) if items else {"unreadable": torch.empty(0, dtype=torch.long)}


def each_patient(batch: Mapping[str, Any], number: int) -> Iterator[dict[str, Tensor | list[str]]]:
    """The parts of a batch, `number` images of one patient each."""
    for first in range(0, len(batch["unreadable"]), number):
        yield {name: values[first : first + number] for name, values in batch.items()}
