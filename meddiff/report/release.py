"""A release: the images of a synthetic set under new names, each saying what it is, with a data card and a model card."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from meddiff.data.files import combine, write_whole
from meddiff.data.manifest import Case, Manifest, Source, load_image, load_label
from meddiff.errors import PrivacyError
from meddiff.imaging.dicom_synthetic import synthetic_slices
from meddiff.imaging.dicom_write import encoded
from meddiff.imaging.nifti import nifti_gz
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
    format: str,  # nifti or dicom; label maps are NIfTI in both
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
    modality = case.image[0].modality
    if format == "nifti":
        path = f"{name}.nii.gz"
        image = Source(modality=modality, path=path, sha256=out.add(path, nifti_gz(name, volume, stamp)))
    else:
        slices = synthetic_slices(name, volume, name=name, series_description=stamp)
        digests = {f"{name}/{file}": out.add(f"{name}/{file}", encoded(dataset)) for file, dataset in slices}
        image = Source(modality=modality, files=tuple(digests), sha256=combine(digests.values()))
    label = None
    if case.label is not None:
        path = f"{name}_label.nii.gz"
        content = nifti_gz(name, load_label(manifest, case), stamp)
        label = Source(modality="SEG", path=path, sha256=out.add(path, content))
    facts = {"case": name, "synthetic": True, "audited": audited, "weights": sidecar(manifest, case)["weights"]}
    out.add(f"{name}.json", json.dumps(facts, indent=2).encode())
    return Case(
        case=name,
        patient=name,
        split="train",
        image=(image,),
        label=label,
        classes=case.classes,
        labels=case.labels if label else {},
        shape=case.shape,
        spacing_mm=case.spacing_mm,
        affine=case.affine,
        unit=case.unit,
        layout="synthetic",
    )
