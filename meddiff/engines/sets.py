"""A folder of generated cases: their files, a JSON sidecar each, and the manifest that every other command reads."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meddiff.data.files import digest_file, digest_files
from meddiff.data.manifest import Case, Source, Split
from meddiff.engines.checkpoint import write_atomic
from meddiff.errors import RunError
from meddiff.imaging.dicom_seg import write_seg
from meddiff.imaging.dicom_synthetic import write_synthetic
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import write_nifti
from meddiff.imaging.volume import Volume

OWN = re.compile(r"manifest\.jsonl|grid\.png|\..*\.partial")  # files of a set beside those of its cases


@dataclass(frozen=True)
class Written:
    """Where the image of a case and its label map lie."""

    image: tuple[Path, ...]  # one file, or the slices of a series
    label: Path | None = None

    def digest(self) -> str:
        """SHA-256 of the image: of the file, or of the series' files."""
        return digest_files(self.image) if self.series else digest_file(self.image[0])

    @property
    def picture(self) -> bool:
        """Whether the image is for looking only."""
        return self.image[0].suffix == ".png"

    @property
    def series(self) -> bool:
        """Whether the image is a DICOM series."""
        return self.image[0].suffix == ".dcm"


Write = Callable[[Path, Volume, Volume | None, Mapping[str, int]], Written]  # stem, image, label map, its names


class CaseSet:
    """A set that may be there in part: a case whose files are those of its sidecar is not made again."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], prefix: str) -> None:
        """RunError where the folder holds anything but this very set; cases are called `prefix` and more."""
        self.folder, self.settings = folder, dict(settings)
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: is a file, a folder is needed. Choose another name with -o.")
        sidecars = sorted(folder.glob(f"{prefix}*.json"))
        mixed = any(not self._own(_read(path)) for path in sidecars)
        strange = [path for path in folder.glob("*") if not (path.name.startswith(prefix) or OWN.fullmatch(path.name))]
        if mixed or (strange and not sidecars):
            raise self._mixed()
        folder.mkdir(parents=True, exist_ok=True)

    def _mixed(self) -> RunError:
        return RunError(f"{self.folder}: holds something else than this set of cases. Choose a new folder with -o.")

    def _own(self, record: Mapping[str, Any]) -> bool:
        return all(record.get(key) == value for key, value in json.loads(json.dumps(self.settings)).items())

    def kept(self, name: str, facts: Mapping[str, Any]) -> Written | None:
        """The files of a case that is whole; None where it is to be made. RunError where it was made of other `facts`."""
        record = _read(self.folder / f"{name}.json")
        if not record:
            return None
        if any(record.get(key) != value for key, value in json.loads(json.dumps(facts)).items()):
            raise self._mixed()
        try:
            image = [self.folder / file for file in record["files"]]
            label = self.folder / record["label"]["file"] if "label" in record else None
            written = Written(tuple(image), label)
            whole = written.digest() == record["sha256"]
            return written if whole and (label is None or digest_file(label) == record["label"]["sha256"]) else None
        except (OSError, KeyError, IndexError):
            return None

    def keep(self, name: str, facts: Mapping[str, Any], written: Written) -> None:
        """The sidecar of a case, written when its files are whole."""
        record: dict[str, Any] = {
            "case": name,
            "synthetic": True,
            "files": [path.relative_to(self.folder).as_posix() for path in written.image],
            "sha256": written.digest(),
        }
        if written.label:
            record["label"] = {"file": written.label.name, "sha256": digest_file(written.label)}
        write_atomic(self.folder / f"{name}.json", json.dumps({**record, **facts, **self.settings}, indent=2).encode())

    def case(
        self,
        name: str,
        written: Written,
        grid: Geometry,
        kind: tuple[str, str],  # modality and unit
        *,
        labels: Mapping[str, int],
        classes: Mapping[str, str],
        patient: str,
        split: Split,
    ) -> Case:
        """The line of the manifest for a case of the set."""
        names = tuple(path.relative_to(self.folder).as_posix() for path in written.image)
        if written.series:
            grid = stacked(Volume(np.broadcast_to(np.uint8(0), grid.shape), grid)).geometry
        label = None
        if written.label:
            label = Source(modality="SEG", path=written.label.name, sha256=digest_file(written.label))
        return Case(
            case=name,
            patient=patient,
            split=split,
            image=(
                Source(
                    modality=kind[0],
                    path=None if written.series else names[0],
                    files=names if written.series else None,
                    sha256=written.digest(),
                ),
            ),
            label=label,
            labels={"background": 0, **labels} if label else {},
            classes=dict(classes),
            shape=grid.shape,
            spacing_mm=grid.spacing_mm,
            affine=tuple(map(tuple, (grid.affine + 0.0).tolist())),
            unit=kind[1],
            layout="synthetic",
        )


def write_niftis(stem: Path, image: Volume, label: Volume | None, names: Mapping[str, int]) -> Written:
    """`stem.nii.gz` and `stem_label.nii.gz`."""
    path, label_path = (stem.with_name(f"{stem.name}{end}.nii.gz") for end in ("", "_label"))
    write_nifti(path, image)
    if label is not None:
        write_nifti(label_path, label)
    return Written((path,), None if label is None else label_path)


def write_dicom(stem: Path, image: Volume, label: Volume | None, names: Mapping[str, int]) -> Written:
    """The series `stem/`, marked as synthetic, and the DICOM SEG `stem_seg.dcm` that refers to it."""
    shutil.rmtree(stem, ignore_errors=True)
    slices = write_synthetic(stem, stacked(image), name=stem.name)
    path = stem.with_name(f"{stem.name}_seg.dcm")
    if label is not None:
        write_seg(path, label, {number: name for name, number in names.items()}, slices)
    return Written(tuple(slices), None if label is None else path)


def stacked(volume: Volume) -> Volume:
    """The volume as a reader of DICOM orders it: a lone slice last, slices along the normal of rows and columns."""
    shape = volume.array.shape
    thin = shape.index(1) if 1 in shape else 2
    order = [(thin + 1) % 3, (thin + 2) % 3, thin]  # in turn, so that a right-handed grid stays one
    affine = volume.geometry.affine[:, [*order, 3]]
    array = volume.array.transpose(order)
    if np.linalg.det(affine[:3, :3]) < 0:
        array = array[..., ::-1]
        affine[:3, 3] += affine[:3, 2] * (array.shape[2] - 1)
        affine[:3, 2] *= -1
    return Volume(array, Geometry(array.shape, affine), volume.modality, volume.unit)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
