"""The inbox: hints into the ledger, many to a transaction. `put` returns when its hint is committed, never before.

One transaction is under way at a time, in a thread of its own; what arrives meanwhile goes into the next one. So a lone
notification waits for nobody, and a burst pays for one flush to disk instead of hundreds. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple, Protocol

from worker.errors import LedgerUnavailable
from worker.ledger.values import Accepted, Hint
from worker.log import described, get

__all__ = ["Accepting", "Bell", "Inbox"]

BATCH: Final = 500
GIVE_UP_AFTER: Final = 2
WAITING: Final = 2_000  # hints before the inbox itself says "not now": a ledger that hangs must not fill the memory

log = get(__name__)


class Bell(Protocol):
    """Tells the workers which mirrors have become due. Never blocks; losing it costs time alone: dispatch looks too."""

    def room(self) -> int:
        """Say for how many mirrors it can be rung now."""
        ...

    def ring(self, references: Sequence[str]) -> None: ...


class Accepting(Protocol):
    """The ledger's side of intake."""

    def accept(self, hints: Sequence[Hint], *, ring_most: int) -> Accepted: ...


class _Entry(NamedTuple):
    hint: Hint
    done: asyncio.Future[None]


class Inbox:
    """Group commit in front of a ledger. Belongs to one event loop."""

    def __init__(self, ledger: Accepting, bell: Bell, *, batch: int = BATCH, waiting: int = WAITING) -> None:
        self._ledger = ledger
        self._bell = bell
        self._batch = batch
        self._limit = waiting
        self._waiting: deque[_Entry] = deque()
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inbox")

    async def put(self, hint: Hint) -> None:
        """Commit the hint to the ledger.

        Raises:
            LedgerUnavailable: the hint is not in the ledger; the sender should try again.
        """
        if len(self._waiting) >= self._limit:
            raise LedgerUnavailable("the ledger does not keep up")
        loop = asyncio.get_running_loop()
        entry = _Entry(hint, loop.create_future())
        self._waiting.append(entry)
        if self._running is None:
            self._running = loop.create_task(self._drain())
        await entry.done

    async def close(self) -> None:
        """Commit what waits and end the thread. Nothing may be put any more."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                entries = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
                await self._commit(entries)
        finally:
            self._running = None

    async def _commit(self, entries: Sequence[_Entry]) -> None:
        error = await self._accept(entries)
        if error is None:
            return
        if len(entries) == 1:
            _fail(entries, error)
            return
        await self._commit_alone(entries)

    async def _commit_alone(self, entries: Sequence[_Entry]) -> None:
        """Commit one by one after a batch failed: one hint that the ledger cannot take must not turn the others away.

        Two failures in a row are taken for the ledger's own, and the rest is not tried: each try could cost a time-out.
        """
        failures = 0
        for number, entry in enumerate(entries):
            error = await self._accept([entry])
            if error is None:
                failures = 0
                continue
            failures += 1
            _fail([entry], error)
            if failures == GIVE_UP_AFTER:
                _fail(entries[number + 1 :], error)
                return

    async def _accept(self, entries: Sequence[_Entry]) -> LedgerUnavailable | None:
        """Have the ledger accept these in one transaction; answer their senders and ring, or return what went wrong."""
        hints = [entry.hint for entry in entries]
        try:
            accepting = partial(self._ledger.accept, hints, ring_most=self._bell.room())
            accepted = await asyncio.get_running_loop().run_in_executor(self._thread, accepting)
        except LedgerUnavailable as error:
            return error
        except Exception as error:  # whatever it is, each sender needs an answer
            log.error("the ledger did not take hints", hints=len(hints), error=described(error))  # noqa: TRY400 - nothing of its text
            return LedgerUnavailable("the ledger did not take the hint")
        _succeed(entries)
        self._tell(accepted.queued)
        return None

    def _tell(self, queued: Sequence[str]) -> None:
        try:
            if queued:
                self._bell.ring(queued)
        except Exception as error:
            log.error("the doorbell failed", error=described(error))  # noqa: TRY400 - dispatch finds the work anyway


def _succeed(entries: Sequence[_Entry]) -> None:
    for entry in entries:
        if not entry.done.done():  # its sender may have gone
            entry.done.set_result(None)


def _fail(entries: Sequence[_Entry], error: LedgerUnavailable) -> None:
    for entry in entries:
        if not entry.done.done():
            entry.done.set_exception(LedgerUnavailable(str(error)))
