"""Plain NIfTI: NAME.nii.gz, beside it NAME_label.nii.gz (or _seg, _mask, -label, ...) where there is a label map."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found, nifti_stem, refuse
from meddiff.imaging.dicom import Refusal

LABEL = re.compile(r"(?P<stem>.+)[_-](labels?|seg|segmentation|mask)", re.IGNORECASE)
MODALITIES = {
    "ct": "CT",
    "mr": "MR",
    "mri": "MR",
    "t1": "T1",
    "t1w": "T1w",
    "t1c": "T1c",
    "t1ce": "T1ce",
    "t2": "T2",
    "t2w": "T2w",
    "flair": "FLAIR",
    "pd": "PD",
    "pet": "PT",
    "adc": "ADC",
    "dwi": "DWI",
}


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folder itself: the layout has no mark of its own."""
    return [folder]


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """One case per image; those whose names differ in the modality only (a_t1, a_flair) are one patient's."""
    labels: dict[Path, list[Path]] = defaultdict(list)  # folder/stem of the image -> its label maps
    images: list[tuple[Path, str]] = []
    for path in files:
        stem = nifti_stem(path)
        match = LABEL.fullmatch(stem or "")
        if match:
            labels[path.parent / match["stem"]].append(path)
        elif stem:
            images.append((path, stem))
    found: list[Found] = []
    refused: list[Refusal] = []
    for path, stem in images:
        fitting = labels.pop(path.parent / stem, [])
        if len(fitting) > 1:
            refused += refuse(
                [path, *fitting], "label-ambiguous", f"{len(fitting)} label maps go with this image; keep one."
            )
            continue
        modality, rest = _modality(stem)
        patient = "/".join((root.name, *path.parent.relative_to(root).parts, rest))
        found.append(Found("pairs", patient, (Channel(modality, (path,)),), fitting[0] if fitting else None))
    alone = [path for paths in labels.values() for path in paths]
    return found, refused + refuse(
        alone,
        "label-without-image",
        "Named as a label map, and no image of that name lies beside it; add or rename the image.",
    )


def _modality(stem: str) -> tuple[str, str]:
    """The modality that a word of the name tells (else OT), and the name without it.

    >>> _modality("p01_T1"), _modality("p01")
    (('T1', 'p01'), ('OT', 'p01'))
    """
    words = re.split(r"[_-]", stem)
    known = [word for word in words if word.lower() in MODALITIES]
    if len(known) != 1:
        return "OT", stem
    return MODALITIES[known[0].lower()], "_".join(word for word in words if word != known[0])
