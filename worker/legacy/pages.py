"""The pages of one find or list. It asks for each in turn, and never leaves the API's own address."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from worker.errors import LegacyUnavailable
from worker.legacy.outcome import Answered, Outcome, at

if TYPE_CHECKING:
    from worker.legacy.call import Find, LegacyRequest, Listing

__all__ = ["below", "on_same_host", "one_page", "pages"]

PAGES_MAX = 200
Records = list[Mapping[str, object]]


def pages(how: Find, request: LegacyRequest, ends_at: float) -> Iterator[Mapping[str, object]]:
    """Yield the records of all pages, by the monotonic clock before `ends_at`.

    Raises:
        LegacyUnavailable: a page was not answered, is no list of records, or there is no end of pages.
    """
    before: Records = []
    seen = 0
    asked = request.paged(how.page, 1).paged(how.offset, 0)
    for number in range(2, PAGES_MAX + 2):
        body, page = _page(asked, max(0.0, ends_at - time.monotonic()))
        if page == before and not how.next:  # an API that does not know the parameter gives the same page for ever
            return
        yield from page
        seen += len(page)
        if how.next:
            following = _next(how, asked, body)
        else:
            counted = page and (how.page or how.offset)
            following = request.paged(how.page, number).paged(how.offset, seen) if counted else None
        if following is None:
            return
        asked, before = following, page
    raise LegacyUnavailable(f"{request.template}: more than {PAGES_MAX} pages: does the API know the filter?")


def one_page(how: Listing, request: LegacyRequest, place: str, deadline_s: float) -> tuple[Records, str]:
    """Return the records of one page of a list, and the place of the next one; "" is the first, and the end.

    Raises:
        LegacyUnavailable: as for `pages`.
    """
    if how.next:
        path, _, query = place.partition("?")
        asked = request.moved(path, query) if place else request
    else:
        asked = request.paged(how.page, int(place or 1)).paged(how.offset, int(place or 0))
    body, records = _page(asked, deadline_s)
    if how.next:
        following = _next(how, asked, body)
        return records, "" if following is None else f"{following.path}?{following.query}"
    if how.offset:
        return records, str(int(place or 0) + len(records)) if records else ""
    return records, str(int(place or 1) + 1) if how.page and records else ""


def below(base_url: str, path: str, link: str) -> str | None:
    """Return the path below `base_url`, with its query, that a link in an answer to `path` leads to; None if outside.

    The API's words are foreign text: nothing is ever fetched from another address because of them.
    """
    here, target = urlsplit(base_url.rstrip("/")), _resolved(base_url, path, link)
    if target is None or target.scheme != here.scheme or target.port != here.port:
        return None
    if not target.path.startswith(f"{here.path}/"):
        return None
    return target.path.removeprefix(here.path) + (f"?{target.query}" if target.query else "")


def on_same_host(base_url: str, path: str, link: str) -> bool:
    """Tell whether a link stays on the API's host: behind a proxy, an API may not know its own scheme and port."""
    return _resolved(base_url, path, link) is not None


def _resolved(base_url: str, path: str, link: str) -> SplitResult | None:
    base = base_url.rstrip("/")
    try:
        target = urlsplit(urljoin(f"{base}/{path.lstrip('/')}", link))
        foreign = target.hostname != urlsplit(base).hostname or target.username or target.password
        _ = target.port
    except ValueError:
        return None
    return None if foreign else target


def _next(how: Find | Listing, asked: LegacyRequest, body: object) -> LegacyRequest | None:
    link = at(body, how.next)
    if link is None or link == "":
        return None
    base_url = asked.collection.api.base_url if asked.collection is not None else ""
    target = below(base_url, asked.path, link) if isinstance(link, str) else None
    if target is None:
        raise LegacyUnavailable(f"{asked.template}: its next page is not below the API's own address")
    path, _, query = target.partition("?")
    return asked.moved(path, query)


def _page(request: LegacyRequest, deadline_s: float) -> tuple[object, Records]:
    collection = request.collection
    assert collection is not None, "a find is one of a collection"  # noqa: S101
    answered: Answered = collection.api.send(request, deadline_s=deadline_s)
    if answered.outcome is Outcome.GONE and answered.declared:
        return answered.body, []
    items = at(answered.body, collection.items)
    if answered.outcome is not Outcome.DONE or not isinstance(items, list):
        why = answered.detail if answered.outcome is not Outcome.DONE else f"{answered.detail}: no list in it"
        raise LegacyUnavailable(why, retry_after_s=answered.retry_after_s, status=answered.status)
    records = [entry for entry in items if isinstance(entry, Mapping)]
    if len(records) != len(items):
        raise LegacyUnavailable(f"{answered.detail}: not a list of records")
    return answered.body, records
