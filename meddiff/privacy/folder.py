"""A folder of scans without identity: every file is written under a new name, or quarantined with a reason."""

import errno
import gzip
import json
import logging
import multiprocessing
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom

from meddiff.data.files import absolute, write_whole
from meddiff.errors import ImageError, PrivacyError
from meddiff.imaging.dicom import find_series, read_series
from meddiff.imaging.face import face_mask
from meddiff.imaging.nifti import nifti_without_text, read_nifti
from meddiff.privacy.clean import profile
from meddiff.privacy.files import Look, deidentified, look, read
from meddiff.privacy.keyed import Keyed
from meddiff.privacy.pixels import QuarantinedError, require_ocr

log = logging.getLogger(__name__)

AUDIT = "audit.json"
OURS = re.compile(r"P[0-9a-f]{12}|nifti|audit\.json")  # what an earlier, perhaps interrupted, run left in the output
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class Options:
    """What is asked beyond the profile."""

    retain_device: bool = False
    strip_face: bool = False
    ocr: bool = False


@dataclass(frozen=True)
class Quarantined:
    """One file that stays behind. `number` is its place in the sorted list of files, which names it without its name."""

    number: int
    path: Path
    reason: str
    detail: str


@dataclass
class Outcome:
    """What became of one file."""

    look: Look
    reason: str = ""  # of the quarantine
    detail: str = ""
    face: str = "not applicable"
    actions: Counter = field(default_factory=Counter)


def deidentify(
    source: str | Path,
    output: str | Path,
    key: bytes,  # of the pseudonyms, as for `meddiff scan`
    options: Options = Options(),
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,  # told (files done, files)
) -> list[Quarantined]:
    """Write what can be de-identified below `output`, with `audit.json`; returns the files that stayed behind.

    The same files and key give the same bytes, whatever the number of workers. PrivacyError where the folders are not
    apart, the output holds other files, the disk is full, or OCR is asked for and absent.
    """
    source, output = absolute(Path(source)), absolute(Path(output))
    check_folders(source, output)
    if options.ocr:
        require_ocr()
    paths = sorted(_files(source))
    if not paths:
        raise PrivacyError(f"{source}: holds no file. Name the folder that the scans are in.")
    keyed = Keyed(key)
    looks, behind = _look_at_all(paths, source, keyed)
    jobs = _jobs(looks, options)
    outcomes: list[Outcome] = []
    for done in _run(_Work(keyed, options, output), jobs, workers):
        outcomes += done
        if progress:
            progress(len(behind) + len(outcomes), len(paths))
    number = {path: n for n, path in enumerate(paths, 1)}
    behind += [Quarantined(number[o.look.path], o.look.path, o.reason, o.detail) for o in outcomes if o.reason]
    _write(output / AUDIT, (json.dumps(_audit(len(paths), outcomes, behind, options), indent=1) + "\n").encode())
    return sorted(behind, key=lambda one: one.number)


def check_folders(source: Path, output: Path, key: Path | None = None) -> None:
    """PrivacyError unless the folders are apart, the output is new or ours, and the key is outside it."""
    real_in, real_out = source.resolve(), output.resolve()
    if not source.is_dir():
        raise PrivacyError(f"{source}: is not a folder. Name the folder that the scans are in.")
    if real_out.is_relative_to(real_in) or real_in.is_relative_to(real_out):
        raise PrivacyError(f"{output}: the output and {source} lie in one another. Choose an output folder elsewhere.")
    if key is not None and key.resolve().is_relative_to(real_out):
        raise PrivacyError(
            f"{key}: the key lies in the output, and with it the pseudonyms can be undone. Keep it elsewhere."
        )
    if output.exists() and (not output.is_dir() or any(not OURS.fullmatch(p.name) for p in output.iterdir())):
        raise PrivacyError(f"{output}: holds other files, which may be identified. Choose a new or an empty folder.")


