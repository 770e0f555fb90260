"""Medical Segmentation Decathlon: dataset.json whose `training` lists {image, label} and whose `test` lists images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found, label_names, nifti_stem, read_description, refuse, refuse_rest
from meddiff.data.layouts.nnunet import channel_names
from meddiff.data.manifest import Split
from meddiff.imaging.dicom import Refusal


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folders with a dataset.json that has a `training` list, beside imagesTr."""
    trained = {path.parent.parent for path in files if path.parent.name == "imagesTr" and nifti_stem(path)}
    described = sorted(path for path in files if path.name == "dataset.json" and path.parent in trained)
    return [path.parent for path in described if isinstance(read_description(path).get("training"), list)]


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """The listed cases; a listed file that is not there is refused too, under the name it should have."""
    description = read_description(root / "dataset.json")
    channels = channel_names(root / "dataset.json", description)
    labels = label_names(description.get("labels")) or None
    here = set(files)
    found: list[Found] = []
    refused: list[Refusal] = []
    for image, label, split in _listed(root, description):
        pair = [image, *([label] if label else [])]
        missing = [path for path in pair if path not in here]
        if missing:
            detail = "dataset.json lists it, and it is not in the data set; fetch it, or take the case off the list."
            refused += refuse(missing, "missing", detail)
            refused += refuse(set(pair) - set(missing), "incomplete", f"Goes with {missing[0].name}, which is missing.")
        elif len(channels) > 1:
            refused += refuse(
                pair,
                "four-dimensional",
                f"dataset.json names {len(channels)} channels, stored as one 4D "
                "file, which is not read yet; split it into 3D files in the nnU-Net layout.",
            )
        else:
            case = f"{root.name}/{nifti_stem(image)}"
            found.append(
                Found("decathlon", case, (Channel(channels[min(channels)], (image,)),), label, {}, labels, split)
            )
    done = [path for case in found for path in case.paths] + [refusal.path for refusal in refused]
    return found, refused + refuse_rest(files, done, "the files that dataset.json lists")


def _listed(root: Path, description: dict) -> Iterator[tuple[Path, Path | None, Split | None]]:
    splits: tuple[tuple[str, Split | None], ...] = (("training", None), ("test", "test"))
    for key, split in splits:
        for entry in description.get(key) or []:
            image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
            if isinstance(image, str):
                yield _below(root, image), _below(root, label) if isinstance(label, str) else None, split


def _below(root: Path, name: str) -> Path:
    return Path(os.path.normpath(root / name))
