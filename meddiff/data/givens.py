"""What a model is given to draw for, as it was trained on it: label maps and other images, from a manifest or a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from meddiff.config import Config
from meddiff.data.conditions import Known, given_data, images_of
from meddiff.data.files import digest_file
from meddiff.data.loader import OUTSIDE, Images, centred, cut
from meddiff.data.manifest import Case, Manifest, dicom_modality
from meddiff.data.transforms import AXES, placing, preprocessing, to_meta
from meddiff.errors import ConfigError, ImageError, ManifestError
from meddiff.imaging.nifti import read_nifti
from meddiff.imaging.volume import Volume
from meddiff.seeds import derive


@dataclass(frozen=True)
class Given:
    """One thing to draw an image for."""

    record: dict[str, str | int]  # which it is, for the sidecar
    values: dict[str, Tensor]  # as an item of the loader
    case: Case | None  # that it comes from


class Givens:
    """The slices (2D) or volumes (3D) of a manifest or a NIfTI file, by number."""

    def __init__(self, path: Path, config: Config, known: Known, split: str | None = None) -> None:
        """ManifestError or ImageError where `path` does not hold what the config says is given."""
        self.path, self.config, self.known = path, config, known
        self.images: Images | None = None
        if path.suffix == ".jsonl":
            manifest = Manifest.read(path)
            cases = manifest.split(split) if split else manifest.cases
            _check_labels(cases, config, known)
            self.images = images_of(config, known, manifest, cases)
            return
        if not path.name.endswith((".nii", ".nii.gz")):
            raise ConfigError(f"{path}: give a manifest (.jsonl) or a NIfTI file.")
        if config.condition.mask and config.condition.image:
            raise ConfigError(f"{path}: this run is given a label map and an image; give a manifest that has both.")
        self.sha256 = digest_file(path)
        self.maps = self._of_file()

    def _of_file(self) -> list[tuple[int, Tensor]]:
        """(number, map) of the slices that show something, or of the volume; (1, *size)."""
        data, dims = self.config.data, self.config.network.spatial_dims
        given = self.config.condition.image
        if given:
            volume = read_nifti(self.path, modality=dicom_modality(given.modality))
            array = preprocessing(given_data(data, given))({"image": to_meta(volume)})["image"].numpy()[0]
            outside, shown = OUTSIDE["given"], array > OUTSIDE["given"]
        else:
            volume = read_nifti(self.path, label=True, modality="SEG")
            channels = _numbered(self.path, volume, self.known.labels)
            array = placing(data, label=True)({"image": to_meta(channels)})["image"].numpy()[0]
            outside, shown = OUTSIDE["label"], array > 0
        if dims == 3:
            parts = [(0, array)]
        else:
            axis = AXES[data.axis]
            along = tuple(i for i in range(3) if i != axis)
            parts = [
                (int(k), array.take(k, axis=axis)) for k in np.flatnonzero(shown.mean(along) >= data.min_foreground)
            ]
        if not parts:
            least = f"{data.min_foreground:.0%}"
            raise ImageError(f"{self.path}: no slice has {least} of it filled, as the run was trained on. Is it empty?")
        return [(k, cut(part, data.size, centred(part.shape, data.size), outside)) for k, part in parts]

    def __len__(self) -> int:
        return len(self.maps) if self.images is None else len(self.images)

    def __getitem__(self, index: int) -> Given:
        if self.images is None:
            number, shown = self.maps[index]
            name = "given" if self.config.condition.image else "label"
            return Given({"file": self.path.name, "sha256": self.sha256, "slice": number}, {name: shown}, None)
        item = self.images.items[index]
        case = self.images.cases[item.case]
        values = self.images.image(index, derive(0, "given", case.case, index))
        return Given({"case": case.case, **({} if item.slice is None else {"slice": item.slice})}, values, case)


def _check_labels(cases: tuple[Case, ...], config: Config, known: Known) -> None:
    """ManifestError where a case lacks a label map or one of the labels that the run paints."""
    for case in cases if config.condition.mask else ():
        lacking = [name for name in known.labels if name not in case.labels]
        if case.label is None or lacking:
            raise ManifestError(
                f"{case.case}: {'its label map has no ' + ', '.join(lacking) if case.label else 'has no label map'}; the run "
                f"paints {', '.join(known.labels)}. Give cases with these labels, or choose some with --split."
            )


def _numbered(path: Path, volume: Volume, labels: dict[str, int]) -> Volume:
    """The label map with the numbers of the model's channels; ImageError for a number that is none of its labels."""
    strange = sorted(set(np.unique(volume.array).tolist()) - {0, *labels.values()})
    if strange:
        raise ImageError(
            f"{path}: holds the labels {strange}, which the run does not know; it paints "
            f"{', '.join(f'{number} ({name})' for name, number in labels.items())}. Set others to 0."
        )
    array = np.zeros(volume.array.shape, np.float32)
    for i, number in enumerate(labels.values(), 1):
        array[volume.array == number] = i
    return Volume(array, volume.geometry, volume.modality, volume.unit)
