"""One API request from its arrival to its answer, and what each kind of fault does in between.

The journal is written here. What the system decides is the operation's business, which rule acts the faults'.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.sandbox.witness.faults import Kind, Rule
from deploy.sandbox.witness.store import Store
from deploy.sandbox.witness.system import Answer, Operation, Outcome, Refusal, Request
from deploy.sandbox.witness.wire import Wire

_NO_BODY = {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a request came from and its answer goes."""

    scope: Scope
    receive: Receive
    send: Send

    @property
    def wire(self) -> Wire:
        return Wire(self.scope, self.receive)


@dataclass(frozen=True, slots=True)
class Visit:
    """A request that is in the journal under its number, with the system's operation for it or a refusal."""

    store: Store
    connection: Connection
    request: Request
    operation: Operation | Refusal
    era: int

    def carry_out(self) -> Answer:
        """Do what is asked, once, and keep it; a request from before a reset does nothing."""
        if self.era != self.store.era:
            return Answer(503)
        try:
            answer = self._operate()
            self.store.note_outcome(self.request.journal, answer.outcome, answer.record)
            self.store.commit()
        except BaseException:
            self.store.roll_back()
            raise
        return answer

    def _operate(self) -> Answer:
        if isinstance(self.operation, Refusal):
            return self.operation.answer
        try:
            return self.operation(self.request)
        except Refusal as refusal:
            return refusal.answer

    def drop(self) -> None:
        """Note that a fault keeps the request from being carried out."""
        self.store.note_outcome(self.request.journal, Outcome.DROPPED)
        self.store.commit()

    def settle(self, saves: bool) -> Answer | None:
        """Carry the request out or drop it, as a rule says."""
        if saves:
            return self.carry_out()
        self.drop()
        return None

    async def reply(self, answer: Answer) -> None:
        self._note_status(answer)
        c = self.connection
        await _response(answer)(c.scope, c.receive, c.send)

    async def drip(self, answer: Answer, rule: Rule) -> None:
        self._note_status(answer)
        response = _response(answer)
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}".encode(), b"connection: close"]
        head = b"\r\n".join([*lines, *(name + b": " + value for name, value in response.raw_headers), b"", b""])
        body = bytes(response.body)
        quick, slow = (head, body) if rule.own["part"] == "body" else (b"", head + body)
        await self.connection.wire.drip(quick, slow, rule.own["seconds"])

    def _note_status(self, answer: Answer) -> None:
        self.store.note_status(self.request.journal, answer.status)
        self.store.commit()


def _response(answer: Answer) -> Response:
    headers = {name: str(value) for name, value in answer.headers.items()}
    if answer.status in _NO_BODY or answer.body is None:
        return Response(status_code=answer.status, headers=headers)
    if isinstance(answer.body, str):
        return Response(answer.body, answer.status, headers, media_type="text/html")
    return Response(json.dumps(answer.body), answer.status, headers, media_type="application/json")


async def _status(visit: Visit, rule: Rule) -> None:
    visit.settle(rule.own["saves"])
    await visit.reply(Answer(rule.own["status"], rule.own["body"], headers=rule.own["headers"]))


async def _delay(visit: Visit, rule: Rule) -> None:
    early = visit.carry_out() if rule.own["saves"] else None
    await asyncio.sleep(rule.own["seconds"])
    await visit.reply(early or visit.carry_out())


async def _refuse(visit: Visit, rule: Rule) -> None:
    visit.drop()
    await visit.connection.wire.close()


async def _reset_before(visit: Visit, rule: Rule) -> None:
    visit.drop()
    await visit.connection.wire.reset()


async def _reset_after(visit: Visit, rule: Rule) -> None:
    visit.carry_out()
    await visit.connection.wire.reset()


async def _late(visit: Visit, rule: Rule) -> None:
    asyncio.get_running_loop().call_later(rule.own["seconds"], visit.carry_out)
    wire = visit.connection.wire
    await (wire.reset() if rule.own["answer"] == "reset" else wire.silence())


async def _drip(visit: Visit, rule: Rule) -> None:
    await visit.drip(visit.settle(rule.own["saves"]) or Answer(200), rule)


async def _hang(visit: Visit, rule: Rule) -> None:
    visit.settle(rule.own["saves"])
    await visit.connection.wire.silence()


async def _interim(visit: Visit, rule: Rule) -> None:
    visit.settle(rule.own["saves"])
    await visit.connection.wire.interim(rule.own["seconds"])


ACTS: Mapping[Kind, Callable[[Visit, Rule], Awaitable[None]]] = {
    Kind.STATUS: _status,
    Kind.DELAY: _delay,
    Kind.REFUSE: _refuse,
    Kind.RESET_BEFORE: _reset_before,
    Kind.RESET_AFTER: _reset_after,
    Kind.LATE: _late,
    Kind.DRIP: _drip,
    Kind.HANG: _hang,
    Kind.INTERIM: _interim,
}
