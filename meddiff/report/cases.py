"""What an evaluation leaves behind: a table of cases, their means with intervals, and pictures of three of them."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from meddiff.data.files import write_lines
from meddiff.errors import MetricError
from meddiff.metrics.bootstrap import bootstrap_mean
from meddiff.report.figures import save_figure

Row = Mapping[str, Any]  # "case" and "patient" (names), and the same metrics (numbers) in every row
KEYS = ("case", "patient")
OPACITY = 0.5  # of labels over an image
BACKGROUND = 0  # the number that is never drawn over an image


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a case, drawn as given: `values[0]` is the top line."""

    title: str
    values: np.ndarray  # (height, width)
    limits: tuple[float, float]  # what gets the first and the last colour
    colours: str = "gray"  # a colour map of matplotlib; any other than gray gets a colour bar
    label: np.ndarray | None = None  # (height, width) numbers, drawn over the values


class Chosen(NamedTuple):
    """Names of three cases, by one metric; the median of an even number is the worse of the two in the middle."""

    worst: str
    median: str
    best: str


def choose(rows: Sequence[Row], by: str, higher_is_better: bool) -> Chosen:
    """The worst, the median and the best case; of equals, the first by name is the worse."""
    names = _metrics(rows)
    if by not in names:
        raise MetricError(f"Cases cannot be ranked by {by!r}: it was not measured. Choose one of {', '.join(names)}.")
    ranked = sorted(rows, key=lambda row: (row[by] if higher_is_better else -row[by], row["case"]))
    return Chosen(ranked[0]["case"], ranked[(len(ranked) - 1) // 2]["case"], ranked[-1]["case"])


def write_cases(
    folder: Path,
    rows: Sequence[Row],
    by: str,  # the metric that says which case is the worst
    higher_is_better: bool,
    pictures: Callable[[str], Sequence[Picture]],  # of a case by name: as many for each, with the same titles
    labels: Mapping[str, int] | None = None,  # name -> number of what the pictures' label maps show
    seed: int = 0,  # of the bootstrap
) -> Chosen:
    """Write `cases.csv`, `metrics.json` and `cases.png` into a folder; the same rows in any order give the same bytes.

    `pictures` is called for the cases that are shown only. MetricError where a case is there twice, a row lacks a metric
    that another has, or a value is not a finite number: nothing is left out of a mean.
    """
    chosen = choose(rows, by, higher_is_better)
    ordered = sorted(rows, key=lambda row: row["case"])
    write_table(folder / "cases.csv", ordered)
    patients = [row["patient"] for row in ordered]
    means = {name: asdict(bootstrap_mean([row[name] for row in ordered], patients, seed)) for name in _metrics(ordered)}
    facts = {"metrics": means, "interval": "95 % bootstrap over patients", "seed": seed, "ranked_by": by}
    text = json.dumps({**facts, **chosen._asdict()}, indent=2, allow_nan=False, ensure_ascii=False)
    write_lines(folder / "metrics.json", text.split("\n"))
    value = {row["case"]: row[by] for row in ordered}
    roles: dict[str, list[str]] = {}
    for role, case in chosen._asdict().items():
        roles.setdefault(case, []).append(role)
    shown = [(f"{', '.join(r)}: {c}\n{by} {value[c]:.4g}", pictures(c)) for c, r in roles.items()]
    save_cases(folder / "cases.png", shown, labels or {})
    return chosen


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """CSV (RFC 4180, lines end with a newline) of the rows as they come, numbers in full precision."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _metrics(rows)
    writer.writerow([*KEYS, *names])
    writer.writerows([row["case"], row["patient"], *(repr(float(row[n])) for n in names)] for row in rows)
    write_lines(path, text.getvalue().removesuffix("\n").split("\n"))


def save_cases(path: Path, rows: Sequence[tuple[str, Sequence[Picture]]], labels: Mapping[str, int]) -> None:
    """A PNG of named rows of pictures; `labels` (name -> number) are drawn over images and named in a legend."""
    count = len(rows[0][1])
    if not count or any(len(pictures) != count for _, pictures in rows):
        found = ", ".join(str(len(pictures)) for _, pictures in rows)
        raise MetricError(f"Every case needs the same number of pictures, one at least; found {found}.")
    for picture in (p for _, pictures in rows for p in pictures):
        if picture.label is not None and picture.label.shape != picture.values.shape:
            raise MetricError(
                f"{picture.title}: the label map has shape {picture.label.shape}, its image {picture.values.shape}; "
                "both must be one slice."
            )
    colours = label_colours(labels)
    height, width = rows[0][1][0].values.shape
    size = (2.6 * count + 0.4, (2.6 * height / width + 0.3) * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), count, figsize=size, squeeze=False, layout="constrained")
    for (name, pictures), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name, fontsize=8, parse_math=False)  # a name may hold a $
        for axis, picture in zip(line, pictures, strict=True):
            _draw(axis, picture, labels, colours)
    if colours:
        handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * count), fontsize=8)
    save_figure(figure, path)


def label_colours(labels: Mapping[str, int]) -> dict[str, tuple[float, float, float]]:
    """A colour (red, green, blue) from 0 to 1 for each label but the background, in the order of their numbers."""
    names = [n for n in sorted(labels, key=lambda n: labels[n]) if labels[n] != BACKGROUND]
    palette = matplotlib.colormaps["tab10"] if len(names) <= 10 else matplotlib.colormaps["turbo"].resampled(len(names))
    return {name: to_rgb(palette(i)) for i, name in enumerate(names)}


def _draw(
    axis: Axes, picture: Picture, labels: Mapping[str, int], colours: Mapping[str, tuple[float, float, float]]
) -> None:
    low, high = picture.limits
    drawn = axis.imshow(picture.values, cmap=picture.colours, vmin=low, vmax=high, interpolation="nearest")
    if picture.label is not None:
        overlay = np.zeros((*picture.label.shape, 4))
        for name, colour in colours.items():
            overlay[picture.label == labels[name]] = (*colour, OPACITY)
        axis.imshow(overlay, interpolation="nearest")
    if picture.colours != "gray":
        axis.figure.colorbar(drawn, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
    axis.set_title(picture.title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _metrics(rows: Sequence[Row]) -> list[str]:
    """The names of the metrics, in the first row's order; MetricError where the rows are not a whole table."""
    if not rows:
        raise MetricError("There is no case to report. Check that the split has cases and that not all of them failed.")
    first = rows[0]
    if not set(KEYS) < set(first):
        raise MetricError(f"A row has a case, a patient and at least one metric; found {', '.join(first)}.")
    for row in rows:
        if set(row) != set(first):
            differing = ", ".join(sorted(set(row) ^ set(first)))
            raise MetricError(
                f"{row.get('case')}: has other columns than {first['case']}: {differing}. Measure the same of all."
            )
    cases = [row["case"] for row in rows]
    if len(set(cases)) < len(cases):
        twice = next(c for c in cases if cases.count(c) > 1)
        raise MetricError(f"{twice}: is in the table twice. Give every case one row.")
    for row in rows:
        for name, value in row.items():
            if name not in KEYS and not isfinite(value):
                raise MetricError(f"{row['case']}: {name} is {value}, which no mean can hold. Give it a finite result.")
    return [name for name in first if name not in KEYS]
