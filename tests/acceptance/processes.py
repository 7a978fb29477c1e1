"""Real processes by name: each in a session of its own, its output in a file, ended as a whole whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_END_S: Final = 20.0
_TAIL: Final = 3000


@dataclass(frozen=True, slots=True)
class _Started:
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    log_from: int  # what stands in its log before is an earlier start's


class Processes:
    """Starts, signals and ends them. It knows nothing of what they are."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir()
        self._logs, self._environment = logs, dict(environment)
        self._started: dict[str, _Started] = {}
        self._killed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.signal(signal.SIGTERM, self._started)
            self.end(self._started, _END_S)
        except TimeoutError:
            if error is None:
                raise
        finally:
            for name in self._started:
                self.kill(name)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process."""
        with self.log(name).open("ab") as log:
            log_from = log.tell()
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started[name] = _Started(command, process, log_from)
        self._killed.discard(name)

    def again(self, name: str) -> None:
        """Start a process that has ended, as it was."""
        self.start(name, self._started[name].command)

    def signal(self, number: int, names: Iterable[str]) -> None:
        """Send a signal to these processes and to their children."""
        for name in names:
            with suppress(ProcessLookupError):
                os.killpg(self._started[name].process.pid, number)

    def kill(self, name: str) -> None:
        """Kill a process and its children, as a power cut would."""
        self.signal(signal.SIGKILL, (name,))
        self._started[name].process.wait()
        self._killed.add(name)

    def end(self, names: Iterable[str], within_s: float) -> dict[str, int]:
        """Wait until these have ended, and return their exit codes.

        Raises:
            TimeoutError: names those that did not end.
        """
        until = time.monotonic() + within_s
        for name in names:
            with suppress(subprocess.TimeoutExpired):
                self._started[name].process.wait(max(0.0, until - time.monotonic()))
        codes = {name: self._started[name].process.poll() for name in names}
        if late := [name for name, code in codes.items() if code is None]:
            raise TimeoutError(f"{', '.join(late)} did not end within {within_s:.0f} s")
        return {name: code for name, code in codes.items() if code is not None}

    def refuse_dead(self) -> None:
        """Fail, with the end of its log, for a process that has ended by itself."""
        for name, started in self._started.items():
            if name in self._killed:
                continue
            code = started.process.poll()
            assert code is None, f"{name} has ended with code {code}:\n{self.said(name)[-_TAIL:]}"

    def ended(self) -> dict[str, int]:
        """Return the exit codes of those that do not run now, whoever ended them."""
        codes = {name: started.process.poll() for name, started in list(self._started.items())}
        return {name: code for name, code in codes.items() if code is not None}

    def pid(self, name: str) -> int:
        """Return the process that leads the group of this name."""
        return self._started[name].process.pid

    def pids(self) -> list[int]:
        """Return the processes that run; each leads a group of its own."""
        return [started.process.pid for started in self._started.values() if started.process.poll() is None]

    def said(self, name: str) -> str:
        """Return what a process has logged since its last start."""
        return self.log(name).read_bytes()[self._started[name].log_from :].decode(errors="replace")

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
