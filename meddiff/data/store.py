"""Preprocessed volumes on disk, read by slice or patch without touching the rest.

One `.npy` (float16, memory-mapped), one `.json` (grid, intensity record, foreground) and, for tasks with labels, one
`.label.npy` (uint8) per case. In a store for slices their axis comes first on the disk, so that each lies in one piece. The
name is a hash of the preprocessing settings and of the source's bytes, so that a changed setting or scan can never meet a
stale entry. The record holds the SHA-256 of the arrays: what is not as it was written is made again.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from meddiff.config import DataConfig
from meddiff.data.arrays import Kept, open_array, write_array, write_cached
from meddiff.data.manifest import Case, Manifest, load_image, load_label
from meddiff.data.memory import available, exhausted
from meddiff.data.transforms import AXES, intensity_record, placing, preprocessing, spacing_by_axis, to_meta
from meddiff.errors import CaseError, GeometryError, ImageError, ManifestError, MeddiffError
from meddiff.imaging.geometry import LETTERS, Geometry
from meddiff.imaging.volume import Volume

log = logging.getLogger(__name__)
FORMAT = 3  # raise it when the preprocessing changes what it computes
MOST_TOGETHER = 8  # cases that are prepared at once
COPIES = 4  # of an image in its own grid and in the model's, float32: room that preparing it is given; 1.7 to 2.7 were measured
BACKGROUND = -0.9  # model units; a voxel above it is foreground


class Entry(BaseModel):
    """What is known of a preprocessed volume without reading it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]  # RAS mm
    scale: float  # model = scale * value + offset
    offset: float
    modality: str
    unit: str
    foreground: tuple[float, ...]  # share of voxels above BACKGROUND, per slice along data.axis
    stamp: tuple[tuple[int, int], ...]  # size and modification time of the source's files when they were last hashed
    arrays: dict[str, Kept]  # by suffix

    @property
    def geometry(self) -> Geometry:
        """The preprocessed grid."""
        return Geometry(self.shape, np.array(self.affine))


