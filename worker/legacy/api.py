"""A legacy API: where it is, how it is entered, how it writes values and what its answers mean.

The only module that sends anything to the legacy system. It never decides what to send, never tries again by itself,
and lets nothing that was sent or answered out in a message.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx

from worker.deadline import CallFailed, client, deadline
from worker.errors import RoutesInvalid
from worker.ledger.values import Operation
from worker.legacy import outcome as answers
from worker.legacy.call import Body, Call, Find, LegacyRequest, Replace, Unsupported, json_body, template
from worker.legacy.collection import Collection
from worker.legacy.outcome import Answered, Means, NotJson, Outcome
from worker.legacy.wire import Clear, Wire

How = TypeVar("How", Call | Unsupported, Call | Replace | Unsupported)

_WITHOUT_BODY = frozenset({204, 205})


@dataclass(frozen=True, kw_only=True, eq=False)
class LegacyApi:
    """Declare a legacy API; its collections are declared from it.

    Args:
        name: what operators call it; also names its gate.
        base_url: where all paths begin; constants of a path belong here.
        auth: any httpx.Auth.
        zone: the IANA name of the zone of the clinic's clocks on the wall.
        wire: how values are written.
        headers: sent with every request.
        record: where an answer holds the record, as a dotted path; "" is the top.
        items: where an answer holds the list.
        errors: paths to the API's own words for what went wrong.
        codes: the error codes by the path where they stand; only these are ever shown outside.
        means: answers that mean something else than their status says.
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

    def collection(
        self,
        name: str,
        *,
        keys: Sequence[str],
        create: str | Call | Unsupported,
        update: str | Call | Replace | Unsupported,
        delete: str | Call | Unsupported,
        find: Find | Unsupported,
        read: str | Call | None = None,
        identity: Sequence[str] = (),
        record: str | None = None,
        items: str | None = None,
        wire: Wire | None = None,
        clear: Mapping[str, Clear] | None = None,
    ) -> Collection:
        """Declare one kind of record. What the API cannot do is said by `Unsupported(why)`.

        Args:
            name: the record's name in the API's own words.
            keys: the fields of an answered record that together name it; the first is the link's.
            create: the request that makes one; its answer must hold all keys.
            update: the request that changes one.
            delete: the request after which it is no more.
            find: how one is looked up.
            read: how one is read by its keys.
            identity: mapped fields that say whose record it is, compared whenever one is read.
            record: as for the API, where this kind differs.
            items: as for the API, where this kind differs.
            wire: as for the API, where this kind differs.
            clear: what an update sends to clear a field, where it is not `wire.clear`.
        """
        return Collection(
            name=name,
            api=self,
            keys=tuple(keys),
            identity=tuple(identity),
            create=_call(create),
            update=_call(update),
            delete=_call(delete),
            find_by=find,
            read_by=None if read is None else Call(read) if isinstance(read, str) else read,
            record=self.record if record is None else record,
            items=self.items if items is None else items,
            wire=wire or self.wire,
            clear=dict(clear or {}),
        )

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
        status, trouble = response.status_code, ""
        try:
            body = answers.parsed(response.content)
        except NotJson:
            body, trouble = None, "with what is not JSON"
        meant = answers.declared(status, body, request.means, self.means)
        outcome = meant or answers.by_status(status, request.operation)
        record = answers.at(body, request.collection.record if request.collection else self.record)
        keys = answers.keys_of(record, request.collection.keys) if request.collection else None
        if outcome is Outcome.DONE:
            if meant is None and keys is None and self._says_no(request, body):
                outcome, trouble = Outcome.REFUSED, "with an error in its body"
            elif request.operation is Operation.CREATE and keys is None:
                outcome, trouble = Outcome.UNKNOWN, trouble or "without its key"
            elif meant is None and body is None and status not in _WITHOUT_BODY:
                # A proxy's page or a cut-off answer; an API that says so little declares means={200: DONE}.
                outcome, trouble = Outcome.UNKNOWN, trouble or "without a word"
        detail = _detail(request, status, trouble, answers.code(body, self.codes), self._named(request, body, outcome))
        return Answered(
            outcome=outcome,
            detail=detail,
            status=status,
            keys=keys,
            record=record if isinstance(record, dict) else None,
            body=body,
            words=None if outcome is Outcome.DONE else answers.words(response.content, body, self.errors),
            retry_after_s=answers.retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
            declared=meant is not None,
        )

    def _says_no(self, request: LegacyRequest, body: object) -> bool:
        """Tell whether a write that was answered as done has the API's words for an error in its body."""
        return request.operation is not None and any(answers.at(body, path) for path in self.errors)

    def _named(self, request: LegacyRequest, body: object, outcome: Outcome) -> tuple[str, ...]:
        return () if outcome is Outcome.DONE else answers.named_fields(body, self.errors, request.names)


def _call(how: str | How) -> Call | How:
    return Call(how) if isinstance(how, str) else how


def _detail(request: LegacyRequest, status: int, trouble: str, code: str, names: Sequence[str]) -> str:
    """Say in words without values what was answered, as in: PUT /patients/{uuid} answered 422 invalid (marital)."""
    parts = (str(status), code, trouble, f"({', '.join(names)})" if names else "")
    return f"{request.template} answered {' '.join(filter(None, parts))}"
