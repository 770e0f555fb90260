"""Manifest + transforms + store -> batches. What step k sees is a function of the seed and k alone."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from monai.transforms import Compose
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from meddiff.config import DataConfig
from meddiff.data.arrays import read_ahead
from meddiff.data.manifest import Case, Manifest
from meddiff.data.store import BACKGROUND, Entry, Store
from meddiff.data.transforms import AXES, augmentation
from meddiff.errors import CaseError, ManifestError
from meddiff.seeds import derive

REDRAWS = 8  # random patches tried for one with enough foreground, and items for one that can be read
GRACE_S = 60  # that a loader process lives after SIGTERM
OUTSIDE = {"image": -1.0, "label": 0.0, "given": -1.0}  # what lies around a volume: background


@dataclass(frozen=True)
class Item:
    """One thing to train on: a slice of a case, or a case to take patches from."""

    case: int
    slice: int | None


@dataclass(frozen=True)
class Draw:
    """One place in a batch: which item, and the seed of everything random about it."""

    item: int
    seed: int


class Items(Protocol):
    """What a loader takes: images, or what stands for them."""

    data: DataConfig
    items: list[Item]
    cases: tuple[Case, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """One place of a training batch."""
        ...

    def image(self, index: int, seed: int) -> dict[str, Tensor]:
        """Item `index` without augmentation."""
        ...


def readable(images: Items, draw: Draw) -> tuple[Draw, dict[str, Tensor], int]:
    """An item with its draw, and the number of the case that another one stands in for, -1 where none does.

    The other one is the same each time. CaseError where `REDRAWS` others cannot be read either.
    """
    try:
        return draw, images.image(draw.item, draw.seed), -1
    except CaseError as e:
        why = e
    for attempt in range(REDRAWS):
        other = replace(draw, item=derive(draw.seed, "instead", attempt) % len(images))
        try:
            return other, images.image(other.item, other.seed), images.items[draw.item].case
        except CaseError:
            continue
    raise why


class Images(Dataset):
    """The slices (2D) or volumes (3D) of some cases, in model units, cut or padded to `data.size`."""

    def __init__(
        self,
        manifest: Manifest,
        cases: Sequence[Case],
        data: DataConfig,
        dims: int,
        entries: Sequence[Entry],
        labels: Sequence[str] = (),  # names; with them every image has a label map
        given: Store | None = None,  # of another image of each case, prepared already
        told: Mapping[str, Tensor] | None = None,  # (cases, ...) what else is known of each case
    ) -> None:
        self.cases, self.data, self.dims, self.entries = tuple(cases), data, dims, tuple(entries)
        self.store, self.labels = Store(data, labels), tuple(labels)
        self.given, self.told = given, dict(told or {})
        self.augment: Compose | None = augmentation(data, dims)
        self.random_crop = (data.crop or ("random" if dims == 3 else "centre")) == "random"
        self.items = [item for i, entry in enumerate(entries) for item in self._items(i, entry)]
        if not self.items:
            raise ManifestError(
                f"{manifest.folder}: none of {len(self.cases)} cases has a slice with more than {data.min_foreground:.0%} "
                "foreground; lower data.min_foreground, or check data.intensity (is its window right for these images?)."
            )

    def _items(self, case: int, entry: Entry) -> list[Item]:
        if self.dims == 3:
            return [Item(case, None)]
        return [Item(case, k) for k, share in enumerate(entry.foreground) if share >= self.data.min_foreground]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor | str | int]:
        draw, item, unreadable = readable(self, draw)
        if self.augment is not None:
            self.augment.set_random_state(seed=derive(draw.seed, "augment") % 2**32)
            item = {name: convert_to_tensor(value) for name, value in self.augment(item).items()}
        case = self.cases[self.items[draw.item].case].case
        return {**item, "case": case, "seed": draw.seed, "unreadable": unreadable}

    def image(self, index: int, seed: int) -> dict[str, Tensor]:
        """Item `index` without augmentation: "image", and "label" and "given" if there are any, each (1, *size) float32.

        What is told of its case lies beside them. The seed places a random patch.
        """
        item = self.items[index]
        case = self.cases[item.case]
        arrays = {"image": self.store.array(case)}
        if self.labels:
            arrays["label"] = self.store.label(case)
        if self.given is not None:
            arrays["given"] = self.given.array(case)
        if item.slice is not None:
            arrays = {name: self.plane(array, item.slice) for name, array in arrays.items()}
        whole = arrays["image"]
        start = self.place(whole, seed) if self.random_crop else centred(whole.shape, self.data.size)
        maps = {name: cut(array, self.data.size, start, OUTSIDE[name]) for name, array in arrays.items()}
        return maps | {name: values[item.case] for name, values in self.told.items()}

    def plane(self, array: np.ndarray, number: int) -> np.ndarray:
        """A slice of a volume, a view."""
        return np.moveaxis(array, AXES[self.data.axis], 0)[number]

    def place(self, array: np.ndarray, seed: int) -> list[int]:
        """Where a random patch begins, drawn again while it holds too little foreground."""
        rng = np.random.default_rng(derive(seed, "crop"))
        for _ in range(REDRAWS):
            room = [n - s for n, s in zip(array.shape, self.data.size, strict=True)]
            start = [int(rng.integers(0, r + 1)) if r > 0 else r // 2 for r in room]
            if not self.data.min_foreground:
                break
            patch = cut(array, self.data.size, start, OUTSIDE["image"])
            if (patch > BACKGROUND).float().mean() >= self.data.min_foreground:
                break
        return start


def centred(shape: Sequence[int], size: Sequence[int]) -> list[int]:
    """Where `size` voxels begin in the middle of `shape`; negative where they reach beyond it."""
    return [(n - s) // 2 for n, s in zip(shape, size, strict=True)]


def cut(array: np.ndarray, size: Sequence[int], start: Sequence[int], outside: float) -> Tensor:
    """`size` voxels from `start`, (1, *size) float32; what lies outside of the array is `outside`."""
    inside = tuple(slice(max(a, 0), max(a + s, 0)) for a, s in zip(start, size, strict=True))
    found = array[inside]
    read_ahead(found)
    values = torch.from_numpy(found)  # whose conversion is 3 times as fast as numpy's
    if found.shape == tuple(size):
        return values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)[None]
    patch = torch.full(tuple(size), outside)
    before = [max(-a, 0) for a in start]
    patch[tuple(slice(b, b + n) for b, n in zip(before, found.shape, strict=True))] = values
    return patch[None]


class Steps(Sampler[list[Draw]]):
    """The batches of the steps `start` to `stop`: item p of the run is item p mod n of a shuffle of its own epoch."""

    def __init__(
        self,
        items: int,
        batch: int,  # of all processes together
        start: int,
        stop: int,
        seed: int,
        part: slice = slice(None),  # of the batch: this process's places in it
    ) -> None:
        self.items, self.batch, self.start, self.stop, self.seed = items, batch, start, stop, seed
        self.part = part

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=int)
        for step in range(self.start, self.stop):
            draws = []
            for position in range(step * self.batch, (step + 1) * self.batch)[self.part]:
                if position // self.items != epoch:
                    epoch = position // self.items
                    order = np.random.default_rng(derive(self.seed, "order", epoch)).permutation(self.items)
                draws.append(Draw(int(order[position % self.items]), derive(self.seed, "item", position)))
            yield draws


def training_loader(
    images: Items, batch: int, start: int, stop: int, seed: int, part: slice = slice(None)
) -> DataLoader:
    """Batches {"image": (B, 1, *size), "label", "given": same, "case": [name], "seed": (B,)} for the steps `start` to `stop`.

    Beside them is what `Images.told` holds, (B, ...). Of every batch only the `part` of this process. "unreadable" (B,) is the
    number of the case that another one stands in for, -1 where the item is the one that was drawn.
    """
    return DataLoader(
        cast(Dataset, images),
        batch_sampler=Steps(len(images), batch, start, stop, seed, part),
        num_workers=images.data.workers,
        persistent_workers=images.data.workers > 0,
        worker_init_fn=outlive if images.data.workers else None,
    )


def close(loader: DataLoader) -> None:
    """End the loader processes now, also where an error still holds on to them: torch would raise it again later."""
    if loader._iterator is not None:  # kept by a loader with processes only
        with suppress(RuntimeError):  # that one of them was killed, which the run has said
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


def evenly(images: Items, most: int) -> list[int]:
    """The numbers of at most `most` items, spread evenly over all of them."""
    return np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)).tolist()


def outlive(worker: int) -> None:
    """Let a loader process live on after a signal to all of a job, as long as the last step and its checkpoint take."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def fixed(images: Items, most: int) -> dict[str, Tensor]:
    """A batch of at most `most` items spread evenly, each (n, 1, *size); the same ones each time, without augmentation."""
    chosen = evenly(images, most)
    items = [images.image(i, derive(0, "fixed", i)) for i in chosen]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    return {**batch, "seed": torch.tensor([derive(0, "fixed", i) for i in chosen])}


def augmented(images: Items, most: int, seed: int) -> dict[str, Tensor]:
    """A batch of at most `most` items spread evenly, as training sees them, each (n, 1, *size)."""
    items = [images[Draw(i, derive(seed, "reference", i))] for i in evenly(images, most)]
    return {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in items[0] if name != "case"}
