"""From what was found and what was read to the records of a manifest: pseudonyms, splits, names, paths."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from meddiff.data.facts import Facts
from meddiff.data.files import combine, portable
from meddiff.data.keys import pseudonym
from meddiff.data.layouts import Channel, Found
from meddiff.data.manifest import Case, Source, Split, unit_of
from meddiff.data.splits import split_patients
from meddiff.imaging.geometry import Geometry


def assemble(
    found: Sequence[Found], facts: Mapping[Path, Facts], split: Sequence[float], key: bytes, root: Path | None
) -> list[Case]:
    """The cases, under pseudonyms and split by patient; a patient with an official split is in it with every case."""
    patients = [pseudonym(key, case.patient_id) for case in found]
    official: dict[str, Split] = {}
    for patient, case in zip(patients, found, strict=True):
        if case.split is not None:
            official.setdefault(patient, case.split)
    splits = split_patients(set(patients) - set(official), split) | official
    unnamed = _unnamed_labels(found, facts)
    return [
        _case(case, facts, patient, splits[patient], unnamed, root)
        for patient, case in zip(patients, found, strict=True)
    ]


def _case(
    case: Found, facts: Mapping[Path, Facts], patient: str, split: Split, unnamed: Mapping[str, int], root: Path | None
) -> Case:
    grid = geometry_of(case, facts)
    name = combine(content(image, facts) for image in case.images)[:8]
    label = None
    if case.label:
        label = Source(modality="SEG", path=portable(case.label, root), sha256=facts[case.label].sha256)
    affine = [tuple(float(value) + 0.0 for value in row) for row in grid.affine]  # + 0.0: no -0.0 in the file
    return Case(
        case=f"{patient}-{name}",
        patient=patient,
        split=split,
        layout=case.layout,
        classes=dict(case.classes),
        image=tuple(_source(image, facts, root) for image in case.images),
        label=label,
        labels={} if label is None else _labels(case, facts, unnamed),
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        affine=tuple(affine),
        unit=case.unit or unit_of(case.images[0].modality),
        repairs=case.repairs,
        regions=case.regions,
        face=case.face or facts[case.images[0].paths[0]].face,
    )


def _source(image: Channel, facts: Mapping[Path, Facts], root: Path | None) -> Source:
    names = tuple(portable(path, root) for path in image.paths)
    sha256 = combine(facts[path].sha256 for path in image.paths) if image.series else facts[image.paths[0]].sha256
    return Source(
        modality=image.modality,
        path=None if image.series else names[0],
        files=names if image.series else None,
        array=image.array,
        index=image.index,
        volume=image.volume,
        sha256=sha256,
    )


def geometry_of(case: Found, facts: Mapping[Path, Facts]) -> Geometry:
    """The grid of the case: its layout's, else that of its first channel."""
    geometry = case.geometry or facts[case.images[0].paths[0]].geometry
    assert geometry is not None  # a file without one has an error, and its case was refused
    return geometry


def content(image: Channel, facts: Mapping[Path, Facts]) -> str:
    """What tells an image from its copies, hex: the digest of its bytes, and which it is where they hold many."""
    sha256 = combine(facts[path].sha256 for path in image.paths) if image.series else facts[image.paths[0]].sha256
    if image.array is None and image.volume is None:
        return sha256
    part = f"{sha256}:{image.array}:{image.index}" if image.volume is None else f"{sha256}:{image.volume}"
    return hashlib.sha256(part.encode()).hexdigest()


def _labels(case: Found, facts: Mapping[Path, Facts], unnamed: Mapping[str, int]) -> dict[str, int]:
    """Names of the labels: the data set's, the segmentation's (a name that occurs twice with its number), or none of their own."""
    if case.labels is not None:
        return dict(case.labels)
    names = facts[case.label].names if case.label else {}
    if not names:
        return dict(unnamed)
    often = Counter(names.values())
    return {"background": 0} | {name if often[name] == 1 else f"{name} {n}": n for n, name in sorted(names.items())}


def _unnamed_labels(found: Sequence[Found], facts: Mapping[Path, Facts]) -> dict[str, int]:
    """Names for the label numbers of all cases whose data set names none: the same number, the same name."""
    values = {value for case in found if case.label and case.labels is None for value in facts[case.label].values or ()}
    return {"background" if value == 0 else f"label_{value}": value for value in sorted(values | {0})}
