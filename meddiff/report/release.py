"""A release: the images of a synthetic set under new names, each saying what it is, with a data card and a model card."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from meddiff.data.files import combine, write_whole
from meddiff.data.manifest import Case, Manifest, Source, load_image, load_label
from meddiff.engines.sets import stacked
from meddiff.errors import PrivacyError
from meddiff.imaging.dicom_seg import write_seg
from meddiff.imaging.dicom_synthetic import synthetic_slices
from meddiff.imaging.dicom_write import encoded
from meddiff.imaging.geometry import Geometry
from meddiff.imaging.nifti import nifti_gz
from meddiff.imaging.volume import Volume
from meddiff.privacy.audit.sets import sidecar
from meddiff.privacy.gate import STAMP, UNAUDITED
from meddiff.report.cards import data_card, model_card, written


class Sink(Protocol):
    """Where the files of a release go: a folder, or an encrypted archive."""

    def add(self, name: str, content: bytes) -> None: ...


@dataclass(frozen=True)
class Folder:
    """Plain files."""

    path: Path

    def add(self, name: str, content: bytes) -> None:
        """One file, whole or not there."""
        write_whole(self.path / name, content)


@contextmanager
def new_folder(path: Path) -> Iterator[Folder]:
    """A folder that has its name when all of the release is in it; PrivacyError where the name is taken."""
    if path.exists():
        raise PrivacyError(f"{path}: exists already, and releases must not mix. Choose a new folder with -o.")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield Folder(partial)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Counted:
    """A sink that remembers what went through it."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.digests: dict[str, str] = {}

    def add(self, name: str, content: bytes) -> str:
        self.sink.add(name, content)
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return self.digests[name]


def write_release(
    manifest: Manifest,  # of the set; `privacy.gate` has admitted it, or it is released unaudited
    record: dict[str, Any] | None,  # of its audit
    sink: Sink,
    *,
    audited: bool,
    format: str,  # nifti, or dicom with label maps as SEG
    licence: str,
    on_case: Callable[[], None] | None = None,
) -> None:
    """Images, label maps, sidecars, manifest.jsonl and both cards; nothing of it names a file, case or path of the source.

    Cases are numbered anew, as the name of a sample may come from a real case. The same set gives the same bytes.
    """
    stamp = STAMP if audited else UNAUDITED
    out = _Counted(sink)
    cases = []
    for number, case in enumerate(manifest.cases, 1):
        cases.append(_case(manifest, case, f"synthetic_{number:05d}", out, stamp, audited, format))
        if on_case:
            on_case()
    released = Manifest(tuple(cases), Path("/").absolute())
    out.add("manifest.jsonl", "".join(line + "\n" for line in released.lines(released.folder)).encode())
    made_by = sidecar(manifest, manifest.cases[0])
    cards = {
        "data_card": data_card(cases, made_by, record, audited, format, licence, dict(out.digests)),
        "model_card": model_card(made_by, record, audited, licence),
    }
    for name, card in cards.items():
        out.add(f"{name}.json", json.dumps(card, indent=2).encode())
        out.add(f"{name}.md", written(name, card).encode())


def _case(manifest: Manifest, case: Case, name: str, out: _Counted, stamp: str, audited: bool, format: str) -> Case:
    volume = load_image(manifest, case)
    label = load_label(manifest, case) if case.label is not None else None
    written = _niftis if format == "nifti" else _series
    image, label_source, grid = written(out, name, volume, label, case, stamp)
    facts = {"case": name, "synthetic": True, "audited": audited, "weights": sidecar(manifest, case)["weights"]}
    out.add(f"{name}.json", json.dumps(facts, indent=2).encode())
    return Case(
        case=name,
        patient=name,
        split=case.split,
        image=(image,),
        label=label_source,
        classes=case.classes,
        labels=case.labels,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        affine=tuple(map(tuple, (grid.affine + 0.0).tolist())),
        unit=case.unit,
        layout="synthetic",
    )


def _niftis(
    out: _Counted, name: str, volume: Volume, label: Volume | None, case: Case, stamp: str
) -> tuple[Source, Source | None, Geometry]:
    def one(end: str, modality: str, what: Volume) -> Source:
        path = f"{name}{end}.nii.gz"
        return Source(modality=modality, path=path, sha256=out.add(path, nifti_gz(name, what, stamp)))

    image = one("", case.image[0].modality, volume)
    return image, None if label is None else one("_label", "SEG", label), volume.geometry


def _series(
    out: _Counted, name: str, volume: Volume, label: Volume | None, case: Case, stamp: str
) -> tuple[Source, Source | None, Geometry]:
    turned = stacked(volume)
    slices = {
        f"{name}/{file}": encoded(dataset)
        for file, dataset in synthetic_slices(name, turned, name=name, series_description=stamp)
    }
    digests = [out.add(file, content) for file, content in slices.items()]
    image = Source(modality=case.image[0].modality, files=tuple(slices), sha256=combine(digests))
    if label is None:
        return image, None, turned.geometry
    # highdicom reads what a SEG refers to from files; the folder is readable by the user only, and goes at once
    with TemporaryDirectory(prefix="meddiff-") as folder:
        for file, content in slices.items():
            write_whole(Path(folder) / file, content)
        path = Path(folder) / f"{name}_seg.dcm"
        names = {number: label_name for label_name, number in case.labels.items()}
        write_seg(path, label, names, [Path(folder) / file for file in slices], description=stamp)
        segmentation = Source(modality="SEG", path=path.name, sha256=out.add(path.name, path.read_bytes()))
    return image, segmentation, turned.geometry
