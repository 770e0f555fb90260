"""SIGTERM and SIGUSR1, which clusters send before they kill: remembered until the run is at a step's end."""

import signal
import threading
from types import FrameType
from typing import Self

from meddiff.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Within it a signal raises Stopped at once or, from `begin` on, is kept in `asked` for the run to look at."""

    def __init__(self) -> None:
        self.asked = False
        self._running = False

    def begin(self) -> None:
        """From now on there is something to save first."""
        self._running = True

    def __enter__(self) -> Self:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # the only one that Python hands signals to
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._running:
            raise Stopped(f"{signal.Signals(number).name} came before the first step; nothing was lost.")
