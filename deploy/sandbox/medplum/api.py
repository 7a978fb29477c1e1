"""The FHIR API without HTTP: one operation in, one answer out, for single requests and for entries of a batch alike."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .clients import Client, Clients
from .delivery import Deliveries
from .javascript import Json, dumps, loads
from .outcome import ALL_OK, Answer, Refused, bad_request, forbidden, gone, not_found
from .repository import Repository, Writer
from .resources import as_patch, shown
from .search import Pairs, bundle, parse_search, run
from .store import Store, Version
from .subscription import TRACEPARENT

__all__ = ["Api", "Call", "trace_id_of"]

_UNITS = {"read": 1, "history": 10, "search": 20, "write": 100}
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_PASS_FIRST_SECONDS = 0.01  # the notifications of a Bundle reach the receiver before its writer has the answer
_INTERACTIONS = frozenset({"create", "update", "delete"})


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as asked for."""

    client: Client
    method: str
    path: str  # below /fhir/R4, without a leading slash
    query: Pairs
    body: bytes
    headers: Mapping[str, str]
    trace_id: str
    assigned_id: bool = False  # the id in the body is ours, from a transaction

    @property
    def extended(self) -> bool:
        """Tell whether the caller wants meta in full."""
        return self.headers.get("x-medplum") == "extended"

    def json(self) -> Any:
        """Parse the body; 400 if it is not JSON."""
        try:
            return loads(self.body)
        except (ValueError, RecursionError):
            raise bad_request("Invalid JSON") from None


def trace_id_of(headers: Mapping[str, str]) -> str:
    """Return the caller's trace id if it is one that Medplum takes over, else a new one."""
    given, parent = headers.get("x-trace-id", ""), headers.get("traceparent", "")
    try:
        return str(uuid.UUID(given))
    except ValueError:
        return parent if TRACEPARENT.fullmatch(parent) else str(uuid.uuid4())


