"""Medplum's API as this service uses it: searches, with a token, a trace id and a deadline.

It never reads what is *current* by id: such a GET is answered from a cache that a concurrent delete leaves wrong. A
resource's history has no search, and what it tells is past. Two things are written to Medplum, and nothing else, each
under a test of the version that was read: `put_identifier` patches a legacy key onto a resource, and `change` sets
members of a Subscription of ours. What they patch lives; nothing here creates, deletes or restores. Who may do that is
`worker.medplum.admin`, which no process of the service opens.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr

from worker.deadline import AnswerTooLarge, CallFailed, client, deadline
from worker.errors import BadResource, MedplumRefused, MedplumUnavailable, ReverseSyncError
from worker.medplum.answer import BadPage, Entry, Page, Query, content_of, date_of, failure, page_of
from worker.medplum.patching import Identified, Operations, Put, of_identifier, version_of
from worker.medplum.quota import Priority, Quota
from worker.medplum.reads import Deleted, Present, Read, Reads, deletion, present
from worker.medplum.token import Tokens
from worker.settings import WorkerSettings

__all__ = ["Medplum", "SearchPage"]

_READ_UNITS, _SEARCH_UNITS, _WRITE_UNITS, _HISTORY_UNITS = 1, 20, 100, 10
_VERSIONS = 100  # of one page of a history
_VERSIONS_MOST = 1000
_PATCHES = 4  # of one identifier: somebody else may write the resource at the same time, but not for ever
_NOBODY = "00000000-0000-0000-0000-000000000000"
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}")
_OK = 200
_BAD_REQUEST = 400
_UNAUTHORIZED = 401
_GONE = 410
_LOOK_AGAIN = frozenset(
    {_BAD_REQUEST, 404, 409, 412}
)  # the version is another one by now; 404: see whether it is still there
_NOBODY_THERE = frozenset({_BAD_REQUEST, 404, _GONE})

Send = Callable[[dict[str, str]], httpx.Response]
"""Sends one request with these headers."""


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of a search; `at` is Medplum's clock when it answered, in whole seconds; `more`: others follow."""

    entries: tuple[Present | Deleted, ...]
    at: datetime | None
    started_at: datetime
    more: bool = False


