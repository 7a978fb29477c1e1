"""`webhook.inbox` over a ledger that the test holds still, breaks and mends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from webhook.inbox import Inbox
from worker.errors import LedgerUnavailable
from worker.ledger.values import Accepted, Hint

Wrong = Callable[[Sequence[Hint]], Exception | None]


class Ledger:
    """Accepts what is not wrong, all of a call or nothing of it, and waits at a gate while a test holds it."""

    def __init__(self, wrong: Wrong = lambda _: None) -> None:
        self.wrong = wrong
        self.calls: list[list[str]] = []
        self.committed: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.together = 0
        self.most_together = 0

    def accept(self, hints: Sequence[Hint], *, ring_most: int) -> Accepted:
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        references = [hint.reference for hint in hints]
        self.calls.append(references)
        assert self.open.wait(10)
        self.together -= 1
        if error := self.wrong(hints):
            raise error
        self.committed += references
        return Accepted(inserted=len(hints), repeated=0, woken=tuple(references), queued=tuple(references[:ring_most]))


class Bell:
    """Has so much room, and notes for whom it rang; with less than none it is broken."""

    def __init__(self, room: int = 1000) -> None:
        self._room = room
        self.rung: list[str] = []

    def room(self) -> int:
        return self._room

    def ring(self, references: Sequence[str]) -> None:
        if self._room < 0:
            raise ConnectionError("SECRET")
        self.rung += references


def references(count: int) -> list[str]:
    """Name so many resources."""
    return [f"Patient/{number}" for number in range(count)]


def unavailable(_: object = None) -> Exception:
    """Be a database that is away."""
    return LedgerUnavailable("the ledger's database: OperationalError")


def bad(*references: str, error: type[Exception] = ValueError) -> Wrong:
    """Refuse every batch with one of these in it."""
    words = "away" if error is LedgerUnavailable else "SECRET"  # our own errors never hold one
    return lambda hints: error(words) if {hint.reference for hint in hints} & set(references) else None


async def outcomes(puts: Sequence[Awaitable[None]]) -> list[bool]:
    """Say of each put whether it was committed; nothing but the one error may come out."""
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert all(result is None or type(result) is LedgerUnavailable for result in results), results
    assert not any("SECRET" in str(result) for result in results)
    return [result is None for result in results]


async def until(fact: Callable[[], bool]) -> None:
    """Wait for a fact, with a deadline."""
    async with asyncio.timeout(10):
        while not fact():
            await asyncio.sleep(0.001)


def test_put_returns_after_the_commit_and_the_bell_rings_then() -> None:
    """While the transaction runs neither the sender nor the workers hear anything."""
    ledger, bell = Ledger(), Bell()

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, bell)
        put = asyncio.create_task(inbox.put(Hint("Patient/1")))
        await until(lambda: ledger.calls == [["Patient/1"]])
        assert not put.done()
        assert bell.rung == []
        ledger.open.set()
        await put
        assert ledger.committed == ["Patient/1"]
        await inbox.close()
        assert bell.rung == ["Patient/1"]

    asyncio.run(scenario())


def test_what_arrives_during_a_commit_shares_the_next_one() -> None:
    """One transaction at a time, and all that waited for it goes into the next, up to the size of a batch."""
    ledger = Ledger()

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, Bell(), batch=4)
        first, *others = [asyncio.create_task(inbox.put(Hint(reference))) for reference in references(1)]
        await until(lambda: len(ledger.calls) == 1)
        others = [asyncio.create_task(inbox.put(Hint(f"Condition/{number}"))) for number in range(6)]
        await asyncio.sleep(0)
        ledger.open.set()
        assert all(await outcomes([first, *others]))
        await inbox.close()

    asyncio.run(scenario())
    assert [len(call) for call in ledger.calls] == [1, 4, 2]
    assert ledger.most_together == 1


def test_a_ledger_that_is_away_turns_the_whole_batch_away_quickly() -> None:
    """Nobody is told that it was accepted, and after two tries more nothing is tried for each of many."""
    ledger, bell = Ledger(wrong=unavailable), Bell()

    async def scenario() -> None:
        inbox = Inbox(ledger, bell)
        assert await outcomes([inbox.put(Hint(reference)) for reference in references(50)]) == [False] * 50
        assert len(ledger.calls) <= 3
        assert bell.rung == []
        ledger.wrong = lambda _: None
        assert await outcomes([inbox.put(Hint("Patient/later"))]) == [True]
        await inbox.close()

    asyncio.run(scenario())
    assert ledger.committed == ["Patient/later"]


@pytest.mark.parametrize("error", [ValueError, LedgerUnavailable])
def test_one_hint_that_the_ledger_cannot_take_does_not_turn_the_others_away(error: type[Exception]) -> None:
    """The batch is taken apart: its neighbours are committed, and only its own sender is refused."""
    ledger = Ledger(wrong=bad("Patient/0", "Patient/7", error=error))

    async def scenario() -> list[bool]:
        inbox = Inbox(ledger, Bell())
        committed = await outcomes([inbox.put(Hint(reference)) for reference in references(20)])
        await inbox.close()
        return committed

    assert asyncio.run(scenario()) == [number not in {0, 7} for number in range(20)]
    assert sorted(ledger.committed) == sorted(set(references(20)) - {"Patient/0", "Patient/7"})


def test_a_bell_that_fails_takes_nothing_back() -> None:
    """The commit stands and the next one works: dispatch finds the mirrors anyway."""
    ledger = Ledger()

    async def scenario() -> None:
        inbox = Inbox(ledger, Bell(room=-1))
        assert await outcomes([inbox.put(Hint("Patient/1"))]) == [True]
        assert await outcomes([inbox.put(Hint("Patient/2"))]) == [True]
        await inbox.close()

    asyncio.run(scenario())


def test_a_sender_that_left_disturbs_nobody() -> None:
    """A put that was cancelled in the middle of its commit is committed all the same, and so are its neighbours."""
    ledger = Ledger()

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, Bell())
        puts = [asyncio.create_task(inbox.put(Hint(reference))) for reference in references(3)]
        await until(lambda: len(ledger.calls) == 1)
        puts[1].cancel()
        await asyncio.sleep(0)
        ledger.open.set()
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
        await inbox.close()

    asyncio.run(scenario())
    assert ledger.committed == references(3)


def test_closing_commits_what_waits() -> None:
    """What was put before the end is answered before the end."""
    ledger = Ledger()

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, Bell(), batch=1)
        puts = [asyncio.create_task(inbox.put(Hint(reference))) for reference in references(5)]
        await until(lambda: len(ledger.calls) == 1)
        ledger.open.set()
        await inbox.close()
        assert ledger.committed == references(5)
        assert all(await outcomes(puts))

    asyncio.run(scenario())


def test_a_ledger_that_hangs_does_not_gather_requests_without_end() -> None:
    """Beyond its limit the inbox says so at once."""
    ledger = Ledger()

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, Bell(), batch=1, waiting=3)
        first = asyncio.create_task(inbox.put(Hint("Patient/first")))
        await until(lambda: len(ledger.calls) == 1)
        puts = [asyncio.create_task(inbox.put(Hint(reference))) for reference in references(3)]
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable, match="keep up"):
            await inbox.put(Hint("Patient/too-many"))
        ledger.open.set()
        assert all(await outcomes([first, *puts]))
        await inbox.close()

    asyncio.run(scenario())


def test_it_rings_for_what_the_ledger_queued_and_asks_the_bell_how_many_that_may_be() -> None:
    """The bell's room goes into the transaction; for mirrors that woke beyond it nobody rings."""
    ledger, bell = Ledger(), Bell(room=2)

    async def scenario() -> None:
        ledger.open.clear()
        inbox = Inbox(ledger, bell)
        first = asyncio.create_task(inbox.put(Hint("Condition/first")))
        await until(lambda: len(ledger.calls) == 1)
        puts = [asyncio.create_task(inbox.put(Hint(reference))) for reference in references(5)]
        await asyncio.sleep(0)
        ledger.open.set()
        assert all(await outcomes([first, *puts]))
        await inbox.close()

    asyncio.run(scenario())
    assert bell.rung == ["Condition/first", *references(2)]
