"""Cases that turn out unreadable in a run: others stand in for them, they are listed, and too many of them end the run."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from meddiff.data.latents import LatentImages
from meddiff.data.loader import Images
from meddiff.data.manifest import Case
from meddiff.engines.processes import first, gathered
from meddiff.engines.run import Run
from meddiff.errors import CaseError, ManifestError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Quarantine:
    """The unreadable cases of a run, by name, and why."""

    def __init__(self, limit: float, among: int) -> None:  # share of the cases of the run, and their number
        self.limit, self.among = limit, among
        self.cases: dict[str, str] = {}
        self._listed: set[str] = set()

    def add(self, case: str, why: str) -> None:
        """One case; ManifestError where they are more than the limit now."""
        if case in self.cases:
            return
        self.cases[case] = why
        if len(self.cases) > self.limit * self.among:
            raise ManifestError(
                f"{len(self.cases)} of {self.among} cases cannot be read, which is more than data.unreadable_limit = "
                f"{self.limit:g}: {why} Mend or remove them, or raise the limit."
            )
        log.warning("%s. It is left out; so far %d of %d cases.", why.rstrip("."), len(self.cases), self.among)

    def readable(self, cases: Sequence[Case], build: Callable[[Sequence[Case]], T]) -> T:
        """What `build` makes of the cases, without those that it raises CaseError for."""
        left = list(cases)
        while True:
            try:
                return build(left)
            except CaseError as e:
                self.add(e.case, str(e))
                left = [case for case in left if case.case != e.case]

    def found(self, images: Images | LatentImages, numbers: Sequence[int]) -> bool:
        """Add the cases of these numbers, -1 being none; whether any of them is new."""
        before = len(self.cases)
        for number in {n for n in numbers if n >= 0}:
            self.add(images.cases[number].case, _why(images, number))
        return len(self.cases) > before

    def share(self) -> None:
        """Take over what the other processes found; all of them must call it."""
        for cases in gathered(self.cases):
            for case, why in cases.items():
                self.add(case, why)

    def write(self, run: Run, step: int) -> None:
        """List what is not listed yet in the run's quarantine.jsonl; the first process does."""
        new = [case for case in self.cases if case not in self._listed]
        self._listed.update(new)
        if first() and new:
            with run.quarantine_path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, "case": c, "why": self.cases[c]}) + "\n" for c in new)


def _why(images: Images | LatentImages, number: int) -> str:
    """The error of reading a case, which a loader process met."""
    item = next(i for i, one in enumerate(images.items) if one.case == number)
    try:
        images.image(item, 0)
    except CaseError as e:
        return str(e)
    return f"{images.cases[number].case}: could not be read once, and now it can."
