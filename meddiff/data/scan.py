"""From folders to cases: every file below them is in a case, or refused with the reason."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from meddiff.data import layouts
from meddiff.data.assemble import assemble
from meddiff.data.checks import duplicate, problem
from meddiff.data.facts import ALONE, Role, Share, gather
from meddiff.data.files import absolute, portable, write_lines
from meddiff.data.layouts import Found, Reading
from meddiff.data.manifest import Case, Manifest, Refused
from meddiff.data.splits import split_counts
from meddiff.errors import ManifestError
from meddiff.imaging.dicom import Refusal
from meddiff.imaging.dicom_dir import is_directory, read_directory
from meddiff.imaging.dicom_person import check_attributes
from meddiff.imaging.regions import region_names

log = logging.getLogger(__name__)


def scan(
    folders: Sequence[str | Path],
    *,
    layout: str = "auto",  # or a key of `layouts.LAYOUTS`
    split: Sequence[float] = (0.7, 0.15, 0.15),  # train, val, test; a data set's own test set is kept
    key: bytes,  # of the pseudonyms, and so of the split
    root: Path | None = None,  # folder of the manifest; None: absolute paths
    repairs: Sequence[str] = (),  # of `imaging.dicom.REPAIRS`, that may be made; the cases record those that were
    regions: Sequence[str] = (),  # of DICOM label maps, by name, that become labels 1, 2, ...; without any, all of them
    record: Sequence[str] = (),  # of `imaging.dicom_person.ATTRIBUTES`, that become classes of DICOM cases
    workers: int = 1,  # processes that read DICOM headers; the result is the same for any number
    headers: Callable[[int, int], None] | None = None,  # told (DICOM headers read, headers to read)
    progress: Callable[[int, int], None] | None = None,  # told (files read, files to read)
    share: Share = ALONE,  # of the files to hash and label maps to read; every process finds the same cases
) -> tuple[list[Case], list[Refused]]:
    """Cases and refusals that together name every file below the folders; the order of the folders does not matter.

    Headers are read and files hashed, label maps are read whole. ManifestError where a folder is missing or empty, or
    where no case at all is accepted.
    """
    split_counts(0, split)  # a wrong split is told before the files are read
    region_names(regions)
    check_attributes(record)
    found, refused = _find(folders, layout, Reading(tuple(repairs), workers, headers, tuple(record)))
    facts = gather(_roles(found), progress, regions, share)
    checked: list[Found] = []
    seen: dict[str, Path] = {}
    for case in sorted(found, key=lambda case: [(image.paths[0], image.index or 0) for image in case.images]):
        if case.label and case.images[0].series and facts[case.label].error:  # another object; the image is sound
            refused.append(Refusal(case.label, facts[case.label].reason, facts[case.label].error))
            case = replace(case, label=None)
        if case.label and case.images[0].series:
            case = replace(case, regions=tuple(regions))
        wrong = problem(case, facts) or duplicate(case, facts, seen)
        if wrong:
            refused += [Refusal(path, *wrong) for path in case.paths]
        else:
            checked.append(case)
    accepted = {path for case in checked for path in case.paths}
    left = {refusal.path: refusal for refusal in reversed(refused) if refusal.path not in accepted}
    if not checked:
        raise ManifestError(_nothing(folders, left.values()))
    if regions and not any(case.regions for case in checked):
        log.warning("--regions: no case has a SEG or RTSTRUCT with these regions; the refused files say why")
    where = None if root is None else Path(root)
    cases = assemble(checked, facts, split, key, where)
    return cases, [
        Refused(path=portable(path, where), reason=left[path].reason, detail=left[path].detail) for path in sorted(left)
    ]


def write_scan(path: str | Path, cases: Sequence[Case], refused: Sequence[Refused]) -> Path:
    """Write the manifest, and `<name>.refused.jsonl` beside it; relative paths start from the manifest's folder.

    Returns the path of the refusals. Both are written whole or not at all; missing folders are made.
    """
    path = Path(path)
    folder = absolute(path).parent
    beside = path.with_name(path.name.removesuffix(".jsonl") + ".refused.jsonl")
    manifest = Manifest(tuple(cases), folder)
    manifest.check()
    moved = (one.model_copy(update={"path": portable(folder / one.path, folder)}) for one in refused)
    write_lines(beside, (one.model_dump_json() for one in moved))
    manifest.write(path)
    return beside


def _find(folders: Sequence[str | Path], layout: str, reading: Reading) -> tuple[list[Found], list[Refusal]]:
    found: list[Found] = []
    refused: list[Refusal] = []
    for folder, files in _files(folders):
        readable = []
        for path in files:
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                refused.append(Refusal(path, "not-an-image", "Hidden files are not read; rename it if it is an image."))
            elif not path.is_file():
                refused.append(Refusal(path, "not-a-file", "A link to nothing, or a device; mend or remove it."))
            else:
                readable.append(path)
        cases, rejected = layouts.find(folder, readable, layout, reading)
        found += cases
        refused += rejected
    return found, refused


def _files(folders: Sequence[str | Path]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder with the files below it, links followed; a folder inside another one is not listed twice.

    For a DICOMDIR, the files that it names.
    """
    given = {absolute(Path(folder)) for folder in folders}
    directories = sorted(path for path in given if path.is_file() and is_directory(path))
    for path in directories:
        yield path.parent, sorted({path, *read_directory(path).files})
    below = sorted(given - set(directories))
    for folder in [one for one in below if not any(other in one.parents for other in below)]:
        if not folder.is_dir():
            raise ManifestError(f"{folder}: is not a folder. Name the folder that the images are in.")
        files = list(walk(folder))
        if not files:
            raise ManifestError(f"{folder}: holds no file. Name the folder that the images are in.")
        yield folder, files


def walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All files below a folder in the order of their names, links followed; ManifestError where it cannot be listed."""
    real = folder.resolve()
    if real in above:  # a link to a folder that it lies in
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be listed ({error}). Ask for the right to read it.") from error
    for name in names:
        if (folder / name).is_dir():
            yield from walk(folder / name, above | {real})
        else:
            yield folder / name


def _roles(found: Iterable[Found]) -> dict[Path, Role]:
    """What to read of each file, in the order of their paths."""
    roles: dict[Path, Role] = {}
    for case in found:
        read: Role = "image" if case.geometry is None else "plain"
        roles |= {path: read for image in case.images for path in image.paths}
        if case.label:
            roles[case.label] = case.geometry if case.geometry and case.images[0].series else "label"
    return dict(sorted(roles.items()))


def _nothing(folders: Sequence[str | Path], refused: Iterable[Refusal], most: int = 3) -> str:
    """The message for a scan that accepts no case: the commonest reasons, each with one example."""
    refused = list(refused)
    first = {refusal.reason: refusal for refusal in reversed(refused)}
    common = Counter(refusal.reason for refusal in refused).most_common(most)
    reasons = " ".join(
        f"{count} x {reason}, for instance {first[reason].path}: {first[reason].detail}" for reason, count in common
    )
    return f"{', '.join(map(str, folders))}: none of {len(refused)} files is in a case. {reasons}"
