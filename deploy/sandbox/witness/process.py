"""Runs a system as a process of its own, until SIGTERM or a kill."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import uvicorn
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.sandbox.witness.control import Control
from deploy.sandbox.witness.door import Door
from deploy.sandbox.witness.faults import Faults
from deploy.sandbox.witness.store import Store
from deploy.sandbox.witness.system import System
from deploy.sandbox.witness.wire import OpenProtocol

_HOST = "127.0.0.1"


class Server(uvicorn.Server):
    """uvicorn with an end of its own: at once, exit code 0, callers cut."""

    def __init__(self, config: uvicorn.Config, store: Store) -> None:
        super().__init__(config)
        self._store = store

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end)
        yield

    def _end(self) -> NoReturn:
        # The loop calls this between two steps, so no transaction is open; uvicorn's own end would wait for callers
        # that a fault keeps hanging, or send them a 500.
        self._store.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of the options that every system has; it may add its own."""
    parser = argparse.ArgumentParser(prog=f"python -m deploy.sandbox.{name}", description=description)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--db", type=Path, required=True, help="its SQLite file, made where it is missing")
    parser.add_argument("--ready-file", type=Path, required=True, help="gets the base URL once requests are answered")
    return parser


def run(options: argparse.Namespace, store: Store, system: System, more: Sequence[Route] = ()) -> None:
    """Serve a system; `more` are its own requests of the control plane."""
    options.ready_file.unlink(missing_ok=True)
    listener = listen(options.port)
    config = uvicorn.Config(
        build(store, system, more),
        http=OpenProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
    )
    asyncio.run(serve(Server(config, store), listener, options.ready_file))


def build(store: Store, system: System, more: Sequence[Route]) -> ASGIApp:
    """Put the API and the control plane behind one port."""
    faults, prefixes = Faults(), tuple(system.prefixes)
    door, control = Door(store, faults, system), Control(store, faults, more).app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (door if scope["path"].startswith(prefixes) else control)(scope, receive, send)

    return app


def listen(port: int) -> socket.socket:
    """Take the port even where connections of a killed predecessor linger."""
    # asyncio sets TCP_NODELAY only where the protocol is named: without it each answer, head and body being two
    # writes, took 40 ms.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_HOST, port))
    listener.listen(1024)
    return listener


async def serve(server: Server, listener: socket.socket, ready_file: Path) -> None:
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    _announce(ready_file, f"http://{_HOST}:{listener.getsockname()[1]}")
    await serving


def _announce(ready_file: Path, url: str) -> None:
    ready_file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = ready_file.with_name(ready_file.name + ".new")
    unfinished.write_text(url + "\n")
    unfinished.replace(ready_file)
