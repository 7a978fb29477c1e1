"""How the demo ends before its time: a signal becomes one exception, and never in the middle of starting a process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """Somebody ends the demo. No Exception: nothing on the way may take it for a fault of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Ending:
    """Hears the first signal and no other: a second Ctrl-C must not leave processes behind."""

    def __init__(self) -> None:
        self._shielded = False
        self._deaf = False
        self._waits: int | None = None

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def ignore(self) -> None:
        """Let no signal disturb what ends everything."""
        self._deaf = True

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Keep a signal waiting for a moment: a process that was started and not yet noted would be forgotten."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
        if self._waits is not None:
            raise Signalled(self._waits)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._deaf:
            return
        self._deaf = True
        if self._shielded:
            self._waits = number
        else:
            raise Signalled(number)
