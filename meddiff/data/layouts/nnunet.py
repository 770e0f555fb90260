"""nnU-Net raw: dataset.json with `channel_names`, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz, imagesTs, labelsTs."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from meddiff.data.layouts.found import Channel, Found, label_names, nifti_stem, read_description, refuse, refuse_rest
from meddiff.data.manifest import Split
from meddiff.errors import ManifestError
from meddiff.imaging.dicom import Refusal

CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
FOLDERS: tuple[tuple[str, str, Split | None], ...] = (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test"))


def roots(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The folders with a dataset.json whose imagesTr holds channel files, CASE_0000.nii.gz."""
    described = {path.parent for path in files if path.name == "dataset.json"}
    return sorted(
        {
            path.parent.parent
            for path in files
            if path.parent.name == "imagesTr"
            and path.parent.parent in described
            and CHANNEL.fullmatch(nifti_stem(path) or "")
        }
    )


def find(root: Path, files: Sequence[Path]) -> tuple[list[Found], list[Refusal]]:
    """Cases with all their channels; a case without its label map is accepted, a label map without its case is not."""
    description = read_description(root / "dataset.json")
    channels = channel_names(root / "dataset.json", description)
    labels = label_names(description.get("labels")) or None
    found: list[Found] = []
    refused: list[Refusal] = []
    for images, annotations, split in FOLDERS:
        label_of = {nifti_stem(path): path for path in files if path.parent == root / annotations and nifti_stem(path)}
        for case, paths in sorted(_cases(root / images, files).items()):
            label = label_of.pop(case, None)
            if set(paths) != set(channels):
                refused += refuse(
                    [*paths.values(), *([label] if label else [])],
                    "channels",
                    f"The case has channels {sorted(paths)}, dataset.json names {sorted(channels)}; add the "
                    "missing files or correct `channel_names`.",
                )
                continue
            image = tuple(Channel(channels[n], (paths[n],)) for n in sorted(channels))
            found.append(
                Found("nnunet", f"{root.name}/{case}", image, label, _classes(description, case), labels, split)
            )
        refused += refuse(
            label_of.values(),
            "label-without-image",
            f"No {images}/CASE_0000 goes with this label map; add the image or remove the label map.",
        )
    done = [path for case in found for path in case.paths] + [refusal.path for refusal in refused]
    return found, refused + refuse_rest(files, done, "imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz")


def channel_names(path: Path, description: dict) -> dict[int, str]:
    """Channel number -> name, from `channel_names` (nnU-Net 2) or `modality` (nnU-Net 1, Decathlon)."""
    entry = description.get("channel_names", description.get("modality"))
    if not isinstance(entry, dict) or not entry or not all(str(key).isdigit() for key in entry):
        raise ManifestError(f'{path}: needs `channel_names` such as {{"0": "CT"}}, found {entry!r}. Add it.')
    return {int(key): str(name) for key, name in entry.items()}


def _cases(folder: Path, files: Sequence[Path]) -> dict[str, dict[int, Path]]:
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = CHANNEL.fullmatch(nifti_stem(path) or "") if path.parent == folder else None
        if match:
            cases[match["case"]].setdefault(int(match["number"]), path)
    return cases


def _classes(description: dict, case: str) -> dict[str, str]:
    """Our own key of dataset.json: `classes`, case -> value, or case -> {covariate: value}."""
    entry = description.get("classes")
    value = entry.get(case) if isinstance(entry, dict) else None
    if isinstance(value, dict):
        return {str(name): str(item) for name, item in sorted(value.items())}
    return {} if value is None else {"class": str(value)}
