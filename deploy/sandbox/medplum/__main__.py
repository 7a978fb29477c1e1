"""The process: arguments, the socket, the ready file, SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from .app import Sandbox
from .clients import DEFAULT_CLIENTS, Client

_PROJECT = "8ce6d4e2-c3ed-4222-a080-84e79ea858e1"
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2_048


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.sandbox.medplum", description="A stand-in for Medplum.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--db", type=Path, required=True, help="SQLite file, made if missing")
    parser.add_argument("--ready-file", type=Path, help="gets the base URL once requests are answered")
    parser.add_argument("--config", type=Path, help="JSON: project, clients {id: {secret, name, profile, ...}}")
    parser.add_argument("--client", action="append", default=[], metavar="ID:SECRET", help="set a client's secret")
    return parser.parse_args()


def _clients(config: dict[str, dict[str, Any]], arguments: list[str]) -> dict[str, Client]:
    """Return the default clients, changed and completed by the configuration and the command line."""
    clients = {client.id: client for client in DEFAULT_CLIENTS}
    secrets: dict[str, dict[str, Any]] = {
        id_: {"secret": secret} for id_, _, secret in (given.partition(":") for given in arguments)
    }
    for id_, members in [*config.items(), *secrets.items()]:
        known = clients.get(id_) or Client(id_, "", id_, f"ClientApplication/{id_}")
        given = {name: getattr(known, name) for name in Client.__slots__} | members
        clients[id_] = Client(**given)
    return clients


def _tell_ready(path: Path, base_url: str) -> None:
    """Write the base URL in one step, for its owner's eyes."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(base_url + "\n")
    unfinished.replace(path)


async def _serve(arguments: argparse.Namespace) -> None:
    config = json.loads(arguments.config.read_text()) if arguments.config else {}
    listener = socket.create_server((arguments.host, arguments.port), backlog=_BACKLOG)
    base_url = f"http://{arguments.host}:{listener.getsockname()[1]}"
    clients = _clients(config.get("clients", {}), arguments.client)
    sandbox = Sandbox(arguments.db, base_url, clients, config.get("project", _PROJECT))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = _Server(sandbox, base_url, arguments.ready_file)
    running = [
        asyncio.create_task(server.serve(sockets=[listener])),
        asyncio.create_task(sandbox.deliveries.run()),
        asyncio.create_task(stopped.wait()),
    ]
    # A task that ends by itself has failed: its exception ends the process.
    done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*others, return_exceptions=True)
    sandbox.close()
    for task in done:
        task.result()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process by the signal that it caught."""

    def __init__(self, sandbox: Sandbox, base_url: str, ready_file: Path | None) -> None:
        super().__init__(
            uvicorn.Config(
                sandbox.app,
                lifespan="off",
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
        )
        self._base_url, self._ready_file = base_url, ready_file

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready_file is not None:
            _tell_ready(self._ready_file, self._base_url)


def main() -> None:
    """Run until SIGTERM."""
    arguments = _arguments()
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(_serve(arguments))


def _loop() -> asyncio.AbstractEventLoop:
    with suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


if __name__ == "__main__":
    main()
