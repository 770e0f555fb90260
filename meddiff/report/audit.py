"""The audit as files: audit.json for programs and audit.html, one offline page, for people."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from meddiff.audit_config import AuditConfig
from meddiff.data.files import write_whole
from meddiff.report.figures import METADATA, view

COLOURS = {"PASS": "#1b7a3d", "FAIL": "#b00020", "INCONCLUSIVE": "#8a6d00"}
ZOOM = 2
UNPROVEN = (
    "A PASS says that this detector, which finds the planted changes, found no more copies than chance in these files, and that "
    "three published attacks on this model find hardly anyone. It is no proof of anonymity. A copy after a change that was not "
    "planted, a copy of a part of an image, or one that only a person would recognise, is not seen. Other and future attacks may "
    "do better, most of all with more knowledge than the attacks here have. Nothing is said about patients as a group, about "
    "rare findings that point to one person, about text or labels that leave with the images, or about samples drawn later. "
    "The intervals are of 95 %: one in twenty misses. With differential privacy a bound is proven; here one is measured."
)


def write_audit(
    folder: Path,
    record: dict[str, Any],  # of `privacy.audit`: everything that audit.json holds
    pairs: list[tuple[Tensor, Tensor]],  # synthetic and training image (1, *size) of each of record["pairs"]
) -> None:
    """Write both files; the same audit gives the same bytes."""
    record = {**record, "unproven": UNPROVEN}
    page = _environment().get_template("audit.html.j2")
    pictures = [_picture(*pair) for pair in pairs]
    limits = record["limits"]
    html = page.render(
        **{**record, "pairs": [{**one, "png": png} for one, (png, _) in zip(record["pairs"], pictures, strict=True)]},
        colour=COLOURS[record["verdict"]],
        defaults={name: AuditConfig.model_fields[name].default for name in limits},
        picture_px=ZOOM * max((width for _, width in pictures), default=64),
        percent=lambda rate: "{:.2f} % ({:.2f} to {:.2f} %)".format(*(100 * rate[k] for k in ("rate", "low", "high"))),
        fixed=_fixed(record["limits_fixed"]),
    )
    write_whole(folder / "audit.html", html.encode())
    write_whole(folder / "audit.json", json.dumps(record, indent=2).encode())


def _environment() -> Environment:
    return Environment(loader=PackageLoader("meddiff.report", "."), autoescape=True, undefined=StrictUndefined)


def _picture(synthetic: Tensor, training: Tensor) -> tuple[str, int]:
    """Both side by side as PNG in base64, and the width in voxels."""
    both = np.concatenate([np.pad(view(image), 1, constant_values=-1) for image in (synthetic, training)], axis=1)
    file = io.BytesIO()
    plt.imsave(
        file, both.repeat(ZOOM, 0).repeat(ZOOM, 1), cmap="gray", vmin=-1, vmax=1, metadata=METADATA, format="png"
    )
    return base64.b64encode(file.getvalue()).decode(), both.shape[1]


def _fixed(state: str) -> str:
    return {
        "yes": "The model's card holds the digest of these limits: nobody moved them after the training.",
        "not recorded": "The model was trained before limits were recorded in its card; whether they were moved is unknown.",
    }[state]
