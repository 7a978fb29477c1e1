"""HTTP: routes, faults of the API, wiring. It decides nothing about resources."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .api import Api, Call, trace_id_of
from .clients import Client, Clients
from .control import Control
from .delivery import Deliveries
from .faults import Faults, Rule
from .javascript import Json, loads
from .outcome import FHIR_JSON, Answer, Refused, bad_request, not_found, of_status
from .repository import Repository
from .store import Store
from .subscription import Register

__all__ = ["Sandbox"]

_ROOT = "/fhir/R4"
_MAX_HEAD = 16 * 1024
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_LOOPBACK = frozenset({"127.0.0.1", "::1"})

Operation = Callable[[Request], Awaitable[Answer]]


class Sandbox:
    """One Medplum: its file, its API, its deliveries."""

    def __init__(self, path: Path, base_url: str, clients: dict[str, Client], project: str) -> None:
        self._store = Store(path)
        self._faults = Faults()
        self._base_url = base_url
        self.deliveries = Deliveries(self._store, register := Register(), self._faults, base_url)
        repository = Repository(self._store, self.deliveries, register, project)
        self._clients = Clients(self._store, self._faults, clients)
        self._api = Api(self._store, repository, self._clients, base_url)
        self._control = Control(repository, self._clients)
        self.app = self._routed()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _routed(self) -> Starlette:
        routes = [
            Route("/oauth2/token", self._faulty(self._token), methods=["POST"]),
            Route("/auth/me", self._faulty(self._me), methods=["GET"]),
            Route("/healthcheck", self._health, methods=["GET"]),
            Route(_ROOT, self._faulty(self._fhir), methods=_METHODS),
            Route(_ROOT + "/{path:path}", self._faulty(self._fhir), methods=_METHODS),
            Route("/sandbox/resources", self._truth, methods=["GET"]),
            Route("/sandbox/{verb}", self._steer, methods=["GET", "POST"]),
        ]
        app = Starlette(routes=routes)
        app.router.redirect_slashes = False
        return app

    # what Medplum has

    async def _token(self, request: Request) -> Answer:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        if form.get("grant_type") != "client_credentials":
            raise bad_request("Unsupported grant type")
        client = self._clients.authenticate(form, request.headers.get("authorization", ""))
        granted = self._clients.grant(client, request.client.host if request.client else "")
        return Answer(200, json.dumps(granted).encode(), {"Cache-Control": "no-store"})

    async def _me(self, request: Request) -> Answer:
        client = self._clients.of_bearer(request.headers.get("authorization", ""))
        type_, _, id_ = client.profile.partition("/")
        profile = {"resourceType": type_, "id": id_, "name": client.name}
        return Answer(200, json.dumps({"profile": profile}).encode())

    async def _fhir(self, request: Request) -> Answer:
        _refuse_long_head(request)
        client = self._clients.of_bearer(request.headers.get("authorization", ""))
        query = parse_qsl(request.url.query, keep_blank_values=True)
        path = request.path_params.get("path", "")
        body = await request.body()
        headers = request.headers
        return await self._api.handle(Call(client, request.method, path, query, body, headers, trace_id_of(headers)))

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"ok": True, "version": "5.0.10-sandbox"})

    # faults of the API

    def _faulty(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            rule = self._rule(request)
            if rule is None:
                return _response(await _settled(operation, request))
            await asyncio.sleep(rule.delay_seconds)
            answer = _fault(rule) or await _settled(operation, request)
            if rule.after:
                await _settled(operation, request)
            return _dripping(answer, rule.drip_seconds) if rule.drip_seconds else _response(answer)

        return answered

    def _rule(self, request: Request) -> Rule | None:
        if not self._faults.api:
            return None
        path = request.url.path
        type_ = path.removeprefix(_ROOT).strip("/").partition("/")[0]
        try:
            client = self._clients.of_bearer(request.headers.get("authorization", "")).id
        except Refused:
            client = ""
        return next((rule for rule in self._faults.api if rule.matches(path, request.method, type_, client)), None)

    # the control plane

    async def _steer(self, request: Request) -> Response:
        try:
            return JSONResponse(await self._steered(request))
        except Refused as refused:
            return _response(refused.answer())

    async def _steered(self, request: Request) -> object:
        _refuse_strangers(request)
        wanted = _object(await request.body())
        verbs: dict[tuple[str, str], Callable[[], object]] = {
            ("GET", "state"): self._control.state,
            ("POST", "faults"): lambda: self._control.switch(wanted),
            ("POST", "clear"): self._control.clear,
            ("POST", "notify"): lambda: self._control.notify(wanted),
            ("POST", "load"): lambda: self._control.load(wanted),
            ("POST", "bulk"): lambda: self._control.bulk(wanted),
            ("POST", "reset"): self._control.reset,
        }
        verb = verbs.get((request.method, request.path_params["verb"]))
        if verb is None:
            raise not_found()
        return verb()

    async def _truth(self, request: Request) -> Response:
        _refuse_strangers(request)
        lines = b"".join(self._control.truth(request.query_params.get("type")))
        return Response(lines, media_type="application/x-ndjson")


def _refuse_long_head(request: Request) -> None:
    """431 for a head that Node would not take: a search for many hundreds of ids is one."""
    scope = request.scope
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in scope["headers"])
    if size > _MAX_HEAD:
        raise of_status(431)


def _object(body: bytes) -> Json:
    try:
        wanted = loads(body or b"{}")
    except ValueError:
        raise bad_request("Invalid JSON") from None
    if not isinstance(wanted, dict):
        raise bad_request("The body must be a JSON object")
    return wanted


def _refuse_strangers(request: Request) -> None:
    if request.client is None or request.client.host not in _LOOPBACK:
        raise not_found()


def _fault(rule: Rule) -> Answer | None:
    if rule.status is None:
        return None
    refused = of_status(rule.status).answer()
    return Answer(refused.status, refused.body, rule.headers)


async def _settled(operation: Operation, request: Request) -> Answer:
    try:
        return await operation(request)
    except Refused as refused:
        return refused.answer()


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers, media_type=FHIR_JSON)


def _dripping(answer: Answer, seconds: float) -> Response:
    async def drip() -> AsyncIterator[bytes]:
        for byte in answer.body:
            yield bytes((byte,))
            await asyncio.sleep(seconds)

    return StreamingResponse(drip(), answer.status, answer.headers, media_type=FHIR_JSON)
