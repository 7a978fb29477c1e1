"""The ASGI application under `/api`: reads a request, finds its operation and the fault that meets it, lets it visit.

It never touches a record.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from deploy.sandbox.clinic.desk import OPERATIONS, Operation, Refusal, Request, template_of
from deploy.sandbox.clinic.faults import Faults, Kind, Rule
from deploy.sandbox.clinic.store import Arrival, Store
from deploy.sandbox.clinic.visit import ACTS, Connection, Visit


@dataclass(frozen=True, slots=True)
class Head:
    """A request before its body: what was asked, when it came, and where the template's keys are."""

    method: str
    path: str
    query: str
    headers: Headers
    template: str | None
    keys: Mapping[str, str]
    received_at: float

    @classmethod
    def of(cls, scope: Scope) -> Head:
        query = scope["query_string"].decode("latin-1")
        template, keys = template_of(scope["path"])
        return cls(scope["method"], scope["path"], query, Headers(scope=scope), template, keys, time.time())


@dataclass(frozen=True, slots=True)
class Door:
    """Where every API request comes in."""

    store: Store
    faults: Faults
    api_key: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = Head.of(scope)
        look_inside = self.faults.look_inside
        rule = None if look_inside else self._pick(head, None)
        unread = rule is not None and rule.kind is Kind.REFUSE
        raw = b"" if unread else await _read(receive)
        if raw is None:
            return
        body = _parse(raw)
        if look_inside:
            rule = self._pick(head, body)
        request = Request(self._arrive(head, body, rule), head.keys, dict(parse_qsl(head.query)), raw, body)
        visit = Visit(self.store, Connection(scope, receive, send), request, self._operation(head), self.store.era)
        if rule is None:
            await visit.reply(visit.carry_out())
        else:
            self.store.commit()  # before the first wait: other requests commit and roll back meanwhile
            await ACTS[rule.kind](visit, rule)

    def _pick(self, head: Head, body: object) -> Rule | None:
        return self.faults.pick(head.method, head.path, head.template, body)

    def _arrive(self, head: Head, body: object, rule: Rule | None) -> int:
        get = head.headers.get
        return self.store.arrive(
            Arrival(
                method=head.method,
                template=head.template,
                path=head.path,
                query=head.query,
                received_at=head.received_at,
                idempotency_key=get("idempotency-key"),
                trace_id=get("x-trace-id") or get("traceparent"),
                body=body,
                fault=rule.kind if rule else None,
            )
        )

    def _operation(self, head: Head) -> Operation | Refusal:
        if not hmac.compare_digest(head.headers.get("x-api-key", "").encode(), self.api_key.encode()):
            return Refusal(401, "unauthorized")
        if head.template is None:
            return Refusal(404, "not_found", f"no {head.path}")
        return OPERATIONS[head.template].get(head.method) or Refusal(405, "method", f"no {head.method}")


async def _read(receive: Receive) -> bytes | None:
    """Read the body to its end; None where the caller has gone before."""
    pieces = []
    while (message := await receive())["type"] == "http.request":
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
    return None


def _parse(raw: bytes) -> object:
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)
