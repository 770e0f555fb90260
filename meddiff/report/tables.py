"""Several methods on the same cases: one table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddiff.data.files import write_lines
from meddiff.metrics.bootstrap import bootstrap_mean
from meddiff.report.cases import KEYS, Picture, Row, write_cases


def write_methods(
    folder: Path,
    rows: Mapping[str, Sequence[Row]],  # of each method; the first is the one that is reported in full
    by: str,
    higher_is_better: bool,
    pictures: Callable[[str], Sequence[Picture]],
    labels: Mapping[str, int],
    facts: Mapping[str, Any],
) -> None:
    """`cases.csv`, `metrics.json` and `cases.png` of the first method, and `methods.csv`: means of all with 95 % intervals."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(rows.values()))
    write_cases(folder, first, by, higher_is_better, pictures, labels)
    names = [name for name in first[0] if name not in KEYS]
    lines = ["method,metric,mean,low,high,cases,patients"]
    table: dict[str, dict[str, Any]] = {}
    for method, of_method in rows.items():
        patients = [row["patient"] for row in of_method]
        for name in names:
            interval = bootstrap_mean([row[name] for row in of_method], patients)
            table.setdefault(method, {})[name] = asdict(interval)
            values = (interval.mean, interval.low, interval.high, interval.cases, interval.patients)
            lines.append(f'"{method}",{name},{",".join(map(repr, values))}')
    write_lines(folder / "methods.csv", lines)
    path = folder / "metrics.json"
    whole = {**json.loads(path.read_text(encoding="utf-8")), "methods": table, **facts}
    write_lines(path, json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False).split("\n"))
