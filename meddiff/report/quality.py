"""Sets of samples in one table: `methods.csv` for programs, a few columns for people."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from meddiff.data.files import write_lines
from meddiff.engines.quality import Figure
from meddiff.metrics.tissue import Difference

FLOOR = "training images"


class Shown(NamedTuple):
    """How a person is shown a metric."""

    metric: str
    title: str
    digits: int


SHOWN = (
    Shown("encoder/kid", "KID", 3),
    Shown("encoder/frechet", "Frechet distance", 1),
    Shown("encoder/frechet_bias", "  of it owed to n", 1),
    Shown("encoder/precision", "precision", 2),
    Shown("encoder/recall", "recall", 2),
    Shown("encoder/density", "density", 2),
    Shown("encoder/coverage", "coverage", 2),
    Shown("radiomic/kid", "KID, radiomic", 3),
    Shown("radiomic/coverage", "coverage, radiomic", 2),
    Shown("sliced_wasserstein", "sliced Wasserstein", 4),
    Shown("ms_ssim", "MS-SSIM of pairs", 3),
)


def rows(
    quality: Mapping[str, Mapping[str, Figure]],  # set -> metric -> figure
    facts: Mapping[str, Mapping[str, str]],  # set -> title -> what else is known of it
) -> tuple[list[str], list[list[str]]]:
    """Titles, one a set and one for as many training images, and a line for each metric that was measured."""
    first = next(iter(quality.values()))
    known = list(dict.fromkeys(title for of in facts.values() for title in of))
    lines = [
        [title, *(_text(of[metric], digits) for of in quality.values()), f"{first[metric].train:.{digits}f}"]
        for metric, title, digits in SHOWN
        if metric in first
    ]
    lines += [[title, *(facts.get(name, {}).get(title, "") for name in quality), ""] for title in known]
    return [f"n = {first['ms_ssim'].n}", *quality, FLOOR], lines


def _text(figure: Figure, digits: int) -> str:
    """The value with its interval, if it has one."""
    value = f"{figure.value:.{digits}f}"
    if figure.low == figure.high:
        return value
    return f"{value} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def write_quality(path: Path, quality: Mapping[str, Mapping[str, Figure]]) -> None:
    """Every metric of every set, with its 95 % interval and the training images' figure, as CSV."""
    names = [f.name for f in fields(Figure)]
    lines = [f"method,metric,{','.join(names)}"]
    for method, of in quality.items():
        lines += [
            f'"{method}",{metric},{",".join(map(repr, asdict(figure).values()))}' for metric, figure in of.items()
        ]
    write_lines(path, lines)


def write_tissues(path: Path, table: Mapping[str, Mapping[str, Difference]]) -> None:
    """Intensities by tissue as CSV."""
    names = [f.name for f in fields(Difference)]
    lines = [f"tissue,set,{','.join(names)}"]
    for tissue, of in table.items():
        lines += [f'"{tissue}",{kind},{",".join(map(repr, asdict(d).values()))}' for kind, d in of.items()]
    write_lines(path, lines)


def plain(quality: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures as JSON holds them."""
    return {name: {metric: asdict(figure) for metric, figure in of.items()} for name, of in quality.items()}
