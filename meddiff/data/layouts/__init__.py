"""The layouts a data set can come in, and which files of a folder belong to which."""

from collections.abc import Sequence
from pathlib import Path

from meddiff.data.layouts import bids, decathlon, dicom, medmnist, nnunet, pairs
from meddiff.data.layouts.found import Channel, Found, Layout, Reading, not_in_layout
from meddiff.errors import ManifestError
from meddiff.imaging.dicom import Refusal

__all__ = ["LAYOUTS", "Channel", "Found", "Reading", "find"]

# In this order: a layout with marks of its own comes before one that takes any file of a kind.
LAYOUTS: dict[str, Layout] = {
    "nnunet": nnunet,
    "decathlon": decathlon,
    "bids": bids,
    "medmnist": medmnist,
    "pairs": pairs,
    "dicom": dicom,
}


def find(
    folder: Path, files: Sequence[Path], layout: str = "auto", reading: Reading | None = None
) -> tuple[list[Found], list[Refusal]]:
    """Cases and refusals that together name every file; with "auto" each layout takes what follows it."""
    if layout != "auto" and layout not in LAYOUTS:
        raise ManifestError(f"there is no layout {layout!r}; choose one of auto, {', '.join(LAYOUTS)}.")
    found: list[Found] = []
    refused: list[Refusal] = []
    left = list(files)
    for one in LAYOUTS.values() if layout == "auto" else [LAYOUTS[layout]]:
        for root in one.roots(folder, left):
            below = [path for path in left if path.is_relative_to(root)]
            cases, rejected = dicom.find(root, below, reading) if one is dicom else one.find(root, below)
            found += cases
            refused += rejected
            done = {path for case in cases for path in case.paths} | {refusal.path for refusal in rejected}
            left = [path for path in left if path not in done]
    return found, refused + [not_in_layout(path, f"files of the {layout} layout") for path in left]