class Medplum:
    """One Medplum server, entered as one ClientApplication; shared by threads."""

    def __init__(
        self,
        base_url: str,
        client_id: str,
        client_secret: SecretStr,
        *,
        timeout_s: float = 10.0,
        connections: int = 16,
    ) -> None:
        headers = {"Accept": "application/fhir+json", "X-Medplum": "extended"}
        self._http = client(base_url=base_url, timeout_s=timeout_s, connections=connections, headers=headers)
        self._client_id = client_id
        self._tokens = Tokens(self._http, client_id, client_secret)
        self._quota = Quota()
        self._reads = Reads(self._ask)
        self._clock_lock = threading.Lock()
        self._clock: tuple[datetime, float] | None = None

    @classmethod
    def of(cls, settings: WorkerSettings) -> Self:
        """Make the client that the settings describe."""
        return cls(settings.medplum_base_url, settings.medplum_client_id, settings.medplum_client_secret)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def own_author(self) -> str:
        """The author that Medplum names for what this client writes."""
        return f"ClientApplication/{self._client_id}"

    def server_time(self) -> datetime | None:
        """Return a time that Medplum's clock has passed, by its last answer's Date; None before the first answer."""
        with self._clock_lock:
            if self._clock is None:
                return None
            date, noted_at = self._clock
        return date + timedelta(seconds=time.monotonic() - noted_at)

    def read(self, reference: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
        """Read the current state of one resource; reads of the same moment share one request.

        Raises:
            MedplumUnavailable: 429, 5xx, network, deadline; with the time to wait where Medplum named one.
            MedplumRefused: credentials or rights; names what to mend.
            BadResource: what Medplum has there is not a FHIR resource.
        """
        return self._reads.read(reference, deadline_s=deadline_s, priority=priority)

    def read_together(
        self, resource_type: str, ids: Sequence[str], *, deadline_s: float, priority: Priority = Priority.CATCH_UP
    ) -> Mapping[str, Read | ReverseSyncError]:
        """Read the current states of resources in one search or two, by id; an error stands where one spoils it.

        Raises:
            MedplumUnavailable, MedplumRefused: as for a read.
        """
        with deadline(deadline_s):
            return self._reads.together(resource_type, ids, priority)

    def search(
        self,
        resource_type: str,
        query: Mapping[str, str] | Query,
        *,
        deadline_s: float,
        priority: Priority = Priority.CATCH_UP,
    ) -> Iterator[SearchPage]:
        """Yield the pages of a search, each within its own deadline.

        Raises:
            MedplumUnavailable, MedplumRefused, BadResource: the pages so far are good, the search is not complete.
        """
        following: Query | None = tuple(query.items()) if isinstance(query, Mapping) else query
        asked: set[Query] = set()
        while following is not None:
            if following in asked:
                raise MedplumUnavailable(f"the search of {resource_type} came back to a page that it had shown")
            asked.add(following)
            started_at = datetime.now(UTC)
            with deadline(deadline_s):
                page = self._ask(resource_type, following, priority)
            take = deletion if ("_deleted", "true") in following else present
            mine = [entry for entry in page.entries if entry.resource.get("resourceType") == resource_type]
            taken = tuple(take(entry, started_at) for entry in mine)
            yield SearchPage(taken, page.date, started_at, more=page.following is not None)
            following = page.following

    def history(
        self, reference: str, *, deadline_s: float, priority: Priority = Priority.LIVE
    ) -> tuple[tuple[str, bytes], ...]:
        """Read a resource's versions, but for deletions: the id and the bytes of each, in Medplum's order.

        That order is not the order in which they were current, and its first need not be the current one.

        Raises:
            MedplumUnavailable: as for a read; `deadline_s` is for all pages together, in seconds.
            MedplumRefused: credentials or rights, or Medplum shows this client no history of it.
            BadResource: the reference is not one, or there are more than a thousand versions.
        """
        resource_type, _, id_ = reference.partition("/")
        if not _TYPE.fullmatch(resource_type) or not _ID.fullmatch(id_):
            raise BadResource("a reference should be a resource type and an id")
        versions: dict[str, bytes] = {}
        with deadline(deadline_s):
            while True:
                page = self._past(resource_type, id_, len(versions), priority)
                told = {_version_of(entry): entry.body for entry in page.entries}
                new = {version: body for version, body in told.items() if version not in versions}
                versions |= new
                if len(versions) > _VERSIONS_MOST:
                    raise BadResource(f"its history has more than {_VERSIONS_MOST} versions")
                if not new or len(told) < _VERSIONS // 2:  # between two deletions there is a version that was none
                    return tuple(versions.items())

    def content(self, binary: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> bytes:
        """Read what a Binary holds, from Medplum itself: no redirect to a store elsewhere is followed.

        Raises:
            MedplumUnavailable: as for a read.
            MedplumRefused: credentials or rights; or it sends the content elsewhere.
            BadResource: there is no such Binary for this client, or it holds more than fits into an answer.
        """
        if not _ID.fullmatch(binary):
            raise BadResource("the id of a Binary should be one")
        what = "a Binary"
        path, anything = f"fhir/R4/Binary/{binary}", {"Accept": "*/*"}
        get: Send = lambda headers: self._http.get(path, headers=headers | anything)  # noqa: E731
        with deadline(deadline_s):
            response = self._let_in(get, what, priority, _READ_UNITS)
        if response.status_code in _NOBODY_THERE:
            raise BadResource("Medplum does not show this client a Binary that it names: is it there, may it be read?")
        if response.is_redirect:
            raise BadResource("Medplum sends the content of a Binary elsewhere, where nobody of us goes")
        if response.status_code != _OK:
            raise failure(response, what)
        return content_of(response)

    def put_identifier(
        self,
        reference: str,
        *,
        system: str,
        value: str,
        former: str | None = None,
        others: Collection[str] = (),
        deadline_s: float,
        priority: Priority = Priority.WRITE_BACK,
    ) -> Identified:
        """See that a resource carries an identifier: nothing is written where it does, or where the resource is gone.

        Args:
            reference: the resource.
            system: whose identifier it is.
            value: the legacy key.
            former: the key that was put there before, and gives way; another one under the system stays.
            others: values under the same system that are the keys of its other records, and stay.
            deadline_s: for all reads and patches together.
            priority: what stops when Medplum's quota runs short.

        Raises:
            MedplumUnavailable: as for a read, or somebody else wrote each time. A patch whose answer was lost may have
                been made: the next try finds the identifier there.
            MedplumRefused: credentials or rights; names what to mend.
            BadResource: what Medplum has there is not a FHIR resource.
        """
        what, status, refused = f"a patch of {reference.partition('/')[0]}", 0, ""
        with deadline(deadline_s):
            for _ in range(_PATCHES):
                found = self._reads.read(reference, deadline_s=deadline_s, priority=priority)
                if not isinstance(found, Present):
                    return Identified(Put.GONE)
                version, has_none = found.version_id, found.version_id == refused
                put, operations = of_identifier(
                    found.body, version, system=system, value=value, former=former, others=others, has_none=has_none
                )
                if not operations:
                    return Identified(put)
                response = self._patch(reference, operations, what, priority)
                status = response.status_code
                if status in {_OK, _GONE}:
                    return Identified(put, version_of(response)) if status == _OK else Identified(Put.GONE)
                if status not in _LOOK_AGAIN:
                    raise failure(response, what, needs="write")
                refused = version if status == _BAD_REQUEST else ""
        raise MedplumUnavailable(f"Medplum answered {status} to {what}, {_PATCHES} times in a row")

    def change(
        self, reference: str, version_id: str, members: Mapping[str, object], *, deadline_s: float
    ) -> str | None:
        """Set members of a Subscription (None: remove), if this is still its version.

        Returns the new version; None: it is another one by now.

        Raises:
            MedplumUnavailable: as for a read; the change may have been made all the same.
            MedplumRefused: credentials or rights; names what to mend.
        """
        if not reference.startswith("Subscription/") or not _ID.fullmatch(reference.partition("/")[2]):
            raise MedplumRefused("only a Subscription is changed like this")
        what = "a patch of Subscription"
        operations: Operations = [{"op": "test", "path": "/meta/versionId", "value": version_id}]
        operations += [
            {"op": "remove", "path": f"/{name}"} if value is None else {"op": "add", "path": f"/{name}", "value": value}
            for name, value in members.items()
        ]
        with deadline(deadline_s):
            response = self._patch(reference, operations, what, Priority.LIVE)
        if response.status_code == _OK:
            return version_of(response) or version_id
        if response.status_code in _LOOK_AGAIN | {_GONE}:
            return None
        raise failure(response, what, needs="write")

    def check(
        self, types: Iterable[str] = (), *, writes: Iterable[str] = (), deadline_s: float = 10.0
    ) -> list[tuple[str, bool, str]]:
        """Tell whether the client may do what it needs: for each right its name, whether it is there, what to do.

        Types to be written to are asked with a patch that fails: of a resource that nobody has, under a test that no
        version passes. That finds a type which the access policy leaves out; a server may tell of a policy that only
        reads, or hides single resources, not before a real write.
        """
        lines = [_tried("Medplum lets the client in", self._tokens.current, deadline_s)]
        if lines[0][1]:
            for each in types:
                lines.append(_tried(f"the client may search {each}", partial(self._look_for_nobody, each), deadline_s))
            for each in writes:
                lines.append(_tried(f"the client may write {each}", partial(self._patch_nobody, each), deadline_s))
        return lines

    def _look_for_nobody(self, resource_type: str) -> None:
        """Ask as a read does, live and deleted, for a resource that nobody has."""
        query = {"_id": _NOBODY, "_count": "1"}
        for asked in (query, query | {"_deleted": "true"}):
            self._ask(resource_type, asked, Priority.LIVE)

    def _patch_nobody(self, resource_type: str) -> None:
        """Patch a resource that nobody has, so that nothing but the right to do so is asked."""
        what = f"a patch of {resource_type}"
        operations = [{"op": "test", "path": "/meta/versionId", "value": _NOBODY}]
        response = self._patch(f"{resource_type}/{_NOBODY}", operations, what, Priority.LIVE)
        if response.status_code not in _NOBODY_THERE:
            raise failure(response, what, needs="write")

    def _ask(self, resource_type: str, query: Mapping[str, str] | Query, priority: Priority) -> Page:
        """Send one search."""
        if not _TYPE.fullmatch(resource_type):
            raise MedplumRefused("a search needs the name of a resource type")
        what = f"a search of {resource_type}"
        path, pairs = f"fhir/R4/{resource_type}", tuple(query.items() if isinstance(query, Mapping) else query)
        ask: Send = lambda headers: self._http.get(path, params=pairs, headers=headers)  # noqa: E731
        response = self._let_in(ask, what, priority, _SEARCH_UNITS)
        if response.status_code != _OK:
            raise failure(response, what)
        return page_of(response, what)

    def _past(self, resource_type: str, id_: str, offset: int, priority: Priority) -> Page:
        """Ask for one page of a history. Older servers send all there is, whatever is asked for."""
        what, query = f"the history of a {resource_type}", {"_count": str(_VERSIONS), "_offset": str(offset)}
        path = f"fhir/R4/{resource_type}/{id_}/_history"
        ask: Send = lambda headers: self._http.get(path, params=query, headers=headers)  # noqa: E731
        response = self._let_in(ask, what, priority, _HISTORY_UNITS)
        if response.status_code in _NOBODY_THERE:
            raise MedplumRefused(f"Medplum shows this client no history of a {resource_type}: may it read it?")
        if response.status_code != _OK:
            raise failure(response, what)
        return page_of(response, what)

    def _patch(self, reference: str, operations: Operations, what: str, priority: Priority) -> httpx.Response:
        """Send one JSON Patch of a resource whose reference a read has checked."""
        body = json.dumps(operations).encode()
        json_patch = {"Content-Type": "application/json-patch+json"}
        path = f"fhir/R4/{reference}"
        patch: Send = lambda headers: self._http.patch(path, content=body, headers=headers | json_patch)  # noqa: E731
        return self._let_in(patch, what, priority, _WRITE_UNITS)

    def _let_in(self, send: Send, what: str, priority: Priority, units: int) -> httpx.Response:
        """Send a request with a token; one that Medplum refuses in between is renewed once."""
        token = self._tokens.current()
        response = self._send(send, token, what, priority, units)
        if response.status_code == _UNAUTHORIZED:
            response = self._send(send, self._tokens.renewed(token), what, priority, units)
            if response.status_code == _UNAUTHORIZED:
                raise MedplumRefused(f"Medplum refuses a new access token for {what}: is the ClientApplication active?")
        return response

    def _send(self, send: Send, token: str, what: str, priority: Priority, units: int) -> httpx.Response:
        self._quota.admit(priority, units)
        try:
            response = send({"Authorization": f"Bearer {token}", "x-trace-id": str(uuid.uuid4())})
        except AnswerTooLarge as error:
            raise BadPage(f"{what}: {error}") from None
        except CallFailed as error:
            raise MedplumUnavailable(f"Medplum did not answer {what}: {error}") from None
        self._quota.note(response)
        self._note_time(response)
        return response

    def _note_time(self, response: httpx.Response) -> None:
        date = date_of(response)
        if date:
            with self._clock_lock:
                self._clock = date, time.monotonic()


def _version_of(entry: Entry) -> str:
    meta = entry.resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    if not isinstance(version, str) or not version:
        raise BadResource("meta.versionId is missing in a version of its history")
    return version


def _tried(name: str, attempt: Callable[[], object], deadline_s: float) -> tuple[str, bool, str]:
    try:
        with deadline(deadline_s):
            attempt()
    except ReverseSyncError as error:
        return name, False, str(error)
    return name, True, ""
