"""A legacy API: where it is, how it is entered, how it writes values and what its answers mean.

The only module that sends anything to the legacy system. It never decides what to send, never tries again by itself,
and lets nothing that was sent or answered out in a message.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx

from worker.deadline import CallFailed, client, deadline
from worker.errors import RoutesInvalid
from worker.ledger.values import Key
from worker.legacy import outcome as answers
from worker.legacy.body import Body, json_body
from worker.legacy.call import Call, Find, LegacyRequest, Listing, Replace, Unsupported
from worker.legacy.collection import Collection
from worker.legacy.normal import Normal
from worker.legacy.outcome import Answered, KeyPlaces, Means, NotJson, Outcome
from worker.legacy.pages import on_same_host
from worker.legacy.rate import Quota, Rate, retry_after
from worker.legacy.said import words
from worker.legacy.template import template
from worker.legacy.token import Shared, TokenStore
from worker.legacy.wire import Clear, Constant, Wire

How = TypeVar("How", Call | Unsupported, Call | Replace | Unsupported)


@dataclass(frozen=True, kw_only=True, eq=False)
class LegacyApi:
    """Declare a legacy API; its collections are declared from it.

    Args:
        name: what operators call it; also names its gate.
        base_url: where all paths begin; constants of a path belong here.
        auth: ApiKey, OAuth2, Login, or any httpx.Auth.
        zone: the IANA name of the zone of the clinic's clocks on the wall.
        wire: how values are written.
        body: how bodies are written: json_body, form_body, json_api(…).
        headers: sent with every request.
        record: where an answer holds the record, as a dotted path; "" is the top.
        items: where an answer holds the list.
        errors: paths to the API's own words for what went wrong.
        codes: the error codes by the path where they stand; only these are ever shown outside.
        means: answers that mean something else than their status says.
        rates: how many requests it takes in a span, all processes together; several hold at once.
        quota: the headers in which its answers tell how many requests are left.
        concurrency: requests in flight at once, all processes together.
        timeout_s: the longest that one step on the socket may take, in seconds.
        deadline_s: the longest that a request may take as a whole, in seconds.
        lands_within_s: how long after a request was given up it may still act, in seconds.
        probe: a harmless request line, as in "GET /ping".

    Raises:
        RoutesInvalid: an address, zone or request line that cannot be used.
    """

    name: str = field(kw_only=False)
    base_url: str
    auth: httpx.Auth | None = field(repr=False)
    zone: str
    wire: Wire = field(default_factory=Wire)
    body: Body = json_body
    headers: Mapping[str, str] = field(default_factory=dict)
    record: str = ""
    items: str = ""
    errors: Sequence[str] = ()
    codes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    means: Means = field(default_factory=dict)
    rates: Sequence[Rate] = ()
    quota: Quota | None = None
    concurrency: int = 8
    timeout_s: float = 10.0
    deadline_s: float = 20.0
    lands_within_s: float = 60.0
    probe: str | None = None
    zoneinfo: ZoneInfo = field(init=False, repr=False)
    _clients: dict[int, httpx.Client] = field(init=False, repr=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise RoutesInvalid(f"{self.name}: base_url should be an address like https://clinic.example.com/api")
        if self.probe is not None:
            template(self.probe)
        try:
            object.__setattr__(self, "zoneinfo", ZoneInfo(self.zone))
        except (LookupError, OSError, ValueError):
            raise RoutesInvalid(f"{self.name}: zone should be an IANA name like America/New_York") from None
        if isinstance(self.auth, Shared):
            self.auth.serve(self.name, self.base_url)

    def collection(
        self,
        name: str,
        *,
        keys: Sequence[str] | KeyPlaces,
        create: str | Call | Unsupported,
        update: str | Call | Replace | Unsupported,
        delete: str | Call | Unsupported,
        find: Find | Unsupported,
        read: str | Call | None = None,
        undelete: str | Call | None = None,
        identity: Sequence[str] = (),
        record: str | None = None,
        items: str | None = None,
        wire: Wire | None = None,
        body: Body | None = None,
        clear: Mapping[str, Clear] | None = None,
        list: str | Listing | None = None,
        normalise: Mapping[str, Normal | Sequence[Normal]] | None = None,
        gone: Mapping[str, Constant] | None = None,
    ) -> Collection:
        """Declare one kind of record. What the API cannot do is said by `Unsupported(why)`.

        Args:
            name: the record's name in the API's own words.
            keys: the fields of an answered record that together name it; the first is the link's. Where they stand
                elsewhere in the answer, their names with a dotted path in the record, a `Header`, or `{field}` for a
                key that is a mapped field of ours.
            create: the request that makes one; its answer must hold all keys.
            update: the request that changes one.
            delete: the request after which it is no more.
            find: how one is looked up.
            read: how one is read by its keys.
            undelete: the request that brings a deleted record back under its old keys, sent with its mapped fields.
            identity: mapped fields that say whose record it is, compared whenever one is read.
            record: as for the API, where this kind differs.
            items: as for the API, where this kind differs.
            wire: as for the API, where this kind differs.
            body: as for the API, where this kind differs.
            clear: what an update sends to clear a field, where it is not `wire.clear`.
            list: how all of them are listed, so that `reconcile` sees what only the legacy system has.
            normalise: by mapped field, in what two values may differ and still say the same.
            gone: what a record says that was deleted and can still be read, as {"status": "inactive"}; {} where it
                can be read no more. A delete that sets a status in the record's own path says it by itself.
        """
        return Collection(
            name=name,
            api=self,
            keys=tuple(keys),
            key_places=dict(keys) if isinstance(keys, Mapping) else {name: name for name in keys},
            identity=tuple(identity),
            create=_call(create),
            update=_call(update),
            delete=_call(delete),
            find_by=find,
            read_by=Call(read) if isinstance(read, str) else read,
            undelete=Call(undelete) if isinstance(undelete, str) else undelete,
            record=self.record if record is None else record,
            items=self.items if items is None else items,
            wire=wire or self.wire,
            body=body or self.body,
            clear=dict(clear or {}),
            list_by=Listing(list) if isinstance(list, str) else list,
            normalise={
                name: (how,) if isinstance(how, Normal) else tuple(how) for name, how in (normalise or {}).items()
            },
            gone=None if gone is None else dict(gone),
        )

    def known(self, kind: type[object] | str, *, keys: Sequence[str]) -> Collection:
        """Declare records that only the legacy system makes, as users and facilities: linked by import, never written.

        Args:
            kind: the resource type that they are known as in Medplum.
            keys: the names of their keys, as the import gives them.
        """
        name = kind if isinstance(kind, str) else kind.__name__
        ours = Unsupported(f"only the legacy system makes a {name}: link it by import")
        declared = self.collection(name, keys=keys, create=ours, update=ours, delete=ours, find=ours)
        return replace(declared, known_as=name)

    def bind(self, tokens: TokenStore) -> None:
        """Keep this API's tokens where all workers find them. Until then each process has its own."""
        if isinstance(self.auth, Shared):
            self.auth.bind(self.name, tokens)

    def send(self, request: LegacyRequest, *, deadline_s: float) -> Answered:
        """Send one request, once, and say what became of it. Never raises for what the peer does.

        `deadline_s` holds for the whole exchange, in seconds.
        """
        target = f"{request.path}?{request.query}" if request.query else request.path
        content_type = {"Content-Type": request.content_type} if request.content_type else {}
        try:
            with deadline(deadline_s):
                response = self._client().request(
                    request.method, target, content=request.body, headers={**request.headers, **content_type}
                )
        except CallFailed as failed:
            trouble, sent = str(failed), failed.sent
        else:
            return self._answered(request, response)
        outcome = Outcome.UNKNOWN if sent else Outcome.NOT_DONE
        return Answered(outcome, f"no answer from {request.template}: {trouble}")

    def ping(self) -> Answered | None:
        """Send the declared probe; None if there is none."""
        if self.probe is None:
            return None
        line = template(self.probe)
        request = LegacyRequest(
            line.method, line.text, line.fill_path(str), line.fill_query(str), {}, None, None, None, None
        )
        return self.send(request, deadline_s=self.deadline_s)

    def close(self) -> None:
        """Close this process's connections."""
        if isinstance(self.auth, Shared):
            self.auth.close()
        with self._lock:
            held = self._clients.pop(os.getpid(), None)
        if held is not None:
            held.close()

    def _client(self) -> httpx.Client:
        """Return this process's client: a connection that two processes share would mix their answers."""
        with self._lock:
            if (here := os.getpid()) not in self._clients:
                self._clients[here] = client(
                    base_url=self.base_url,
                    timeout_s=self.timeout_s,
                    deadline_s=self.deadline_s,
                    connections=self.concurrency,
                    headers=self.headers,
                    auth=self.auth,
                )
            return self._clients[here]

    def _answered(self, request: LegacyRequest, response: httpx.Response) -> Answered:
        status, torn = response.status_code, False
        try:
            body = answers.parsed(response.content)
        except NotJson:
            body, torn = None, True
        record = answers.at(body, request.collection.record if request.collection else self.record)
        found = self._found(request, record, response.headers)
        keys = None if found is None else _whole(request, found)
        meant, says_no = answers.declared(status, body, request.means, self.means), self._says_no(request, body)
        outcome, odd = answers.judged(
            status,
            body,
            meant=meant,
            operation=request.operation,
            keys=keys,
            named=bool(found),
            says_no=says_no,
            torn=torn,
        )
        silent = outcome is Outcome.DONE and not says_no
        names, said = ((), None) if silent else self._said(request, response.content, body)
        return Answered(
            outcome=outcome,
            detail=_detail(request, status, odd, answers.code(body, self.codes), names),
            status=status,
            keys=keys,
            record=record if isinstance(record, dict) else None,
            body=body,
            words=said,
            retry_after_s=self._wait_s(response.headers),
            etag=response.headers.get("ETag"),
            declared=meant is not None,
        )

    def _said(self, request: LegacyRequest, payload: bytes, body: object) -> tuple[Sequence[str], bytes | None]:
        """Read which of our fields an answer names, and its own words; as text, where it is nested beyond all use."""
        try:
            named = answers.named_fields(body, self.errors, request.names)
            return named, words(payload, body, self.errors, request.values)
        except RecursionError:
            return (), words(payload, None, self.errors, request.values)

    def _found(self, request: LegacyRequest, record: object, headers: httpx.Headers) -> dict[str, Key] | None:
        """Read the keys that an answer should hold; a Location that is not this API's own names no record of it."""
        if request.collection is None:
            return None
        ours = [
            (name, value)
            for name, value in headers.multi_items()
            if name.lower() != "location" or on_same_host(self.base_url, request.path, value)
        ]
        places = {name: place for name, place in request.collection.key_places.items() if name not in request.given}
        return answers.keys_of(record, places, ours)

    def _wait_s(self, headers: httpx.Headers) -> float | None:
        """Read for how long the API asks for patience, by whichever header asks for most."""
        now = datetime.now(UTC)
        quota = self.quota.wait_s(headers, now) if self.quota is not None else None
        waits = [wait for wait in (retry_after(headers.get("Retry-After"), now), quota) if wait is not None]
        return max(waits, default=None)

    def _says_no(self, request: LegacyRequest, body: object) -> bool:
        """Tell whether a write that was answered as done has the API's words for an error in its body."""
        return request.operation is not None and any(answers.at(body, path) for path in self.errors)


def _call(how: str | How) -> Call | How:
    return Call(how) if isinstance(how, str) else how


def _whole(request: LegacyRequest, found: Mapping[str, Key]) -> dict[str, Key]:
    """Put answered and chosen keys together, in the declared order: the first one is the link's."""
    both = {**found, **request.given}
    return {name: both[name] for name in request.collection.keys} if request.collection else both


def _detail(request: LegacyRequest, status: int, trouble: str, code: str, names: Sequence[str]) -> str:
    """Say in words without values what was answered, as in: PUT /patients/{uuid} answered 422 invalid (marital)."""
    parts = (str(status), code, trouble, f"({', '.join(names)})" if names else "")
    return f"{request.template} answered {' '.join(filter(None, parts))}"
