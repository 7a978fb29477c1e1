"""A child process in which a suspect (its last start had no end) runs alone, so that no neighbour dies with it.

The child reads references line by line and answers each with one line of JSON (`worker.alone`). It stays for the next
suspect, because its imports cost a second. When it dies, that is the answer. It ends by itself when its parent is gone.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from worker import log
from worker.process import Instance

__all__ = ["Cell", "Verdict"]

_WAITING = 3  # threads that may wait for the cell: more would leave none for the mirrors that are not suspect
_PATIENCE_S = 10.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a suspect's run ended. `kind` is one of `worker.sync`, or `died`, or `busy` if it was not run at all."""

    kind: str
    words: str
    instance: str | None = None  # the child that ran it, which is no more if it died


class Cell:
    """Runs suspects, one at a time."""

    def __init__(
        self,
        *,
        limit_s: float,
        patience_s: float = _PATIENCE_S,
        command: Callable[[Instance], Sequence[str]] | None = None,
    ) -> None:
        self._limit_s = limit_s
        self._patience_s = patience_s
        self._command = command or _alone
        self._waiting = threading.BoundedSemaphore(_WAITING)
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._instance: Instance | None = None
        self._stopped = False

    def run(self, reference: str) -> Verdict:
        """Run one suspect to its end, or to the end of the child."""
        if not self._waiting.acquire(blocking=False):
            return Verdict("busy", "other suspects run before it")
        try:
            if not self._turn.acquire(timeout=self._patience_s):
                return Verdict("busy", "another suspect runs before it")
        finally:
            self._waiting.release()
        try:
            return self._run(reference)
        finally:
            self._turn.release()

    def stop(self) -> None:
        """Have the child announce nothing more; a call that runs there ends. Safe to call from a signal handler."""
        self._stopped = True
        child = self._child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Wait until the child has ended."""
        self.stop()
        with self._turn:
            self._end()

    def _run(self, reference: str) -> Verdict:
        if self._stopped:
            return Verdict("busy", "the worker stops")
        child, instance = self._living()
        assert child.stdin is not None  # noqa: S101 - it was asked for
        try:
            child.stdin.write(reference.encode() + b"\n")
            child.stdin.flush()
            answer = _line(child, time.monotonic() + self._limit_s)
            said = json.loads(answer)
            return Verdict(str(said["kind"]), str(said["words"]), instance.id)
        except TimeoutError:
            words = "it did not end in time, alone in a process of its own"
        except (OSError, ValueError, KeyError):
            words = "the process in which it ran alone died"
        code = self._end(kill=True)
        _log.error("a suspect ended the process in which it ran alone", reference=reference, exit_code=code)
        return Verdict("died", words, instance.id)

    def _living(self) -> tuple[subprocess.Popen[bytes], Instance]:
        if self._child is not None and self._instance is not None and self._child.poll() is None:
            return self._child, self._instance
        self._end(kill=True)
        instance = Instance.new("alone")
        # A session of its own: Ctrl-C at a terminal is for the parent, which then tells the child by SIGTERM.
        child = subprocess.Popen(
            self._command(instance), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._child, self._instance = child, instance
        if self._stopped:
            self.stop()
        return child, instance

    def _end(self, *, kill: bool = False) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        for pipe in (child.stdin, child.stdout):
            if pipe is not None and (kill or pipe is child.stdin):
                with suppress(OSError):
                    pipe.close()
        if kill:
            child.kill()
        try:
            return child.wait(self._limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()
        finally:
            if child.stdout is not None:
                child.stdout.close()


def _alone(instance: Instance) -> Sequence[str]:
    return [sys.executable, "-m", "worker.alone", instance.id]


def _line(child: subprocess.Popen[bytes], until: float) -> bytes:
    """Read one line of the child. Raises TimeoutError after `until`, BrokenPipeError if it ended."""
    assert child.stdout is not None  # noqa: S101 - it was asked for
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = child.stdout.read(65536)
        if not piece:
            raise BrokenPipeError
        line += piece
    return line
