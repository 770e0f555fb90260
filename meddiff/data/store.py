"""Preprocessed volumes on disk, read by slice or patch without decoding the rest.

One `.npy` (float16, memory-mapped) and one `.json` (grid, intensity record, foreground) per case. The name is a hash of
the preprocessing settings and of the source's bytes, so that a changed setting or scan can never meet a stale entry.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from meddiff.config import DataConfig
from meddiff.data.manifest import Case, Manifest, load_image
from meddiff.data.transforms import AXES, intensity_record, preprocessing, to_meta
from meddiff.imaging.geometry import Geometry

FORMAT = 1  # raise it when the preprocessing changes what it computes
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

    @property
    def geometry(self) -> Geometry:
        """The preprocessed grid."""
        return Geometry(self.shape, np.array(self.affine))


class Store:
    """The preprocessed volumes of one setting."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.folder = data.cache or default_cache()
        self.compose = preprocessing(data)
        fields = {"spacing_mm", "axis", "intensity", "modality"}
        self.settings = {"format": FORMAT, **data.model_dump(mode="json", include=fields)}

    def key(self, case: Case) -> str:
        """The name of a case's entry."""
        source = case.source(self.data.modality)
        what = {**self.settings, "sha256": source.sha256, "array": source.array, "index": source.index}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]

    def prepare(
        self, manifest: Manifest, cases: Iterable[Case], on_case: Callable[[Case], None] | None = None
    ) -> list[Entry]:
        """The entries of `cases`, made where they are missing.

        ManifestError where a source is not the one that was scanned: it is hashed whenever its size or time changed.
        """
        entries = []
        for case in cases:
            record = self.folder / f"{self.key(case)}.json"
            entry = Entry.model_validate_json(record.read_text()) if record.exists() else None
            if entry is None or entry.stamp != self._stamp(manifest, case):
                manifest.verify(case)
                entry = self._make(manifest, case)
            entries.append(entry)
            if on_case:
                on_case(case)
        return entries

    def _stamp(self, manifest: Manifest, case: Case) -> tuple[tuple[int, int], ...]:
        paths = manifest.resolve(case.source(self.data.modality))
        return tuple((s.st_size, s.st_mtime_ns) for s in (p.stat() for p in paths if p.exists()))

    def array(self, case: Case) -> np.ndarray:
        """The volume (I, J, K), float16, memory-mapped: only what is indexed is read."""
        return np.load(self.folder / f"{self.key(case)}.npy", mmap_mode="r", allow_pickle=False)

    def _make(self, manifest: Manifest, case: Case) -> Entry:
        volume = load_image(manifest, case, self.data.modality)
        image = self.compose({"image": to_meta(volume)})["image"]
        scale, offset = intensity_record(image)
        array = image.numpy()[0]
        along = tuple(i for i in range(3) if i != AXES[self.data.axis])
        entry = Entry(
            shape=array.shape,
            affine=tuple(map(tuple, np.asarray(image.affine, dtype=float).tolist())),
            scale=scale,
            offset=offset,
            modality=volume.modality,
            unit=volume.unit,
            foreground=tuple((array > BACKGROUND).mean(along).round(6).tolist()),
            stamp=self._stamp(manifest, case),
        )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = self.folder / self.key(case)
        _write(name.with_suffix(".npy"), lambda file: np.save(file, array.astype(np.float16)))
        # the record is written last: an entry is whole when its record is there
        _write(name.with_suffix(".json"), lambda file: file.write(entry.model_dump_json().encode()))
        return entry


def default_cache() -> Path:
    """`$MEDDIFF_CACHE`, or the `meddiff` folder of the user's cache. It holds patient images: readable by the user only."""
    base = os.environ.get("MEDDIFF_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "meddiff"


def _write(path: Path, fill: Callable) -> None:
    """A file under its final name only when whole; two processes may write the same one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
