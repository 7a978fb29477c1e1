"""The console's ASGI app: `/` for people, `/readyz` and `/metrics` for machines. Wiring alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from worker import log
from worker.console.page import render
from worker.console.ready import checks
from worker.errors import LedgerError
from worker.ledger import Ledger
from worker.metrics import ledger_exposition
from worker.process import Heartbeat, Instance
from worker.publish import Publisher, broker_url
from worker.settings import BrokerSettings

__all__ = ["create_app", "serve"]

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(settings: BrokerSettings) -> Starlette:
    """Make the console over the ledger and the broker that the settings name. Neither has to answer yet."""
    ledger = Ledger.of(settings, connections=4)
    publisher = Publisher(broker_url(settings)) if settings.broker_url is not None else None

    # Not `async`: Starlette runs these in threads, so that a ledger that waits holds up nobody else.
    def readyz(_: Request) -> Response:
        made = checks(settings, ledger, publisher)
        ready = all(check.ok for check in made)
        told = {check.name: {"ok": check.ok, "says": check.says} for check in made}
        return JSONResponse({"ready": ready, "checks": told}, 200 if ready else 503, _HEADERS)

    def metrics(_: Request) -> Response:
        try:
            numbers = ledger_exposition(ledger.status())
        except LedgerError as problem:
            return Response(f"{problem}\n", 503, _HEADERS, "text/plain; charset=utf-8")
        return Response(numbers, 200, _HEADERS, "text/plain; version=0.0.4; charset=utf-8")

    def page(_: Request) -> Response:
        made = checks(settings, ledger, publisher)
        try:
            html = render(ledger.status(), ledger.failed(), made)
        except LedgerError:
            return HTMLResponse(render(None, [], made), 503, _HEADERS)
        return HTMLResponse(html, 200, _HEADERS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        heartbeat = Heartbeat(ledger, Instance.new("console"))
        await run_in_threadpool(heartbeat.start, required=False)  # it also has to say that the ledger is away
        yield
        await run_in_threadpool(heartbeat.stop)
        if publisher is not None:
            publisher.close()
        ledger.close()

    routes = [Route("/", page), Route("/readyz", readyz), Route("/metrics", metrics)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


def serve(settings: BrokerSettings, *, host: str = "127.0.0.1", port: int = 8081) -> None:
    """Run the console until it is told to stop. It has no login: it belongs on loopback or a private network."""
    log.configure(settings.log_format, process="console")
    uvicorn.run(create_app(settings), host=host, port=port, log_config=None, access_log=False, server_header=False)
