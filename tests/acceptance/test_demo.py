"""The demo as its audience has it: real processes, alone and at a terminal. Each run has a `var` of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "worker.cli", "demo"]
WITHIN_S = 170.0


class Audience:
    """Somebody who watches the demo, over a terminal or a pipe, and may type."""

    def __init__(self, var: Path, *arguments: str, terminal: bool) -> None:
        self._ours, theirs = pty.openpty() if terminal else os.pipe()
        environment = {**os.environ, "REVERSE_SYNC_VAR": str(var), "COLUMNS": "250", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def sees(self, words: str) -> str:
        """Wait until the words were told, and return everything that was."""
        until = time.monotonic() + WITHIN_S
        while words not in self.seen:
            assert time.monotonic() < until, f"never told: {words}\n{self.seen[-4000:]}"
            assert self._read(), f"ended without telling: {words}\n{self.seen[-4000:]}"
        return self.seen

    def to_the_end(self) -> int:
        """Watch to the end and return the exit code."""
        while self._read():
            pass
        return self.process.wait(WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        os.close(self._ours)

    def _read(self) -> bool:
        """Read what is told next. False: there will be no more."""
        ready, _, _ = select.select([self._ours], [], [], WITHIN_S)
        assert ready, f"silence\n{self.seen[-4000:]}"
        try:
            told = os.read(self._ours, 65536)
        except OSError:  # a terminal whose other end is closed
            return False
        self.seen += told.decode(errors="replace")
        return bool(told)


Watch = Callable[..., Audience]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Start the demo with a `var` of this test's own; whatever is left of it is ended with the test."""
    watching: list[Audience] = []

    def start(*arguments: str, terminal: bool = False) -> Audience:
        watching.append(Audience(tmp_path, *arguments, terminal=terminal))
        return watching[-1]

    yield start
    for audience in watching:
        audience.close()


def left_behind(var: Path) -> list[str]:
    """Name the processes that belong to a demo: the folder is in what they were started with."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(var) in text for text in told):
            found.append(" ".join(process.cmdline()))
    return found


def test_alone_it_plays_six_acts_and_ends_well(watch: Watch, tmp_path: Path) -> None:
    """Without a terminal it ends by itself with 0: both systems agree, nothing is doubled, and no process is left."""
    demo = watch("--once")
    code = demo.to_the_end()
    assert code == 0, demo.seen
    acts = re.findall(r"^([1-6])    \w", demo.seen, re.MULTILINE)
    assert acts == list("123456"), demo.seen
    assert "Every resource agrees" in demo.seen
    assert "doubled: 0" in demo.seen
    assert left_behind(tmp_path) == []


def test_a_person_mends_the_row_and_replays(watch: Watch, tmp_path: Path) -> None:
    """At a terminal the edit and the command that it proposes bring the refused record through; Ctrl-C ends it with 0.

    An edit that does not even import is told with its line, and the next one is taken.
    """
    demo = watch(terminal=True)
    told = demo.sees("waits for you")
    path, wrong, right = re.findall(r"edit  (\S+), line \d+:  (.+?)  →  (\S+ \S+)", told)[0]
    command = re.findall(r"type  (.+ --yes)", told)[0]
    mapping = ROOT / path
    mended = mapping.read_text().replace(wrong, right)

    mapping.write_text("this is no Python\n" + mended)
    demo.sees("a worker does not start with this edit")
    demo.sees("patient.py:1: ")
    mapping.write_text(mended)
    demo.sees("the workers have the mapping as it is now")
    subprocess.run(command.strip().split(), cwd=ROOT, check=True, capture_output=True, timeout=30)

    demo.sees("Everything goes on running")
    demo.process.send_signal(signal.SIGINT)
    assert demo.to_the_end() == 0, demo.seen[-4000:]
    assert "Every resource agrees" in demo.seen
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_a_signal_leaves_no_process_behind(watch: Watch, tmp_path: Path, number: signal.Signals) -> None:
    """Ended in the middle of an act it takes every process with it, and its exit code names the signal."""
    demo = watch("--once")
    demo.sees("1    It arrives")
    assert left_behind(tmp_path) != []
    demo.process.send_signal(number)
    assert demo.to_the_end() == 128 + number, demo.seen
    assert left_behind(tmp_path) == []