class Store:
    """The preprocessed volumes of one setting, with label maps if `labels` names any."""

    def __init__(self, data: DataConfig, labels: Sequence[str] = ()) -> None:  # the i-th name becomes label i + 1
        self.data, self.labels = data, tuple(labels)
        self.folder = data.cache or default_cache()
        self.compose = preprocessing(data)
        self.first = AXES[data.axis] if len(data.size) == 2 else 0  # the axis that lies first on the disk
        fields = {"spacing_mm", "axis", "intensity", "modality"}
        self.settings = {"format": FORMAT, "first": self.first, **data.model_dump(mode="json", include=fields)}

    def key(self, case: Case) -> str:
        """The name of a case's entry."""
        source = case.source(self.data.modality)
        what = {**self.settings, "sha256": source.sha256, "array": source.array, "index": source.index}
        if self.labels:
            what |= {"labels": self.labels, "numbers": case.labels, "label": case.label and case.label.sha256}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def prepare(
        self,
        manifest: Manifest,
        cases: Iterable[Case],
        on_case: Callable[[Case], None] | None = None,
        verify: bool = False,  # hash what is there already; else only what has another size or time than it was written with
    ) -> list[Entry]:
        """The entries of `cases`, made where they are missing or damaged, several at once.

        CaseError where a source cannot be read, or is not the one that was scanned: it is hashed whenever its size or time
        changed. RunError where the cache cannot be written.
        """
        cases, entries = list(cases), []

        def one(case: Case) -> Entry:
            try:
                return self._entry(manifest, case, verify)
            except (ImageError, GeometryError, ManifestError) as e:
                raise CaseError(_named(case, e), case.case) from e
            except (MemoryError, RuntimeError) as e:
                if not exhausted(e):
                    raise
                raise CaseError(self._too_large(case), case.case) from e

        with ThreadPoolExecutor(self._together(cases)) as pool:
            for case, entry in zip(cases, pool.map(one, cases), strict=True):
                entries.append(entry)
                if on_case:
                    on_case(case)
        return entries

    def _entry(self, manifest: Manifest, case: Case, verify: bool) -> Entry:
        entry = self._found(case, verify)
        if entry is None or entry.stamp != self._stamp(manifest, case):
            manifest.verify(case)
            entry = self._make(manifest, case)
        return entry

    def _found(self, case: Case, verify: bool) -> Entry | None:
        """The record of a case; None where there is none, or its arrays are not those that were written."""
        try:
            entry = Entry.model_validate_json(self._path(case, ".json").read_bytes())
            paths = {suffix: self._path(case, suffix) for suffix in entry.arrays}
            now = {
                suffix: kept if kept.untouched(paths[suffix]) and not verify else Kept.of(paths[suffix])
                for suffix, kept in entry.arrays.items()
            }
        except (FileNotFoundError, ValidationError):
            return None
        damaged = [paths[suffix] for suffix, kept in entry.arrays.items() if now[suffix].sha256 != kept.sha256]
        if damaged:
            log.warning("%s: is not what was written there; made again from the scan of %s.", damaged[0], case.case)
            return None
        if now != entry.arrays:
            entry = entry.model_copy(update={"arrays": now})
            self._record(case, entry)
        return entry

    def _path(self, case: Case, suffix: str) -> Path:
        return self.folder / f"{self.key(case)}{suffix}"

    def _record(self, case: Case, entry: Entry) -> None:
        write_cached(self._path(case, ".json"), lambda file: file.write(entry.model_dump_json().encode()))

    def _bytes(self, case: Case) -> float:
        """What an image takes in its own grid and in the model's, float32."""
        grid = case.geometry
        wanted = {end: mm for ends, mm in zip(LETTERS, spacing_by_axis(self.data), strict=True) for end in ends}
        finer = [own / wanted[end] for own, end in zip(grid.spacing_mm, grid.orientation, strict=True)]
        return 4 * math.prod(case.shape) * (1 + math.prod(ratio for ratio in finer if not math.isnan(ratio)))

    def _together(self, cases: Sequence[Case]) -> int:
        """How many cases are prepared at once: no more than there are cores, and than memory has room for."""
        largest = max((self._bytes(case) for case in cases), default=1)
        return max(1, min(MOST_TOGETHER, os.cpu_count() or 1, int(available() // (COPIES * largest))))

    def _refuse_larger_than_memory(self, case: Case) -> None:
        """ManifestError where not even one copy in each grid finds room."""
        if self._bytes(case) > available():
            raise ManifestError(self._too_large(case))

    def _too_large(self, case: Case) -> str:
        size, need, free = " x ".join(map(str, case.shape)), self._bytes(case) / 2**30, available() / 2**30
        return (
            f"{case.case}: its {size} voxels need {need:.1f} GiB of memory at the least, {free:.1f} GiB are free. Free some, "
            "prepare it on a larger machine, set a coarser data.spacing_mm, or remove the case."
        )

    def _stamp(self, manifest: Manifest, case: Case) -> tuple[tuple[int, int], ...]:
        paths = manifest.resolve(case.source(self.data.modality))
        return tuple((s.st_size, s.st_mtime_ns) for s in (p.stat() for p in paths if p.exists()))

    def array(self, case: Case) -> np.ndarray:
        """The volume (I, J, K), float16, memory-mapped: only what is indexed is read. CaseError where it cannot be."""
        return self._read(case, ".npy")

    def label(self, case: Case) -> np.ndarray:
        """The label map on the grid of `array`, uint8, memory-mapped: 0 is background. CaseError where it cannot be read."""
        return self._read(case, ".label.npy")

    def _read(self, case: Case, suffix: str) -> np.ndarray:
        try:
            return np.moveaxis(open_array(self._path(case, suffix)), 0, self.first)
        except ManifestError as e:
            raise CaseError(f"{case.case}: {e}", case.case) from e

    def forget(self, case: Case) -> bool:
        """Delete the entry of a case; whether there was one."""
        found = False
        for suffix in (".json", ".npy", ".label.npy"):  # the record first: without it there is no entry
            path = self._path(case, suffix)
            found |= path.exists()
            path.unlink(missing_ok=True)
        return found

    def _label(self, manifest: Manifest, case: Case) -> np.ndarray:
        volume = numbered(load_label(manifest, case), case, self.labels)
        return placing(self.data, label=True)({"image": to_meta(volume)})["image"].numpy()[0].astype(np.uint8)

    def _make(self, manifest: Manifest, case: Case) -> Entry:
        self._refuse_larger_than_memory(case)
        stamp = self._stamp(manifest, case)  # of before it is read
        volume = load_image(manifest, case, self.data.modality)
        image = self.compose({"image": to_meta(volume)})["image"]
        scale, offset = intensity_record(image)
        array = image.numpy()[0]
        along = tuple(i for i in range(3) if i != AXES[self.data.axis])
        arrays = {".npy": array.astype(np.float16)}
        if self.labels:
            arrays[".label.npy"] = self._label(manifest, case)
        for suffix, values in arrays.items():
            write_array(self._path(case, suffix), np.ascontiguousarray(np.moveaxis(values, self.first, 0)))
        entry = Entry(
            shape=array.shape,
            affine=tuple(map(tuple, np.asarray(image.affine, dtype=float).tolist())),
            scale=scale,
            offset=offset,
            modality=volume.modality,
            unit=volume.unit,
            foreground=tuple((array > BACKGROUND).mean(along).round(6).tolist()),
            stamp=stamp,
            arrays={suffix: Kept.of(self._path(case, suffix)) for suffix in arrays},
        )
        self._record(case, entry)  # last: an entry is whole when its record is there
        return entry


def label_names(manifest: Manifest, data: DataConfig) -> tuple[str, ...]:
    """The labels to learn, in the order of their numbers: those of `data.labels`, or all but background.

    ManifestError where a case has no label map or none of that name.
    """
    cases = manifest.cases
    for case in cases:
        if case.label is None:
            raise ManifestError(
                f"{case.case}: has no label map, which this task learns from. Remove the case, or scan its labels too."
            )
    known = cases[0].labels
    names = data.labels or tuple(sorted((n for n in known if known[n] != 0), key=known.__getitem__))
    if not names:
        raise ManifestError(f"{cases[0].case}: its label map names no label but background. Scan labels with content.")
    for case in cases:
        lacking = [name for name in names if name not in case.labels]
        if lacking:
            raise ManifestError(
                f"{case.case}: its labels are {', '.join(case.labels)}; {', '.join(lacking)} is missing. "
                "Name labels that every case has with data.labels, or correct the data set's description."
            )
    return names


def numbered(volume: Volume, case: Case, names: Sequence[str]) -> Volume:
    """The label map with names[i] as i + 1 and everything else as 0; ManifestError for a number without a name."""
    found = np.unique(volume.array)
    strange = sorted(set(found.tolist()) - set(case.labels.values()) - {0})
    if strange:
        raise ManifestError(
            f"{case.case}: its label map holds {strange}, which no label of {case.labels} is. "
            "Correct the map, or name the numbers in the data set's description and scan again."
        )
    array = np.zeros(volume.array.shape, np.float32)
    for i, name in enumerate(names, 1):
        array[volume.array == case.labels[name]] = i
    return Volume(array, volume.geometry, volume.modality, volume.unit)


def _named(case: Case, error: MeddiffError) -> str:
    """The message of an error with the case it is about."""
    return str(error) if str(error).startswith(case.case) else f"{case.case}: {error}"


def default_cache() -> Path:
    """`$MEDDIFF_CACHE`, or the `meddiff` folder of the user's cache. It holds patient images: readable by the user only."""
    base = os.environ.get("MEDDIFF_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "meddiff"
