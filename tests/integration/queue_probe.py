"""The Celery app with a sync that does what a reference's id says: the tests start real workers on this module.

Everything else in those workers is the project's own: queue, tasks, process, cell, log.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import running

CANARY = "Canary-O'Brien"


@dataclass(frozen=True, slots=True)
class Ended:
    kind: str
    words: str


class ProbeSync:
    """Notes each start and end of a run in a file, and ends as the reference's id says."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def run(self, reference: str, *, alone: bool = False) -> Ended:
        does, _, number = reference.partition("/")[2].partition(".")
        self._note("start", reference, alone=alone)
        if does == "suspect" and not alone:
            return Ended("suspect", "the last start had no end")
        if does == "kill" and alone:
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "kill":
            return Ended("suspect", "the last start had no end")
        if does == "slow":
            time.sleep(float(number.replace("-", ".")))
        if does == "until-stop":
            self._stopping.wait(30)
        if does == "hang":
            time.sleep(600)
        if does == "raise":
            self._raise()
        self._note("end", reference, alone=alone)
        return Ended(does if does in {"failed", "held", "again", "waiting"} else "done", f"it is {does}")

    def close(self) -> None:
        self._note("close", "-", alone=False)

    def _raise(self) -> None:
        name = CANARY
        try:
            int(name)
        except ValueError as error:
            raise RuntimeError(f"cannot write {name}") from error

    def _note(self, what: str, reference: str, *, alone: bool) -> None:
        line = f"{what} {reference} {'alone' if alone else 'worker'} {os.getpid()}\n"
        with Path(os.environ["PROBE_NOTES"]).open("a") as notes:
            notes.write(line)


def make_sync(settings: Any, ledger: Any, instance: Any, stopping: threading.Event) -> ProbeSync:
    return ProbeSync(stopping)


running.make_sync = make_sync  # type: ignore[assignment]

if __name__ == "__main__":  # the child of the cell
    import sys

    from worker.alone import main

    main(sys.argv[1])
else:
    from worker import cell

    cell._alone = lambda instance: [__import__("sys").executable, "-m", "tests.integration.queue_probe", instance.id]
    from worker.queue import app

    __all__ = ["app"]
