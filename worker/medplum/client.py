"""Medplum's API as this service uses it: searches, with a token, a trace id and a deadline. It never reads by id.

A GET by id is answered from a cache that a concurrent delete leaves wrong. Nothing here writes to Medplum.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr

from worker.deadline import AnswerTooLarge, CallFailed, client, deadline
from worker.errors import MedplumRefused, MedplumUnavailable, ReverseSyncError
from worker.medplum.answer import BadPage, Page, Query, date_of, failure, page_of
from worker.medplum.quota import Priority, Quota
from worker.medplum.reads import Deleted, Present, Read, Reads, deletion, present
from worker.medplum.token import Tokens
from worker.settings import WorkerSettings

__all__ = ["Medplum", "SearchPage"]

_SEARCH_UNITS = 20
_NOBODY = "00000000-0000-0000-0000-000000000000"
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_OK = 200
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of a search; `at` is Medplum's clock when it answered, in whole seconds."""

    entries: tuple[Present | Deleted, ...]
    at: datetime | None
    started_at: datetime


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
            yield SearchPage(tuple(take(entry, started_at) for entry in mine), page.date, started_at)
            following = page.following

    def check(self, types: Iterable[str] = (), *, deadline_s: float = 10.0) -> list[tuple[str, bool, str]]:
        """Tell whether the client may do what it needs: for each right its name, whether it is there, what to do."""
        lines = [_tried("Medplum lets the client in", self._tokens.current, deadline_s)]
        if lines[0][1]:
            for each in types:
                lines.append(_tried(f"the client may search {each}", partial(self._look_for_nobody, each), deadline_s))
        return lines

    def _look_for_nobody(self, resource_type: str) -> None:
        """Ask as a read does, live and deleted, for a resource that nobody has."""
        query = {"_id": _NOBODY, "_count": "1"}
        for asked in (query, query | {"_deleted": "true"}):
            self._ask(resource_type, asked, Priority.LIVE)

    def _ask(self, resource_type: str, query: Mapping[str, str] | Query, priority: Priority) -> Page:
        """Send one search; a token that Medplum refuses in between is renewed once."""
        if not _TYPE.fullmatch(resource_type):
            raise MedplumRefused("a search needs the name of a resource type")
        what = f"a search of {resource_type}"
        token = self._tokens.current()
        response = self._send(resource_type, query, token, what, priority)
        if response.status_code == _UNAUTHORIZED:
            response = self._send(resource_type, query, self._tokens.renewed(token), what, priority)
            if response.status_code == _UNAUTHORIZED:
                raise MedplumRefused(f"Medplum refuses a new access token for {what}: is the ClientApplication active?")
        if response.status_code != _OK:
            raise failure(response, what)
        return page_of(response, what)

    def _send(
        self, resource_type: str, query: Mapping[str, str] | Query, token: str, what: str, priority: Priority
    ) -> httpx.Response:
        self._quota.admit(priority, _SEARCH_UNITS)
        headers = {"Authorization": f"Bearer {token}", "x-trace-id": str(uuid.uuid4())}
        pairs = query.items() if isinstance(query, Mapping) else query
        try:
            response = self._http.get(f"fhir/R4/{resource_type}", params=tuple(pairs), headers=headers)
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


def _tried(name: str, attempt: Callable[[], object], deadline_s: float) -> tuple[str, bool, str]:
    try:
        with deadline(deadline_s):
            attempt()
    except ReverseSyncError as error:
        return name, False, str(error)
    return name, True, ""