class Api:
    """The operations over one project."""

    def __init__(self, store: Store, repository: Repository, clients: Clients, base_url: str) -> None:
        self._store, self._repository, self._clients = store, repository, clients
        self._faults = repository.faults
        self._deliveries: Deliveries = repository.deliveries
        self._base = f"{base_url}/fhir/R4"

    async def handle(self, call: Call) -> Answer:
        """Answer one request."""
        if call.path:
            return self.perform(call)
        try:
            return await self._bundle(call)
        except Refused as refused:
            return self._refusal(call, refused)

    def perform(self, call: Call) -> Answer:
        """Do one operation; refusals become answers."""
        try:
            return self._perform(call)
        except Refused as refused:
            return self._refusal(call, refused)

    def _refusal(self, call: Call, refused: Refused) -> Answer:
        return replace(refused.answer(), headers={"RateLimit": self._clients.rate_limit(call.client)})

    def _perform(self, call: Call) -> Answer:
        steps = call.path.split("/")
        return self._ask(call, steps) if call.method == "GET" else self._change(call, steps)

    def _ask(self, call: Call, steps: list[str]) -> Answer:
        match steps:
            case ["metadata"]:
                return Answer(200, dumps({"resourceType": "CapabilityStatement", "status": "active"}))
            case [type_] | [type_, "_search"]:
                return self._search(call, type_, call.query)
            case [type_, id_]:
                return self._read(call, type_, id_)
            case [type_, id_, "_history", *version]:
                return self._history(call, type_, id_, *version[:1])
            case _:
                raise not_found()

    def _change(self, call: Call, steps: list[str]) -> Answer:
        match call.method, steps:
            case "POST", [type_, "_search"]:
                form = parse_qsl(call.body.decode("utf-8", "replace"), keep_blank_values=True)
                return self._search(call, type_, call.query + form)
            case "POST", [type_]:
                return self._create(call, type_)
            case "POST", [type_, id_, operation]:
                return self._operate(call, type_, id_, operation)
            case (("PUT" | "PATCH" | "DELETE"), [type_, id_]):
                return self._write(call, type_, id_)
            case _:
                raise not_found()

    def _enter(self, call: Call, kind: str, type_: str, id_: str = "") -> str:
        """Charge the quota and check the access policy; return the RateLimit header."""
        limit = self._clients.charge(call.client, _UNITS[kind])
        if not _TYPE.fullmatch(type_):
            raise not_found()
        if self._faults.hides(call.client.id, type_):
            raise forbidden()
        if id_ and (not _ID.fullmatch(id_) or self._faults.hides(call.client.id, type_, id_)):
            raise not_found()
        return limit

    # reads

    def _read(self, call: Call, type_: str, id_: str) -> Answer:
        limit = self._enter(call, "read", type_, id_)
        version = self._store.current(type_, id_)
        if version is not None and version.deleted and self._faults.stale_get:
            version = self._store.last_live(type_, id_)
        if version is None:
            raise not_found()
        if version.deleted:
            raise gone()
        if type_ == "Binary" and "fhir+json" not in call.headers.get("accept", ""):
            return _content(version, limit)
        return self._shown(call, 200, version, limit)

    def _history(self, call: Call, type_: str, id_: str, version_id: str = "") -> Answer:
        limit = self._enter(call, "read" if version_id else "history", type_, id_)
        if version_id:
            version = self._store.version(type_, id_, version_id)
            if version is None:
                raise not_found()
            if version.deleted:
                raise gone()
            return self._shown(call, 200, version, limit)
        versions = self._store.history(type_, id_)
        if not versions:
            raise not_found()
        body = {"resourceType": "Bundle", "type": "history", "entry": [self._past(call, one) for one in versions]}
        return Answer(200, dumps(body), {"RateLimit": limit})

    def _past(self, call: Call, version: Version) -> Json:
        url = f"{version.reference}/_history/{version.version_id}"
        entry: Json = {
            "fullUrl": f"{self._base}/{version.reference}",
            "request": {"method": "GET", "url": url},
            "response": {
                "status": "410" if version.deleted else "200",
                "etag": f'W/"{version.version_id}"',
                "lastModified": version.last_updated,
            },
        }
        return entry if version.deleted else entry | {"resource": loads(self._body(call, version))}

    def _search(self, call: Call, type_: str, query: Pairs) -> Answer:
        limit = self._enter(call, "search", type_)
        faults = self._faults
        hidden = [one.partition("/")[2] for one in faults.hidden.get(call.client.id, ()) if one.startswith(f"{type_}/")]
        up_to = faults.stale_search_at if faults.stale_search else None
        page = run(self._store, parse_search(type_, query), up_to=up_to, without=hidden)
        bodies = [self._deletion(one) if page.search.deleted else self._body(call, one) for one in page.found]
        return Answer(200, bundle(page, self._base, bodies), {"RateLimit": limit})

    @staticmethod
    def _deletion(version: Version) -> bytes:
        """Return all that a search tells of a deleted resource: its id, and when."""
        shown_of_it = {"resourceType": version.type, "id": version.id, "meta": {"lastUpdated": version.last_updated}}
        return dumps(shown_of_it)

    def _body(self, call: Call, version: Version) -> bytes:
        hidden = self._faults.hidden_members(call.client.id, version.type)
        body = version.body
        if hidden or not call.extended:
            body = dumps(shown(version.resource(), extended=call.extended, hidden=hidden))
        return self._deliveries.presigned(body)

    def _shown(self, call: Call, status: int, version: Version, limit: str) -> Answer:
        headers = {
            "RateLimit": limit,
            "ETag": f'W/"{version.version_id}"',
            "Location": f"{self._base}/{version.reference}/_history/{version.version_id}",
        }
        return Answer(status, self._body(call, version), headers)

    # writes

    def _writer(self, call: Call) -> Writer:
        return Writer(call.client.author, call.trace_id, call.client.may_set_id or call.assigned_id)

    def _create(self, call: Call, type_: str) -> Answer:
        limit = self._enter(call, "write", type_)
        version = self._repository.create(type_, _resource(call, type_), self._writer(call))
        return self._shown(call, 201, version, limit)

    def _write(self, call: Call, type_: str, id_: str) -> Answer:
        limit = self._enter(call, "write", type_, id_)
        writer = self._writer(call)
        if call.method == "DELETE":
            self._repository.delete(type_, id_, writer)
            return Answer(200, dumps(ALL_OK), {"RateLimit": limit})
        if call.method == "PATCH":
            version = self._repository.patch(type_, id_, as_patch(call.json()), writer)
            return self._shown(call, 200, version, limit)
        known = self._store.current(type_, id_) is not None
        resource = _resource(call, type_)
        if resource.get("id") != id_:
            raise bad_request("Incorrect ID")
        version = self._repository.update(type_, id_, resource, writer, call.headers.get("if-match"))
        return self._shown(call, 200 if known else 201, version, limit)

    def _operate(self, call: Call, type_: str, id_: str, operation: str) -> Answer:
        limit = self._enter(call, "write", type_, id_)
        if operation == "$expunge":
            self._repository.expunge(type_, id_)
        elif operation == "$resend":
            asked = call.json() if call.body else {}
            interaction = asked.get("interaction", "update")
            if interaction not in _INTERACTIONS:
                raise bad_request("Unknown interaction")
            self._repository.resend(type_, id_, interaction, call.trace_id, asked.get("subscription"))
        else:
            raise not_found()
        return Answer(200, dumps(ALL_OK), {"RateLimit": limit})

    # bundles

    async def _bundle(self, call: Call) -> Answer:
        document = call.json() if call.method == "POST" else None
        if not isinstance(document, dict) or document.get("resourceType") != "Bundle":
            raise bad_request("Not a bundle")
        kind, entries = document.get("type"), document.get("entry", [])
        if kind == "batch":
            answers = [self.perform(_entry_call(call, entry)) for entry in entries]
        elif kind == "transaction":
            answers = await self._transaction(call, entries)
        else:
            raise bad_request("Unrecognized bundle type")
        if any(entry.get("request", {}).get("method") != "GET" for entry in entries):
            await asyncio.sleep(_PASS_FIRST_SECONDS)
        body = {"resourceType": "Bundle", "type": f"{kind}-response", "entry": [_entry(answer) for answer in answers]}
        return Answer(200, dumps(body), {"RateLimit": self._clients.rate_limit(call.client)})

    async def _transaction(self, call: Call, entries: list[Json]) -> list[Answer]:
        """Do all or nothing; the deletes' notifications go out even then, and beforehand if so switched."""
        calls = [_entry_call(call, entry, assigned_id=assigned) for entry, assigned in _resolved(entries)]
        deletes = [tuple(one.path.split("/")) for one in calls if one.method == "DELETE" and one.path.count("/") == 1]
        early = self._faults.early_delete_seconds
        if early and deletes:
            self._hint(deletes, call.trace_id)
            await asyncio.sleep(early)
        try:
            with self._store.transaction(), self._deliveries.without_deletes(early > 0):
                return [self._perform(one) for one in calls]
        except Refused:
            self._repository.reload_subscriptions()
            if not early:
                self._hint(deletes, call.trace_id)
            raise

    def _hint(self, deletes: list[tuple[str, ...]], trace_id: str) -> None:
        for type_, id_ in deletes:
            self._repository.hint_delete(type_, id_, trace_id)


