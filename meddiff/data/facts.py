"""What the scan learns from one file: its digest, its grid, and the values of a label map."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from meddiff.data.files import digest_file
from meddiff.errors import MeddiffError
from meddiff.imaging.body_parts import Face
from meddiff.imaging.dicom_label import read_label
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import nifti_facts, read_nifti

Role = Literal["plain", "image", "label"] | Geometry  # plain: the digest is all; a grid: a DICOM label map on it
MOST_LABELS = 16  # an integer image with no more distinct values than this is taken for a label map
LABEL_SHRINKS = 0.1  # gzip makes a label map at least ten times smaller, a scan two to four times
ALWAYS_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Facts:
    """Of one file; `error` says why there are no others."""

    sha256: str = ""
    geometry: Geometry | None = None
    values: frozenset[int] | None = None  # of a label map, or of an image that looks like one
    names: Mapping[int, str] = field(default_factory=dict)  # of the labels in a DICOM file
    face: Face | None = None  # where the file says it
    reason: str = ""
    error: str = ""


@dataclass(frozen=True)
class Share:
    """How several processes read the files of one scan."""

    mine: Callable[[Sequence[Path]], Sequence[Path]] = lambda paths: paths  # those that this process reads
    gathered: Callable[[dict[Path, Facts]], list[dict[Path, Facts]]] = lambda facts: [facts]  # what each of them read


ALONE = Share()


def gather(
    roles: Mapping[Path, Role],
    progress: Callable[[int, int], None] | None = None,
    regions: Sequence[str] = (),
    share: Share = ALONE,
) -> dict[Path, Facts]:
    """Facts of every file, read by a few threads, in the order of `roles`; `progress` is told (done, total).

    `regions` of DICOM label maps become labels, as in `imaging/regions.py`; without any, all of them.
    """
    own = share.mine(list(roles))
    facts = {}
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for path, fact in zip(own, pool.map(partial(_one, regions), own, [roles[p] for p in own]), strict=True):
            facts[path] = fact
            if progress:
                progress(len(facts), len(own))
    every = {path: fact for part in share.gathered(facts) for path, fact in part.items()}
    return {path: every[path] for path in roles}


def _one(regions: Sequence[str], path: Path, role: Role) -> Facts:
    try:
        sha256 = digest_file(path)
        if role == "plain":
            return Facts(sha256)
        if isinstance(role, Geometry):
            label, names = read_label(path, role, regions)
            return Facts(sha256, label.geometry, _values(label.array), names)
        if role == "label":
            label = read_nifti(path, label=True, modality="SEG")
            return Facts(sha256, label.geometry, _values(label.array))
        said = nifti_facts(path)
        return Facts(sha256, said.geometry, _label_values(path, said.geometry, said.stored), face=said.face)
    except (MeddiffError, OSError) as error:
        return Facts(reason="unreadable" if role in ("plain", "image") else "label-unreadable", error=str(error))


def _label_values(path: Path, geometry: Geometry, stored: np.dtype) -> frozenset[int] | None:
    """The values of an image that looks like a label map; None for any other. Reads voxels only where it may be one."""
    if stored.kind not in "iu":
        return None
    size = path.stat().st_size
    if size > ALWAYS_READ_BYTES and path.suffix == ".gz" and size > LABEL_SHRINKS * _bytes(geometry, stored):
        return None
    array = read_nifti(path).array
    if not np.array_equal(array, np.rint(array)):  # scl_slope made intensities of the integers
        return None
    values = _values(array)
    return values if len(values) <= MOST_LABELS else None


def _bytes(geometry: Geometry, stored: np.dtype) -> int:
    return int(np.prod(geometry.shape)) * stored.itemsize


def _values(array: np.ndarray) -> frozenset[int]:
    return frozenset(int(value) for value in np.unique(array))
