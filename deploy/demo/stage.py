"""The processes of the demo: each in a session of its own, with a log file, and ended as a whole. It knows no roles."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.demo.ending import Ending

_GRACE_S = 15.0  # a worker lets its running calls end
_TAIL_LINES = 8


class Died(Exception):
    """A process of the demo ended that should not have."""


@dataclass(slots=True)
class Actor:
    """One process; it may be started again under its name."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log_from: int  # what stands in its log before this is from an earlier start


class Stage:
    """Starts processes and ends them all when it is left, whatever the reason."""

    def __init__(self, logs: Path, ending: Ending) -> None:
        self._logs = logs
        self._ending = ending
        self._actors: dict[str, Actor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.ignore()
        # Whoever works ends before those whom it asks: so nothing is left unknown, and no log fills with complaints.
        asked = [name for name in self._actors if name in {"broker", "medplum", "clinic"}]
        self.stop(*(name for name in self._actors if name not in asked))
        self.stop(*asked)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a process; its output goes to its log."""
        with self._ending.shield(), self.log(name).open("ab") as log:
            log_from = log.tell()
            process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which ends the others in their order
            )
            self._actors[name] = Actor(name, command, environment, process, log_from)

    def again(self, *names: str) -> None:
        """Start processes that have ended, as they were."""
        for name in names:
            actor = self._actors[name]
            self.start(name, actor.command, actor.environment)

    def kill(self, name: str) -> None:
        """Kill a process as a power cut would."""
        process = self._actors[name].process
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, *names: str) -> None:
        """Ask processes to end, wait for them, and kill what does not listen."""
        actors = [self._actors[name] for name in names]
        for actor in actors:
            _signal(actor, signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        for actor in actors:
            with suppress(subprocess.TimeoutExpired):
                actor.process.wait(max(0.0, until - time.monotonic()))
        for actor in actors:
            _signal(actor, signal.SIGKILL)  # the group, should one of its own be left
            actor.process.wait()

    def has_ended(self, name: str) -> bool:
        return self._actors[name].process.poll() is not None

    def refuse_dead(self, *but: str) -> None:
        """Raise Died, with the end of its log, for a process that has ended, other than these."""
        for name in filter(self.has_ended, set(self._actors).difference(but)):
            code = self._actors[name].process.returncode
            raise Died(f"{name} has ended with code {code}. The end of {self.log(name)}:\n{self.tail(name)}")

    def said(self, name: str) -> str:
        """Return what a process has logged since its last start."""
        with self.log(name).open("rb") as log:
            log.seek(self._actors[name].log_from)
            return log.read().decode("utf-8", errors="replace")

    def tail(self, name: str) -> str:
        """Return the last lines that a process has logged."""
        return "\n".join(f"     {line}" for line in self.said(name).splitlines()[-_TAIL_LINES:])

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _signal(actor: Actor, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of which only a zombie is left
        os.killpg(actor.process.pid, number)
