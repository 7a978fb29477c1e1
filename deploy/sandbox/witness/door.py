"""The ASGI application under a system's API: reads a request, finds its operation and the fault that meets it.

It never touches a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from deploy.sandbox.witness.faults import Faults, Kind, Rule
from deploy.sandbox.witness.store import Arrival, Store
from deploy.sandbox.witness.system import Head, Operation, Refusal, Request, System
from deploy.sandbox.witness.visit import ACTS, Connection, Visit


@dataclass(frozen=True, slots=True)
class Door:
    """Where every API request comes in."""

    store: Store
    faults: Faults
    system: System

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = Head.of(scope, self.system)
        look_inside = self.faults.look_inside
        rule = None if look_inside else self._pick(head, None)
        unread = rule is not None and rule.kind is Kind.REFUSE
        raw = b"" if unread else await _read(receive)
        if raw is None:
            return
        body = self.system.read(head, raw)
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
        try:
            return self.system.operation(head)
        except Refusal as refusal:
            return refusal


async def _read(receive: Receive) -> bytes | None:
    """Read the body to its end; None where the caller has gone before."""
    pieces = []
    while (message := await receive())["type"] == "http.request":
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
    return None
