"""The cards of a release: what leaves, from what it was made, how it was audited and what that does not prove."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from meddiff.data.manifest import Case

UNAUDITED = (
    "NOBODY AUDITED THIS SET. Published models have copied most of the patients they were trained on; take every image for one "
    "that may show a real patient."
)
USE = (
    "For research and teaching. Not a medical device, not for diagnosis; no image shows an existing patient on purpose."
)
NO_LICENCE = "none was stated at release: ask whoever released the set before passing it on"


def data_card(
    cases: Sequence[Case],
    made_by: dict[str, Any],  # the sidecar of a sample
    record: dict[str, Any] | None,
    audited: bool,
    format: str,
    licence: str,
    files: dict[str, str],  # name -> SHA-256
) -> dict[str, Any]:
    """What is in the set."""
    first = cases[0]
    kinds = {key: Counter(case.classes[key] for case in cases if key in case.classes) for key in first.classes}
    return {
        "title": "Synthetic images, meddiff",
        "audited": audited,
        "images": len(cases),
        "format": format,
        "label_maps": sum(case.label is not None for case in cases),
        "labels": first.labels,
        "classes": {key: dict(sorted(counts.items())) for key, counts in kinds.items()},
        "voxels": list(first.shape),
        "spacing_mm": list(first.spacing_mm),
        "modality": first.image[0].modality,
        "unit": first.unit,
        "made_by": {"weights": made_by["weights"], "sample": made_by.get("sample"), "seed": made_by.get("seed")},
        "made_from": _made_from(record),
        "audit": _audit(record) if audited else None,
        "limits": record["unproven"] if audited and record else UNAUDITED,
        "use": USE,
        "licence": licence,
        "meddiff": version("meddiff"),
        "files": files,
    }


def model_card(made_by: dict[str, Any], record: dict[str, Any] | None, audited: bool, licence: str) -> dict[str, Any]:
    """What the model is that made the set."""
    return {
        "title": "The model of a synthetic set, meddiff",
        "audited": audited,
        "weights": made_by["weights"],
        "model": record["model"] if record else None,
        "config": record["config"] if record else None,
        "config_sha256": record["hashes"]["config"] if record else None,
        "made_from": _made_from(record),
        "metrics": record["metrics"] if record else None,
        "audit": _audit(record) if audited else None,
        "limits": record["unproven"] if audited and record else UNAUDITED,
        "use": USE,
        "licence": licence,
        "versions": record["versions"] if record else made_by.get("versions"),
    }


def written(name: str, card: dict[str, Any]) -> str:
    """A card as Markdown, from the template of its name."""
    pages = Environment(
        loader=PackageLoader("meddiff.report", "."), autoescape=False, undefined=StrictUndefined, trim_blocks=True
    )
    return pages.get_template(f"{name}.md.j2").render(card)


def _made_from(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Counts and a hash: names of cases or files may be names of people."""
    if record is None:
        return None
    return {**record["sets"]["training"], "training_manifest": record["hashes"]["training_manifest"]}


def _audit(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of an audit that names nobody."""
    if record is None:
        return None
    keys = ("verdict", "reasons", "sets", "gate", "copies", "membership", "limits", "limits_fixed")
    return {key: record[key] for key in keys}
