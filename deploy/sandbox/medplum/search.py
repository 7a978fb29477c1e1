"""Searches: from a query string to rows, and from rows to a Bundle with its links.

It writes the WHERE of a search and nothing else of SQL; every value is bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlencode

from .javascript import Json, dumps
from .outcome import Refused, bad_request, outcome
from .resources import PARAMETERS
from .store import Store, Version
from .subscription import split_values

__all__ = ["Page", "Search", "bundle", "parse_search", "run"]

_DEFAULT_COUNT, _MAX_COUNT, _MAX_OFFSET = 20, 1_000, 10_000
_MIN_CURSOR_COUNT = 20
_COMPARISONS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "=", "ne": "<>", "sa": ">", "eb": "<"}
_SORTS = {"_lastUpdated": "v.last_updated, v.seq", "-_lastUpdated": "v.last_updated DESC, v.seq"}
_SORTS |= {"_id": "v.id", "-_id": "v.id DESC"}
_IGNORED = frozenset({"_total", "_summary", "_fields", "_format", "_pretty"})
_NOT_PAGING = frozenset({"_cursor", "_offset"})

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Search:
    """One search of one type, read and checked."""

    type: str
    query: Pairs
    where: tuple[str, ...]
    values: tuple[str | int, ...]
    few: bool = False  # names its resources, so that the index by id serves it better than the one by time
    deleted: bool = False
    count: int = _DEFAULT_COUNT
    offset: int = 0
    sort: str | None = None
    cursor: tuple[str, tuple[str, ...]] | None = None  # the next page's first instant, ids that were shown already

    @property
    def by_cursor(self) -> bool:
        """Tell whether the next page is named by a cursor: as on the server, only for one ascending sort by time."""
        return self.sort == "_lastUpdated" and self.offset == 0 and self.count >= _MIN_CURSOR_COUNT


@dataclass(frozen=True, slots=True)
class Page:
    """What one search found."""

    search: Search
    found: list[Version]
    following: Version | None


def parse_search(type_: str, query: Pairs) -> Search:
    """Read the parameters; an unknown one is a 400, as on the server."""
    search = Search(type_, query, (), ())
    for parameter, value in query:
        name, _, modifier = parameter.partition(":")
        match name:
            case "_id":
                ids = split_values(value)
                search = replace(_and(search, f"v.id IN ({_marks(ids)})", ids), few=True)
            case "_lastUpdated":
                comparison, moment = _comparison(value)
                search = _and(search, f"v.last_updated {comparison} ?", [moment])
            case "_deleted":
                search = replace(search, deleted=value == "true")
            case "_count":
                search = replace(search, count=min(_whole(name, value), _MAX_COUNT))
            case "_offset":
                search = replace(search, offset=_whole(name, value))
            case "_sort":
                search = replace(search, sort=_sort(value))
            case "_cursor":
                search = replace(search, cursor=_read_cursor(value))
            case _ if name in PARAMETERS and modifier in {"", "not"}:
                condition, values = _token_condition(type_, name, value, negated=modifier == "not")
                search = replace(_and(search, condition, values), few=search.few or modifier != "not")
            case _ if name not in _IGNORED:
                raise bad_request(f"Unknown search parameter: {name}")
    if search.offset > _MAX_OFFSET:
        raise bad_request(f"Search offset exceeds maximum (got {search.offset}, max {_MAX_OFFSET})")
    if search.offset and search.cursor:
        raise bad_request("Cannot use both offset and cursor")
    return search


def _and(search: Search, condition: str, values: Iterable[str]) -> Search:
    return replace(search, where=(*search.where, condition), values=(*search.values, *values))


def _marks(values: list[str]) -> str:
    return ", ".join("?" * len(values))


def _whole(name: str, value: str) -> int:
    if not value.isdecimal():
        raise bad_request(f"Invalid number for {name}")
    return int(value)


def _sort(value: str) -> str:
    if value not in _SORTS:
        raise bad_request("Unknown sort; known: " + ", ".join(_SORTS))
    return value


def _comparison(value: str) -> tuple[str, str]:
    prefix = value[:2] if value[:2] in _COMPARISONS else "eq"
    moment = value.removeprefix(prefix)
    try:
        parsed = datetime.fromisoformat(moment.replace(" ", "+"))
    except ValueError:
        raise bad_request("Invalid instant for _lastUpdated") from None
    return _COMPARISONS[prefix], _instant(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _token_condition(type_: str, name: str, value: str, *, negated: bool) -> tuple[str, list[str]]:
    alternatives, values = [], [type_, name]
    for one in re.findall(r"(?:\\.|[^,\\])+", value):
        system, bar, code = one.rpartition("|")
        conditions = [("t.system = ?", system)] if bar else []
        conditions += [("t.value = ?", code)] if code else []
        alternatives.append(" AND ".join(condition for condition, _ in conditions) or "0")
        values += [re.sub(r"\\(.)", r"\1", bound) for _, bound in conditions]
    any_of = " OR ".join(f"({alternative})" for alternative in alternatives) or "0"
    exists = f"v.id IN (SELECT t.id FROM token t WHERE t.type = ? AND t.name = ? AND ({any_of}))"  # noqa: S608
    return (f"NOT {exists}" if negated else exists), values


# cursors: 2-<ms of the next row>-<ids of that millisecond that were shown already>


def _read_cursor(text: str) -> tuple[str, tuple[str, ...]] | None:
    version, _, rest = text.partition("-")
    ms, _, shown = rest.partition("-")
    if version != "2" or not ms.isdecimal():
        return None
    moment = datetime.fromtimestamp(int(ms) // 1_000, UTC).replace(microsecond=int(ms) % 1_000 * 1_000)
    return _instant(moment), tuple(shown.split(",")) if shown else ()


def _cursor(page: Page) -> str:
    if page.following is None:
        raise ValueError("no next page")
    instant = page.following.last_updated
    moment = datetime.fromisoformat(instant)
    ms = int(moment.replace(microsecond=0).timestamp()) * 1_000 + moment.microsecond // 1_000
    shown = ",".join(version.id for version in page.found if version.last_updated == instant)
    return f"2-{ms}-{shown}" if shown else f"2-{ms}"


# running


def run(store: Store, search: Search, *, up_to: int | None, without: list[str]) -> Page:
    """Return one page; `up_to` is the last version that a stale search sees, `without` are ids not for this client."""
    where, values = ["v.type = ?", f"v.deleted = {int(search.deleted)}"], [search.type]
    if up_to is None:
        where.append("v.current")
    else:
        where.append("v.seq = (SELECT max(n.seq) FROM version n WHERE n.type = v.type AND n.id = v.id AND n.seq <= ?)")
        values.append(up_to)  # type: ignore[arg-type]
    if without:
        where.append(f"v.id NOT IN ({_marks(without)})")
    bound: list[str | int] = [*values, *without, *search.values]
    where += search.where
    if search.cursor:
        instant, shown = search.cursor
        where.append(f"v.last_updated >= ? AND v.id NOT IN ({_marks(list(shown))})")
        bound += [instant, *shown]
    order = _SORTS[search.sort or "_lastUpdated"]
    index = "INDEXED BY version_current" if search.few and up_to is None else ""
    rest = f"FROM version v {index} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ? OFFSET ?"
    found = list(store.select(rest, [*bound, search.count + 1, search.offset]))
    page = Page(search, found[: search.count], found[search.count] if len(found) > search.count else None)
    _refuse_standstill(page)
    return page


def _refuse_standstill(page: Page) -> None:
    """500 where a page begins and ends in the millisecond that the next one begins with."""
    following = page.following
    if following is None or not page.found or not page.search.by_cursor:
        return
    if page.found[0].last_updated == following.last_updated:
        text = "Internal server error"
        raise Refused(500, outcome("exception", "exception", text, "Error: Cursor fails to make progress"))


def bundle(page: Page, base: str, bodies: list[bytes]) -> bytes:
    """Return the searchset; entries come as ready JSON, so that a body is not parsed to be shown."""
    entries = b",".join(
        b'{"fullUrl":%b,"search":{"mode":"match"},"resource":%b}' % (dumps(f"{base}/{version.reference}"), body)
        for version, body in zip(page.found, bodies, strict=True)
    )
    head: Json = {"resourceType": "Bundle", "type": "searchset"}
    entry = b',"entry":[%b]' % entries if entries else b""
    return dumps(head)[:-1] + entry + b',"link":' + dumps(_links(page, base)) + b"}"


def _links(page: Page, base: str) -> list[Json]:
    search = page.search
    plain = [pair for pair in search.query if pair[0] not in _NOT_PAGING]
    pages: list[tuple[str, Pairs]] = [("self", search.query), ("first", plain)]
    if page.following is not None and search.count:
        step = ("_cursor", _cursor(page)) if search.by_cursor else ("_offset", str(search.offset + search.count))
        pages.append(("next", [*plain, step]))
    return [{"relation": name, "url": f"{base}/{search.type}?{urlencode(query)}"} for name, query in pages]
