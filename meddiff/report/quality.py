"""Sets of samples in one table: `methods.csv` for programs, a few columns for people."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from meddiff.data.files import write_lines
from meddiff.engines.quality import Figure
from meddiff.metrics.tissue import Difference

FLOOR = "training images"


class Column(NamedTuple):
    """What a person is shown of a metric."""

    metric: str
    title: str
    digits: int


COLUMNS = (
    Column("encoder/kid", "KID", 3),
    Column("encoder/frechet", "Frechet", 1),
    Column("encoder/precision", "precision", 2),
    Column("encoder/recall", "recall", 2),
    Column("encoder/density", "density", 2),
    Column("encoder/coverage", "coverage", 2),
    Column("radiomic/kid", "radiomic KID", 3),
    Column("radiomic/coverage", "coverage", 2),
    Column("sliced_wasserstein", "sliced W.", 4),
    Column("ms_ssim", "MS-SSIM", 3),
)


def rows(
    quality: Mapping[str, Mapping[str, Figure]],  # set -> metric -> figure
    facts: Mapping[str, Mapping[str, str]],  # set -> title -> what else is known of it
) -> tuple[list[str], list[list[str]]]:
    """Titles, and a line for each set and one for as many training images; only metrics that were measured."""
    shown = [c for c in COLUMNS if c.metric in next(iter(quality.values()))]
    known = list(dict.fromkeys(title for of in facts.values() for title in of))
    lines = [
        [name, *(f"{of[c.metric].value:.{c.digits}f}" for c in shown), *(facts.get(name, {}).get(t, "") for t in known)]
        for name, of in quality.items()
    ]
    first = next(iter(quality.values()))
    lines.append([FLOOR, *(f"{first[c.metric].train:.{c.digits}f}" for c in shown), *("" for _ in known)])
    return ["set", *(c.title for c in shown), *known], lines


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
