"""`python -m webhook`: the receiver as a process. Reads the settings, opens the port, serves until it is told to stop.

Stopping is orderly: no new connections, requests that have arrived are committed and answered, then the process ends.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from webhook.app import create_app
from webhook.protocol import LimitedProtocol
from webhook.receive import count
from worker import log
from worker.errors import LedgerUnavailable, ReverseSyncError
from worker.settings import ReceiverSettings

KEEP_ALIVE_S: Final = 90  # Medplum reuses connections; one that is closed while it sends costs it an attempt
STOP_WITHIN_S: Final = 20
BACKLOG: Final = 2048
MALLOC: Final = {-8: 1, -3: 64 * 1024, -1: 512 * 1024}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
COLLECT_EVERY: Final = 2_000  # new objects that may be in cycles; what lost connections leave behind waits for it
RECEIVE_BYTES: Final = 64 * 1024  # what the kernel holds of one connection, and one reading brings in: hundreds add up


def main() -> int:
    """Serve until SIGTERM or SIGINT; the exit code is that of sysexits(3)."""
    try:
        settings = ReceiverSettings.read()
        log.configure(settings.log_format, process="web")
        app = create_app(settings)
        listener = _listen(settings.host, settings.port)
    except ReverseSyncError as problem:
        print(f"refusing to start: {problem}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(problem, LedgerUnavailable) else os.EX_CONFIG
    except OSError as problem:
        print(f"refusing to start: REVERSE_SYNC_HOST and REVERSE_SYNC_PORT: {problem.strerror}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    return _serve(app, listener, settings)


def _listen(host: str, port: int) -> socket.socket:
    """Open the port before the server starts, so that a port that is taken ends in one sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)  # each connection inherits it
    return listener


def _serve(app: ASGIApp, listener: socket.socket, settings: ReceiverSettings) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again once it has stopped; it has been heard
    host, port = listener.getsockname()[:2]
    log.get("webhook").info("the receiver listens", host=host, port=port)
    _spare_the_collector()
    _give_memory_back()
    server = uvicorn.Server(configuration(app, settings))
    server.run(sockets=[listener])
    return os.EX_OK if server.started else os.EX_SOFTWARE


def _spare_the_collector() -> None:
    """Look for cycles rarely, and never among what stays: parsing makes objects by the hundred, and no cycles.

    With Python's own threshold every request or two pays for a look.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 5, 2)


def _give_memory_back() -> None:
    """Have glibc return what large bodies took: left alone it keeps them among small objects, for good.

    Other systems have no `mallopt`, and need none.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def configuration(app: ASGIApp, settings: ReceiverSettings) -> uvicorn.Config:
    """Configure uvicorn: each line that is not about speed keeps something off the wire or out of the logs."""
    http: Any = partial(LimitedProtocol, request_seconds=settings.request_seconds, refused=count)
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks who the client is, so nobody needs to be believed
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        backlog=BACKLOG,
    )


if __name__ == "__main__":
    sys.exit(main())
