"""BIDS: sub-*/[ses-*/]anat/*_T1w.nii.gz and other anatomical images; *_dseg.nii.gz there or below derivatives/.

Names of labels come from the nearest dseg.tsv (columns `index` and `name`) in a folder above the segmentation.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found, nifti_stem, refuse_rest
from meddiff.imaging.dicom import Refusal

# BIDS 1.10, "Anatomy imaging data": the suffixes of images that are one volume with a contrast of their own
SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2", "PDT2", "angio", "ct", "CT")
DERIVED = ("space", "desc", "label", "atlas", "seg", "res")  # entities that only a derivative has


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folders that hold sub-*/[ses-*/]anat/, outside derivatives/."""
    found = {
        path.parents[depth]
        for path in files
        for depth in [_depth(path)]
        if depth and "derivatives" not in path.relative_to(folder).parts
    }
    return sorted(root for root in found if not any(other in root.parents for other in found))


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """One case per raw anatomical image; a segmentation goes to the image (T1w first) whose entities it repeats."""
    images: list[tuple[Path, dict[str, str], str]] = []
    labels: list[tuple[Path, dict[str, str]]] = []
    for path in files:
        entities, suffix = _parse(nifti_stem(path) or "")
        derived = "derivatives" in path.relative_to(root).parts
        if suffix == "dseg" and "sub" in entities:
            labels.append((path, entities))
        elif _depth(path) and not derived and suffix in SUFFIXES and not set(entities) & set(DERIVED):
            images.append((path, entities, suffix))
    images.sort(key=lambda image: (SUFFIXES.index(image[2]), image[0]))
    found = []
    for path, entities, suffix in images:
        fitting = [label for label in labels if _fits(entities, label[1])]
        label = fitting[0] if fitting else None
        if label:
            labels.remove(label)
        names = _names(label[0], root) if label else None
        person = f"{root.name}/sub-{entities['sub']}"
        found.append(Found("bids", person, (Channel(suffix, (path,)),), label and label[0], labels=names))
    done = [path for case in found for path in case.paths]
    return found, refuse_rest(
        files,
        done,
        "raw images sub-*/[ses-*/]anat/*_T1w.nii.gz (T2w, FLAIR, ...) and one "
        "*_dseg.nii.gz for each, on the grid of its image",
    )


def _names(label: Path, root: Path) -> dict[str, int] | None:
    """Names and numbers of the nearest dseg.tsv between the segmentation and the root; None where there is none."""
    for folder in label.parents:
        table = folder / "dseg.tsv"
        if table.is_file():
            with table.open(newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            named = [row for row in rows if row.get("name") and (row.get("index") or "").isdecimal()]
            return {row["name"]: int(row["index"]) for row in named} or None
        if folder == root:
            break
    return None


def _depth(path: Path) -> int:
    """How many folders up the data set's root is; 0 where the path is not sub-*/[ses-*/]anat/FILE.nii.gz."""
    if nifti_stem(path) is None or path.parent.name != "anat":
        return 0
    names = [parent.name for parent in path.parents]
    if len(names) > 2 and names[1].startswith("sub-"):
        return 2
    return 3 if len(names) > 3 and names[1].startswith("ses-") and names[2].startswith("sub-") else 0


def _parse(stem: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a BIDS name.

    >>> _parse("sub-01_ses-2_T1w")
    ({'sub': '01', 'ses': '2'}, 'T1w')
    """
    *pairs, suffix = stem.split("_")
    return dict(pair.split("-", 1) for pair in pairs if re.fullmatch(r"[a-zA-Z]+-.+", pair)), suffix


def _fits(image: dict[str, str], label: dict[str, str]) -> bool:
    """A segmentation in the image's own space repeats every entity of the image."""
    return label.get("space", "orig") in ("orig", "T1w") and image.items() <= label.items()
