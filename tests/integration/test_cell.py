"""`worker.cell` with real children: what the parent hears when one answers, dies, hangs, or has to stop."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from worker.cell import Cell, Verdict
from worker.process import Instance

CHILD = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
for line in sys.stdin:
    does = line.strip().partition("/")[2]
    if does == "die": os.kill(os.getpid(), signal.SIGKILL)
    if does == "exit": sys.exit(3)
    if does == "hang": time.sleep(600)
    if does == "slow": time.sleep(1)
    if does == "babble": print("no json", flush=True); continue
    print(json.dumps({"kind": "done", "words": f"{does} by {os.getpid()}"}), flush=True)
"""


@pytest.fixture
def cell() -> Iterator[Cell]:
    """Make a cell whose children end as the reference says."""
    cell = Cell(limit_s=3, patience_s=0.3, command=command)
    yield cell
    cell.close()


def command(_: Instance) -> list[str]:
    return [sys.executable, "-c", CHILD]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "signal.SIGTERM" in " ".join(child.cmdline())]


def eventually(fact: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until the fact holds; a fact that never does fails the test."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "the fact never came to hold"
        time.sleep(0.01)


def test_one_child_answers_many(cell: Cell) -> None:
    """The child stays: its imports are paid for once."""
    first, second = cell.run("Patient/a"), cell.run("Patient/b")
    assert (first.kind, second.kind) == ("done", "done")
    assert first.words.split()[-1] == second.words.split()[-1]
    assert first.instance == second.instance


@pytest.mark.parametrize("how", ["die", "exit", "babble"])
def test_its_death_is_the_answer_and_the_next_suspect_has_a_new_child(cell: Cell, how: str) -> None:
    """SIGKILL, an exit or nonsense instead of an answer: died, with the instance that is no more."""
    first = cell.run("Patient/a")
    died = cell.run(f"Patient/{how}")
    assert (died.kind, died.instance) == ("died", first.instance)
    after = cell.run("Patient/b")
    assert after.kind == "done"
    assert after.instance != first.instance


def test_a_child_that_hangs_is_killed(cell: Cell) -> None:
    """Beyond its limit a child is taken for dead, and is dead."""
    died = cell.run("Patient/hang")
    assert died.kind == "died"
    assert "in time" in died.words
    assert children() == []


def test_suspects_take_turns_and_do_not_take_all_threads(cell: Cell) -> None:
    """While one runs the others wait a little and are then sent back to the ledger; none is run beside it."""
    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=lambda: verdicts.append(cell.run("Patient/slow"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(verdict.kind for verdict in verdicts) == ["busy"] * 5 + ["done"]


def test_after_stop_nothing_is_run(cell: Cell) -> None:
    """A worker that stops starts no child."""
    cell.stop()
    assert cell.run("Patient/a").kind == "busy"
    assert children() == []


def test_closing_lets_a_running_call_end(cell: Cell) -> None:
    """`close` waits for the call that runs in the child, then the child is gone."""
    verdicts: list[Verdict] = []
    cell.run("Patient/a")
    thread = threading.Thread(target=lambda: verdicts.append(cell.run("Patient/slow")))
    thread.start()
    eventually(cell._turn.locked)
    cell.close()
    thread.join(5)
    assert [verdict.kind for verdict in verdicts] == ["done"]
    assert children() == []
