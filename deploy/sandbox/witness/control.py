"""The control plane under `/sandbox`: what tests and the demo ask a system and do to it behind the API's back.

It needs no key and leaves no line in the journal; it never runs into a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.sandbox.witness.faults import Faults, read_rules
from deploy.sandbox.witness.store import Record, Store


@dataclass(frozen=True, slots=True)
class Control:
    """The endpoints, over the same store and rules as the API; `more` are a system's own."""

    store: Store
    faults: Faults
    more: Sequence[Route] = ()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/sandbox/journal", self.journal),
                Route("/sandbox/history", self.history),
                Route("/sandbox/records", self.records),
                Route("/sandbox/faults", self.list_faults, methods=["GET"]),
                Route("/sandbox/faults", self.add_faults, methods=["POST"]),
                Route("/sandbox/faults", self.clear_faults, methods=["DELETE"]),
                Route("/sandbox/edit", self.edit, methods=["POST"]),
                Route("/sandbox/snapshot", self.snapshot, methods=["POST"]),
                Route("/sandbox/restore", self.restore, methods=["POST"]),
                Route("/sandbox/reset", self.reset, methods=["POST"]),
                *self.more,
            ]
        )

    async def journal(self, request: Request) -> Response:
        return lines_of(self.store.journal(_since(request)))

    async def history(self, request: Request) -> Response:
        return lines_of(self.store.history(_since(request)))

    async def records(self, request: Request) -> Response:
        kind, twins_only = request.query_params.get("kind"), request.query_params.get("duplicates")
        lines = [line for line in self.store.records() if kind in (None, line["kind"])]
        return lines_of(line for line in lines if not twins_only or line["copies"] > 1)

    async def list_faults(self, request: Request) -> Response:
        return JSONResponse({"data": [rule.shown() for rule in self.faults.rules]})

    async def add_faults(self, request: Request) -> Response:
        try:
            rules = read_rules(await request.json())
        except ValueError as bad:
            return _no(422, str(bad))
        self.faults.rules.extend(rules)
        return await self.list_faults(request)

    async def clear_faults(self, request: Request) -> Response:
        self.faults.rules.clear()
        return Response(status_code=204)

    async def edit(self, request: Request) -> Response:
        """Change or remove a record as somebody at the system's own screens would: nothing is checked."""
        wanted = await request.json()
        record = self._named(wanted.get("record", ""))
        if record is None:
            return _no(404, "record is like patient/4701 and must exist")
        edited = record.having(**wanted.get("fields", {}))
        if wanted.get("remove"):
            self.store.remove(record, "remove", None)
        else:
            self.store.save(edited, "edit", None)
        self.store.commit()
        return JSONResponse({"data": edited.data})

    def _named(self, name: str) -> Record | None:
        kind, _, key = name.partition("/")
        return self.store.get(kind, int(key)) if key.isdecimal() else None

    async def snapshot(self, request: Request) -> Response:
        self.store.snapshot(await _name(request))
        return Response(status_code=204)

    async def restore(self, request: Request) -> Response:
        if not self.store.restore(await _name(request)):
            return _no(404, "no such snapshot")
        return Response(status_code=204)

    async def reset(self, request: Request) -> Response:
        self.store.reset()
        self.faults.rules.clear()
        return Response(status_code=204)


def _since(request: Request) -> int:
    return int(request.query_params.get("since", "0"))


async def _name(request: Request) -> str:
    wanted = json.loads(await request.body() or b"{}")
    return str(wanted.get("name", "default"))


def _no(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status)


def lines_of(rows: Iterable[Mapping[str, Any]]) -> Response:
    """Answer with one JSON object a line."""
    return Response("".join(json.dumps(row) + "\n" for row in rows), media_type="application/x-ndjson")
