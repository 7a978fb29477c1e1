"""What an answer of Medplum means: a status as an error, a search as its resources, each as the bytes that came.

Pure. No error here quotes an answer, because an OperationOutcome can repeat what was asked for.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from worker.errors import BadResource, MedplumError, MedplumRefused, MedplumUnavailable

__all__ = [
    "BadPage",
    "Crowded",
    "Entry",
    "Page",
    "Query",
    "QueryRefused",
    "content_of",
    "date_of",
    "failure",
    "page_of",
    "retry_after_s",
]

Query = tuple[tuple[str, str], ...]

_FORBIDDEN = 403
_LATER = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_STANDS_STILL = "Cursor fails to make progress"
_SPACE = re.compile(r"[ \t\n\r]*")


class QueryRefused(MedplumRefused):
    """Medplum does not take this search; asked for less at a time, it may."""


class Crowded(MedplumUnavailable):
    """More rows than a page takes have one and the same `lastUpdated`: the search cannot get past that millisecond."""


class BadPage(BadResource):
    """The page cannot be taken as a whole: too large, or one of its resources nested too deeply."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource of a page: its own bytes, and a reading of them in which numbers were left out."""

    body: bytes
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A search's answer; `following` is the query of the next page."""

    entries: tuple[Entry, ...]
    following: Query | None
    date: datetime | None


def failure(response: httpx.Response, what: str, *, needs: str = "read and search") -> MedplumError:
    """Return the error that a status other than 200 is; `what` names the request, `needs` its rights: no values."""
    status = response.status_code
    if status == _SERVER_ERROR and _stands_still(response):
        return Crowded(f"Medplum answered 500 to {what}: a page is too small for one of its milliseconds")
    if status in _LATER or status >= _SERVER_ERROR:
        return MedplumUnavailable(f"Medplum answered {status} to {what}", retry_after_s=retry_after_s(response))
    if status == _FORBIDDEN:
        return MedplumRefused(f"Medplum forbids {what}: let the AccessPolicy of the client {needs} it")
    if status == 400:  # noqa: PLR2004
        return QueryRefused(f"Medplum answered 400 to {what}")
    return MedplumRefused(
        f"Medplum answered {status} to {what}: is REVERSE_SYNC_MEDPLUM_BASE_URL the server's address?"
    )


def retry_after_s(response: httpx.Response) -> float | None:
    """Return how long Medplum asks to wait: Retry-After, or what its rate limiter writes into the diagnostics."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        milliseconds = json.loads(response.json()["issue"][0]["diagnostics"])["_msBeforeNext"]
        return max(0.0, float(milliseconds) / 1000)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None


def content_of(response: httpx.Response) -> bytes:
    """Return what a Binary holds: its bytes as they are, or out of the resource where that came instead.

    Raises:
        BadResource: the resource came, and its content is elsewhere.
    """
    if not response.headers.get("Content-Type", "").startswith("application/fhir+json"):
        return response.content
    try:
        resource = response.json()
        data = resource.get("data") if resource.get("resourceType") == "Binary" else None
        if isinstance(data, str):
            return base64.b64decode(data, validate=True)
    except (ValueError, AttributeError, RecursionError):
        pass
    raise BadResource("Medplum answers for this Binary without its content")


def _stands_still(response: httpx.Response) -> bool:
    """Tell by its OperationOutcome that the server's cursor would name the page that it has just shown."""
    try:
        return any(_STANDS_STILL in str(issue.get("diagnostics", "")) for issue in response.json()["issue"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def date_of(response: httpx.Response) -> datetime | None:
    """Return the answer's Date: Medplum's own clock, in whole seconds."""
    try:
        return parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return None


def page_of(response: httpx.Response, what: str) -> Page:
    """Take a searchset apart.

    Raises:
        MedplumUnavailable: it is not a Bundle; something in between answered, or cut it off.
        BadPage: something in it is nested too deeply.
    """
    try:
        bundle = _Bundle(response.content.decode("utf-8"))
    except RecursionError:
        raise BadPage(f"the answer to {what} is nested too deeply") from None
    except ValueError:
        raise MedplumUnavailable(f"the answer to {what} is not a Bundle") from None
    return Page(tuple(bundle.entries), bundle.following(), date_of(response))


def _unread(_: str) -> None:
    """Leave a number out: one of them may be longer than Python likes, and nothing here needs any."""


_JSON = json.JSONDecoder(parse_int=_unread, parse_float=_unread)


@dataclass(slots=True)
class _Bundle:
    """Reads the outer layers of a Bundle itself, so that it knows where each resource begins and ends."""

    text: str
    entries: list[Entry] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = self._each_member(self._past_space(0), self._member)
        if self._past_space(end) != len(self.text) or self.members.get("resourceType") != "Bundle":
            raise ValueError

    def following(self) -> Query | None:
        """Return the query of the next link. Its origin is never used: behind a proxy it is another one than ours."""
        for link in self.members.get("link") or ():
            if isinstance(link, dict) and link.get("relation") == "next":
                return tuple(parse_qsl(urlsplit(str(link.get("url", ""))).query, keep_blank_values=True))
        return None

    def _member(self, name: str, at: int) -> int:
        if name == "entry":
            return self._each_item(at, lambda item: self._each_member(item, self._part))
        self.members[name], end = _JSON.raw_decode(self.text, at)
        return end

    def _part(self, name: str, at: int) -> int:
        value, end = _JSON.raw_decode(self.text, at)
        if name == "resource" and isinstance(value, dict):
            self.entries.append(Entry(self.text[at:end].encode("utf-8"), value))
        return end

    def _each_member(self, at: int, read: Callable[[str, int], int]) -> int:
        """Walk an object; `read` gets each member's name and place, and returns where it ends."""
        names: set[str] = set()

        def member(at: int) -> int:
            name, end = _JSON.raw_decode(self.text, at)
            if not isinstance(name, str) or name in names:
                raise ValueError
            names.add(name)
            return read(name, self._past(":", end))

        return self._walk("{", at, "}", member)

    def _each_item(self, at: int, read: Callable[[int], int]) -> int:
        return self._walk("[", at, "]", read)

    def _walk(self, opening: str, at: int, closing: str, read: Callable[[int], int]) -> int:
        at = self._past(opening, at)
        if self.text[at : at + 1] == closing:
            return at + 1
        while True:
            at = self._past_space(read(at))
            if self.text[at : at + 1] == closing:
                return at + 1
            at = self._past(",", at)

    def _past(self, sign: str, at: int) -> int:
        at = self._past_space(at)
        if self.text[at : at + 1] != sign:
            raise ValueError
        return self._past_space(at + 1)

    def _past_space(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return match.end() if match else at