@dataclass(frozen=True)
class _Work:
    """Cleans and writes the files of one job; sent to the workers."""

    keyed: Keyed
    options: Options
    output: Path

    def __call__(self, job: Sequence[Look]) -> list[Outcome]:
        try:
            blanks = self._faces(job)
        except (QuarantinedError, ImageError) as why:
            detail = why.detail if isinstance(why, QuarantinedError) else "Its face cannot be found. Remove it by hand."
            return [Outcome(one, "face-not-removed", detail) for one in job]
        return [self._file(one, blanks.get(one.path)) for one in job]

    def _faces(self, job: Sequence[Look]) -> dict[Path, np.ndarray]:
        """Which pixels of each DICOM file of the job are face, (rows, columns)."""
        if not self.options.strip_face or not job[0].face or job[0].kind == "NIfTI":
            return {}
        if any(one.modality not in ("CT", "MR") for one in job):
            raise QuarantinedError("face-not-removed", "Faces are removed from CT and MR series only. Leave it out.")
        series, refused = find_series([one.path for one in job])
        if refused or any(len(one.files) != one.geometry.shape[2] for one in series):
            raise QuarantinedError(
                "face-not-removed",
                "Its series is no volume of single images, so its face is not found. Convert it, or leave it out.",
            )
        masks: dict[Path, np.ndarray] = {}
        for one in series:
            mask = face_mask(read_series(one.files))
            masks |= {path: mask[:, :, k].T for k, path in enumerate(one.files)}
        return masks

    def _file(self, one: Look, blank: np.ndarray | None) -> Outcome:
        face = "not applicable" if not one.face else "removed" if self.options.strip_face else "kept"
        try:
            if one.kind == "NIfTI":
                content, actions = self._nifti(one), Counter({("drop", "nifti-text"): 1})
            else:
                content, cleaner = deidentified(
                    read(one.path),
                    self.keyed,
                    retain_device=self.options.retain_device,
                    ocr=self.options.ocr,
                    blank=blank,
                )
                actions = cleaner.actions
        except QuarantinedError as why:
            return Outcome(one, why.reason, why.detail)
        except ImageError:  # its message names the file
            return Outcome(one, "damaged-nifti", "The NIfTI file is damaged, or no head where one was expected.")
        _write(self.output / one.target, content)
        return Outcome(one, face=face, actions=actions)

    def _nifti(self, one: Look) -> bytes:
        strip = self.options.strip_face and one.face
        content = nifti_without_text(one.path, _nifti_face if strip else None)
        return gzip.compress(content, compresslevel=6, mtime=0) if one.target.endswith(".gz") else content


def _nifti_face(path: Path) -> np.ndarray:
    volume = read_nifti(path, modality="MR")
    return face_mask(volume)


def _look_at_all(paths: Sequence[Path], root: Path, keyed: Keyed) -> tuple[list[Look], list[Quarantined]]:
    looks: dict[str, Look] = {}
    behind = []
    for number, path in enumerate(paths, 1):
        try:
            one = look(path, root, keyed)
            if one.target in looks:
                raise QuarantinedError(
                    "duplicate", "Another file before it has the same UID or name. Keep one of them."
                )
            looks[one.target] = one
        except QuarantinedError as why:
            behind.append(Quarantined(number, path, why.reason, why.detail))
    return list(looks.values()), behind


def _jobs(looks: Iterable[Look], options: Options) -> list[list[Look]]:
    """Series by series where a face is looked for, else file by file."""
    jobs: dict[str, list[Look]] = defaultdict(list)
    for one in looks:
        jobs[one.group if options.strip_face and one.face else one.target].append(one)
    return list(jobs.values())


def _run(work: _Work, jobs: Sequence[Sequence[Look]], workers: int) -> Iterator[list[Outcome]]:
    if workers <= 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, jobs, chunksize=max(1, min(32, len(jobs) // (4 * workers))))


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links followed once."""
    seen = set()
    for above, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(above) / name for name in names)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        remedy = (
            "Free space and run the same command again; files that are there are whole." if error.errno in FULL else ""
        )
        raise PrivacyError(f"{path}: cannot be written ({os.strerror(error.errno or 0)}). {remedy}".strip()) from None


def _audit(files: int, outcomes: Sequence[Outcome], behind: Sequence[Quarantined], options: Options) -> dict:
    """What was done, in counts and new names: nothing in it tells who, when or where."""
    written = [one for one in outcomes if not one.reason]
    actions: dict[str, Counter] = defaultdict(Counter)
    series: dict[str, list[Outcome]] = defaultdict(list)
    for one in written:
        series[one.look.group].append(one)
        for (action, rule), n in one.actions.items():
            actions[action][rule] += n
    return {
        "tool": {"meddiff": version("meddiff"), "pydicom": pydicom.__version__},
        "profile": [{"code": c, "scheme": "DCM", "meaning": m} for c, m in profile(options.retain_device).items()],
        "options": {"retain_device": options.retain_device, "strip_face": options.strip_face, "ocr": options.ocr},
        "files": {"read": files, "written": len(written), "quarantined": len(behind)},
        "quarantined": dict(sorted(Counter(one.reason for one in behind).items())),
        "kinds": dict(sorted(Counter(one.look.kind for one in written).items())),
        "actions": {action: dict(sorted(rules.items())) for action, rules in sorted(actions.items())},
        "series": [
            {"series": group, "files": len(ones), "face": ones[0].face} for group, ones in sorted(series.items())
        ],
    }
