"""The child process of `worker.cell`: syncs one suspect after the other and answers each with one line of JSON.

It may die of any of them: that is what it is for. It ends when its parent closes the pipe or is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import BinaryIO

from worker import log
from worker.errors import ReverseSyncError
from worker.process import Instance
from worker.running import Running
from worker.settings import Settings

__all__ = ["main"]

_log = log.get(__name__)


def main(instance_id: str) -> None:
    """Serve a parent until it goes."""
    answers = _answers()
    log.configure(Settings.read().log_format, process="alone")
    with Running.worker(Instance.named(instance_id, "alone")) as running:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
        signal.signal(signal.SIGTERM, lambda *_: running.stopping.set())
        for line in sys.stdin.buffer:
            answers.write(_answer(running, line.decode().strip()) + b"\n")
            answers.flush()


def _answer(running: Running, reference: str) -> bytes:
    try:
        ended = running.sync_alone(reference)
    except ReverseSyncError as problem:
        return json.dumps({"kind": "again", "words": str(problem)}).encode()
    except Exception as error:  # the claim stays without an end, which is what counts against it
        _log.error("a suspect raised", reference=reference, error=error)
        return json.dumps({"kind": "again", "words": f"it raised {type(error).__name__}"}).encode()
    return json.dumps({"kind": ended.kind, "words": ended.words}).encode()


def _answers() -> BinaryIO:
    """Keep stdout for answers: whatever a mapping prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main(sys.argv[1])
