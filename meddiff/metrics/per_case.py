"""An Ignite metric that measures every case by itself, and is the same on one process and on many."""

from collections.abc import Callable, Mapping, Sequence
from math import fsum, isfinite
from typing import Any

import ignite.distributed as idist
from ignite.metrics import Metric

from meddiff.errors import MetricError


class PerCase(Metric):
    """Mean over cases of what `measure` says of each: a case counts once, however many voxels it has.

    Updated with `(cases, *columns)`: the names of a batch's cases, and as many columns as `measure` takes arguments, each
    a tensor (B, ...) or a list of B things. `measure` gives the numbers of one case by name, for instance
    `lambda p, y: dice_per_label(p, y, labels)`; the names must be those of every case. `compute` gives the mean of each.

    On several processes the cases of all are gathered by name. A case that a sampler gave to two of them, to even their
    numbers, counts once. Means are exactly rounded sums, so that the result does not depend on who measured what.
    """

    required_output_keys = None

    def __init__(
        self,
        measure: Callable[..., Mapping[str, float]],
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self._measure = measure
        super().__init__(output_transform, device="cpu", skip_unrolling=True)

    def reset(self) -> None:
        self._values: dict[str, dict[str, float]] = {}

    def update(self, output: tuple[Sequence[str], *tuple[Sequence[Any], ...]]) -> None:
        cases, *columns = output
        for case, *arguments in zip(cases, *columns, strict=True):
            if case in self._values:
                raise MetricError(f"{case}: measured twice in one epoch. Give every case a name of its own.")
            values = {name: float(value) for name, value in self._measure(*arguments).items()}
            for name, value in values.items():
                if not isfinite(value):
                    raise MetricError(f"{case}: {name} is {value}, which no mean can hold. Give it a finite result.")
            self._values[case] = values

    def rows(self) -> list[dict[str, Any]]:
        """What was measured, `{"case": name, **values}`, by case; of all processes, each of which must call it."""
        by_rank: Any = idist.all_gather(self._values)
        everywhere: dict[str, dict[str, float]] = {}
        for values in reversed(by_rank):  # the lowest rank last: its values stay
            everywhere |= values
        return [{"case": case, **everywhere[case]} for case in sorted(everywhere)]

    def compute(self) -> dict[str, float]:
        rows = self.rows()
        if not rows:
            raise MetricError("No case was measured. Check that the split has cases.")
        names = [name for name in rows[0] if name != "case"]
        for row in rows:
            if set(row) != set(rows[0]):
                raise MetricError(f"{row['case']}: measured {sorted(row)}, but {rows[0]['case']} {sorted(rows[0])}.")
        return {name: fsum(row[name] for row in rows) / len(rows) for name in names}