def _content(version: Version, limit: str) -> Answer:
    """Return what a Binary holds, as whoever downloads it gets it."""
    binary = version.resource()
    content = base64.b64decode(binary.get("data", ""))
    headers = {"RateLimit": limit, "Content-Type": binary.get("contentType", "application/octet-stream")}
    return Answer(200, content, headers)


def _resource(call: Call, type_: str) -> Json:
    resource = call.json()
    if not isinstance(resource, dict) or resource.get("resourceType") != type_:
        raise bad_request("Incorrect resource type")
    return resource


def _entry_call(call: Call, entry: Json, *, assigned_id: bool = False) -> Call:
    request = entry.get("request", {})
    url = urlsplit(str(request.get("url", "")))
    headers = {"x-medplum": call.headers.get("x-medplum", "")}
    if "ifMatch" in request:
        headers["if-match"] = request["ifMatch"]
    query = parse_qsl(url.query, keep_blank_values=True)
    method = str(request.get("method", ""))
    body = _entry_body(method, entry)
    return Call(call.client, method, url.path.lstrip("/"), query, body, headers, call.trace_id, assigned_id)


def _entry_body(method: str, entry: Json) -> bytes:
    """Return the entry's resource; a patch travels as a Binary."""
    resource = entry.get("resource")
    if method == "PATCH" and isinstance(resource, dict) and resource.get("resourceType") == "Binary":
        try:
            return base64.b64decode(resource.get("data", ""))
        except binascii.Error:
            raise bad_request("Invalid patch data") from None
    return b"" if resource is None else dumps(resource)


def _resolved(entries: list[Json]) -> list[tuple[Json, bool]]:
    """Give each POST its id beforehand, so that `urn:uuid:` references of its neighbours can name it."""
    named = {
        entry["fullUrl"]: f"{entry['resource']['resourceType']}/{uuid.uuid4()}"
        for entry in entries
        if entry.get("request", {}).get("method") == "POST" and str(entry.get("fullUrl", "")).startswith("urn:uuid:")
    }
    resolved = []
    for entry in entries:
        text = dumps({key: value for key, value in entry.items() if key != "fullUrl"}).decode()
        for urn, reference in named.items():
            text = text.replace(f'"{urn}"', f'"{reference}"')
        made: Json = loads(text)
        assigned = entry.get("fullUrl") in named
        if assigned:
            made["resource"]["id"] = named[entry["fullUrl"]].partition("/")[2]
        resolved.append((made, assigned))
    return resolved


def _entry(answer: Answer) -> Json:
    document = loads(answer.body)
    response: Json = {"status": str(answer.status)}
    response |= {name.lower(): answer.headers[name] for name in ("ETag", "Location") if name in answer.headers}
    if document.get("resourceType") == "OperationOutcome":
        return {"response": response | {"outcome": document}}
    return {"response": response, "resource": document}
