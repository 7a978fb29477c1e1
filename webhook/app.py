"""The receiver as an ASGI application: POST /medplum and /livez, nothing else. Wiring alone; it decides nothing.

Any ASGI server can run `webhook.app:app`. Only `python -m webhook` adds the limits of `webhook.protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from webhook.inbox import Accepting, Bell, Inbox
from webhook.known import Knowing, Known
from webhook.receive import Receiver
from worker.errors import LedgerOutdated, ReverseSyncError
from worker.ledger import Ledger
from worker.log import configure
from worker.publish import Doorbell, broker_url
from worker.settings import ReceiverSettings

__all__ = ["FromEnvironment", "Intake", "app", "create_app"]

PATH: Final = "/medplum"
CONNECTIONS: Final = 3  # one commits, one looks things up, one to spare
MIGRATE_FIRST: Final = "run `reverse-sync migrate` first"


class Intake(Accepting, Knowing, Protocol):
    """What the receiver needs of the ledger."""


def create_app(settings: ReceiverSettings, *, ledger: Intake | None = None, bell: Bell | None = None) -> ASGIApp:
    """Build the application over the ledger and the broker that the settings name, or over those that are given.

    Raises:
        ReverseSyncError: it cannot start like this; the message says what to do first.
    """
    ours = ExitStack()  # what was opened here is closed here
    if bell is None:
        doorbell = Doorbell(broker_url(settings))
        ours.callback(doorbell.close)
        bell = doorbell
    if ledger is None:
        opened = _open(settings.database_url, settings)
        ours.callback(opened.close)
        ledger = opened
    return _wire(settings, ledger, bell, ours)


def _wire(settings: ReceiverSettings, ledger: Intake, bell: Bell, ours: ExitStack) -> ASGIApp:
    known = Known(ledger, settings)
    inbox = Inbox(ledger, bell)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        with ours:
            looking = asyncio.create_task(known.look_for_ever())
            yield
            looking.cancel()
            await inbox.close()
            await asyncio.to_thread(known.leave)

    receiver = Receiver(settings, inbox, known)
    everything = Starlette(
        routes=[Route(PATH, receiver, methods=["POST"]), Route("/livez", _alive, methods=["GET"])], lifespan=lifespan
    )
    # Medplum follows a redirect with an empty GET, and counts its answer as the delivery.
    everything.router.redirect_slashes = False

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Straight on where that is certain: Starlette's way to the same callable costs a seventh of all that it does.
        straight = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
        await (receiver if straight else everything)(scope, receive, send)

    return application


def _open(url: str, settings: ReceiverSettings) -> Ledger:
    """Open a ledger that is there: connecting to a SQLite file that is missing would make an empty one."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise LedgerOutdated(f"the ledger's file does not exist: {MIGRATE_FIRST}")
    return Ledger.of(settings, connections=CONNECTIONS)


async def _alive(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


class FromEnvironment:
    """The application that reads its settings when it is started: to import it takes none."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            try:
                settings = ReceiverSettings.read()
                configure(settings.log_format, process="web")
                self._app = create_app(settings)
            except ReverseSyncError as problem:
                if scope["type"] != "lifespan":
                    raise
                await receive()
                await send({"type": "lifespan.startup.failed", "message": f"refusing to start: {problem}"})
                return
        await self._app(scope, receive, send)


app = FromEnvironment()
