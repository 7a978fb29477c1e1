"""The turns of catch-up: a few seconds of reading windows and taking what they show. `protocol.md` 10.

Live changes never wait behind it: a turn takes nothing more while some hundred mirrors are due, its searches stop
first where Medplum's quota runs short, and it is over after a few seconds. The position is in the ledger: whoever is
killed in the middle loses nothing, and the next turn goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from worker import log
from worker.catch_up.position import Position
from worker.catch_up.reading import Reading, Step
from worker.catch_up.sweeping import DAY_S, DUE_MOST, Sweeping
from worker.errors import BadResource, MedplumError, MedplumUnavailable
from worker.ledger import Ledger
from worker.ledger.windows import MovedOn, Window
from worker.medplum import Medplum
from worker.settings import WorkerSettings

__all__ = ["DUE_MOST", "CatchUp", "Found", "Turn"]

TURN_S = 4.0
HOLD_S = 10.0  # beyond a turn, for the call that it may end with; who dies in one delays its type by no more
AT_A_TIME = 250
YOUNG_S = 10.0
"""The notification of a row that is so young may be under way: a periodic reading leaves it to its next one."""

_REST_S = 2.0
_AWAY_S, _REFUSED_S = 10.0, 60.0

_log = log.get(__name__)


@dataclass(slots=True)
class Turn:
    """What one turn did, and why it ended."""

    ends_at: float
    by_a_person: bool = False
    pages: int = 0
    rows: int = 0
    found: int = 0
    swept: int = 0
    full: bool = False  # so much is due that nothing was taken
    trouble: str = ""
    left: list[str] = field(default_factory=list)  # what could not be read whole
    over: bool = False

    def words(self) -> str:
        """Say it for the ledger and the log; free of values."""
        done = f"{self.pages} pages, {self.rows} rows, {self.found} found"
        swept = f", {self.swept} read back" if self.swept else ""
        full = "; waits for what is due" if self.full else ""
        return done + swept + full + (f"; {self.trouble}" if self.trouble else "")


@dataclass(frozen=True, slots=True)
class Found:
    """What a dry run saw of one type: rows, and how many of them would become changes."""

    resource_type: str
    rows: int
    changes: int
    left: tuple[str, ...] = ()


class CatchUp:
    """The catch-up of one process. A turn of one type is taken by one thread at a time, over all processes."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        medplum: Medplum,
        instance: str,
        every_s: float,
        overlap_s: float,
        sweep_over_s: float,
        stopping: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
        reading: Callable[[Medplum], Reading] = Reading,
        due_most: int | None = DUE_MOST,
    ) -> None:
        self._ledger, self._medplum, self._instance = ledger, medplum, instance
        self._every_s, self._overlap, self._sweep_over_s = every_s, timedelta(seconds=overlap_s), sweep_over_s
        self._stopping, self._monotonic = stopping, monotonic
        self._make_reading, self._due_most = reading, due_most
        self._readings: dict[str, Reading] = {}  # by type: how large a page of it may be was found out once
        self._sweeping = Sweeping(ledger=ledger, medplum=medplum, over_s=sweep_over_s, due_most=due_most)
        self._young = timedelta(seconds=min(YOUNG_S, overlap_s / 2))

    @classmethod
    def of(
        cls,
        settings: WorkerSettings,
        *,
        ledger: Ledger,
        medplum: Medplum,
        instance: str,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Self:
        """Make the catch-up that the settings describe."""
        return cls(
            ledger=ledger,
            medplum=medplum,
            instance=instance,
            every_s=settings.catch_up_every_seconds,
            overlap_s=settings.catch_up_overlap_seconds,
            sweep_over_s=settings.sweep_days * DAY_S,
            stopping=stopping,
        )

    def provable_from(self, window: Window) -> datetime | None:
        """Say from when on a reading proves the end of a time in doubt; None for a route's own window."""
        return None if window.to_at is None else window.to_at + self._overlap

    def turn(self, resource_type: str, *, for_s: float = TURN_S, by_a_person: bool = False) -> Turn | None:
        """Read what is to be read of a type, for some seconds. None: somebody else is at it.

        `by_a_person`: it reads what is young as well, does not sweep, and stands back for nobody: of two who read the
        same window, one goes on.

        Raises:
            LedgerUnavailable: what was taken so far is committed, and the next turn goes on from there.
        """
        name = f"catch-up {resource_type}"
        if not by_a_person and not self._ledger.job(name, every_s=HOLD_S + for_s, instance=self._instance):
            return None
        turn = Turn(self._monotonic() + for_s, by_a_person)
        try:
            while self._goes_on(turn) and (window := self._ledger.next_window(resource_type)) is not None:
                self._read(window, turn)
            if self._goes_on(turn) and not by_a_person:
                turn.swept, turn.found = self._sweep(resource_type, turn)
        except MovedOn:
            turn.over = True
        finally:
            if not by_a_person:
                self._ledger.turn_over(name, turn.words())
        return turn

    def count(
        self, resource_type: str, since: datetime | None = None, tell: Callable[[int], object] = lambda rows: None
    ) -> Found:
        """Count what catch-up would find of a type, and take nothing."""
        own = self._ledger.watermark(resource_type)
        spans = [(window.from_at, window.to_at) for window in self._ledger.unread_windows(resource_type)]
        if own is not None and not any(end is None for _, end in spans):
            spans.append((own, None))
        if since is not None:
            spans = [(min(since, own or since), None)]
        rows, changes, left = 0, set[tuple[str, str | None]](), list[str]()
        for begin, end in spans:
            position: Position | None = Position(begin)
            while position is not None:
                step = self._reading(resource_type).step(resource_type, position, begin=begin, end=end)
                for hints, _ in step.parts(AT_A_TIME):
                    rows += len(hints)
                    changes |= {(hint.reference, hint.version_id) for hint in self._ledger.unsettled(hints)}
                left += [_unread(step)] if step.left else []
                position = step.then
                tell(rows)
        return Found(resource_type, rows, len(changes), tuple(left))

    def _reading(self, resource_type: str) -> Reading:
        return self._readings.setdefault(resource_type, self._make_reading(self._medplum))

    def _goes_on(self, turn: Turn) -> bool:
        return not turn.over and not self._stopping() and self._monotonic() < turn.ends_at

    def _read(self, window: Window, turn: Turn) -> None:
        """Read one window from where it stands, until it is read through or the turn is over."""
        reading = self._reading(window.resource_type)
        try:
            while self._goes_on(turn):
                position = Position.of(window.position, window.from_at)
                step = reading.step(window.resource_type, position, begin=window.from_at, end=window.to_at)
                taken = self._take(window, step, turn)
                if taken is None:
                    return
                window = taken
                if step.then is None:
                    self._end(window, turn)
                    return
        except MedplumError as problem:
            after_s = problem.retry_after_s if isinstance(problem, MedplumUnavailable) else _REFUSED_S
            self._rest(window, turn, str(problem), after_s or _AWAY_S)
        except BadResource as problem:
            self._rest(window, turn, f"what Medplum has there is no FHIR resource: {problem}", _REFUSED_S)

    def _take(self, window: Window, step: Step, turn: Turn) -> Window | None:
        """Take a page in parts. None where the window is not to be read on in this turn."""
        if step.left is not None:
            turn.left.append(_unread(step))
            if not self._ledger.leave_unread(window, step.left, step.why):
                return None
        own = window.to_at is None
        leave = step.at - self._young if own and not turn.by_a_person else None
        turn.pages += 1
        for hints, position in step.parts(AT_A_TIME, leave):
            taken = self._ledger.take_found(window, position.text(), hints, asked_at=step.at, due_most=self._due_most)
            if taken is None:
                turn.full = turn.over = True
                self._ledger.put_off(window, after_s=_REST_S)
                return None
            window, found = taken
            turn.rows += len(hints)
            turn.found += found
            if found and not turn.by_a_person:  # a command tells itself what it found
                _log.info("found by catch-up", resource_type=window.resource_type, changes=found, why=window.reason)
        return window

    def _end(self, window: Window, turn: Turn) -> None:
        """Say how far a reading proves its window: to the overlap before Medplum's time when it began."""
        if window.asked_at is None:
            raise AssertionError("a window that was read through has a time at which that began")
        proven_to = window.asked_at - self._overlap
        self._ledger.end_reading(window, proven_to=proven_to, again_s=self._every_s)

    def _rest(self, window: Window, turn: Turn, why: str, after_s: float) -> None:
        turn.trouble, turn.over = why, True
        self._ledger.put_off(window, after_s=after_s)
        if not turn.by_a_person:
            _log.warning("catch-up rests", resource_type=window.resource_type, why=why)

    def _sweep(self, resource_type: str, turn: Turn) -> tuple[int, int]:
        """Read known ids back, if it is their time. Returns how many, and what the turn has found with them."""
        swept = self._sweeping.run(resource_type, goes_on=lambda: self._goes_on(turn))
        turn.trouble, turn.full = swept.trouble, turn.full or swept.full
        return swept.read, turn.found + swept.found


def _unread(step: Step) -> str:
    return f"{step.left:%Y-%m-%d %H:%M:%S.%f} UTC: {step.why}"
