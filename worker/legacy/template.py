"""The one template language: paths, queries, headers and constants. Pure: it looks nothing up by itself.

Everything in braces is a name: an own key (`{uuid}`), a mapped field (`{last_name}`), a key of a linked record
(`{patient.uuid}`), or what the record holds now (`{current.version}`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

from worker.errors import BadKey, RoutesInvalid

__all__ = ["Lookup", "Template", "filled", "names_in", "template"]

Lookup = Callable[[str], object]
"""Gives what a name stands for; None where there is nothing."""

_BRACE = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
_SEGMENTS = re.compile(r"[/\\]")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Template:
    """A request line taken apart. `names` are those in its braces, in order."""

    text: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    names: tuple[str, ...]

    def fill_path(self, lookup: Lookup) -> str:
        """Fill the path's braces, each encoded so that it stays one segment.

        Raises:
            BadKey: a value is missing, empty, neither text nor a whole number, or has a dot segment, which servers and
                clients resolve even where it is encoded.
        """
        return _BRACE.sub(lambda brace: quote(self._key(brace[1], lookup(brace[1])), safe=""), self.path)

    def fill_query(self, lookup: Lookup) -> str:
        """Fill the query; a parameter one of whose names has no value is left out."""
        pairs = []
        for name, value in self.query:
            given = {brace: lookup(brace) for brace in _BRACE.findall(value)}
            if all(one is not None and one != "" for one in given.values()):
                text = _BRACE.sub(lambda brace, given=given: str(given[brace[1]]), value)  # type: ignore[misc]
                pairs.append(f"{name}={quote(text, safe='')}")
        return "&".join(pairs)

    def _key(self, name: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadKey(f"{self.text}: {{{name}}} is missing, or is no key")
        if any(segment.partition(";")[0].strip() in {"", ".", ".."} for segment in _SEGMENTS.split(str(value))):
            raise BadKey(f"{self.text}: {{{name}}} is empty, or would change the path")
        return str(value)


@cache
def template(text: str) -> Template:
    """Take a request line like "PUT /patients/{patient.uuid}" apart.

    Raises:
        RoutesInvalid: it has no method, its path does not begin with one `/`, or a brace holds no name.
    """
    method, _, target = text.partition(" ")
    path, _, query = target.partition("?")
    if method not in _METHODS or not path.startswith("/") or path.startswith("//") or " " in target or "#" in target:
        raise RoutesInvalid(f'"{text}" is not a request like "GET /patients/{{uuid}}"')
    pairs = tuple((name, value) for name, _, value in (part.partition("=") for part in query.split("&") if part))
    return Template(text, method, path, pairs, tuple(_names(target, text)))


def names_in(value: object) -> frozenset[str]:
    """List the names in the braces of a constant, however deep they stand.

    Raises:
        RoutesInvalid: a brace holds no name.
    """
    match value:
        case str():
            return frozenset(_names(value, value))
        case Mapping():
            return frozenset().union(*map(names_in, value.values()))
        case list() | tuple():
            return frozenset().union(*map(names_in, value))
    return frozenset()


def filled(value: object, lookup: Lookup, text: str) -> object:
    """Fill the braces of a constant; one that is a single brace keeps the type of what stands there.

    Raises:
        BadKey: a name has no value. `text` names the request.
    """
    match value:
        case str() if (whole := _BRACE.fullmatch(value)) is not None:
            return _there(whole[1], lookup, text)
        case str():
            return _BRACE.sub(lambda brace: str(_there(brace[1], lookup, text)), value)
        case Mapping():
            return {name: filled(entry, lookup, text) for name, entry in value.items()}
        case list() | tuple():
            return [filled(entry, lookup, text) for entry in value]
    return value


def _there(name: str, lookup: Lookup, text: str) -> object:
    if (value := lookup(name)) is None or value == "":
        raise BadKey(f"{text}: {{{name}}} has no value")
    return value


def _names(text: str, whole: str) -> list[str]:
    names: list[str] = _BRACE.findall(text)
    if any(not _NAME.fullmatch(name) for name in names) or set(_BRACE.sub("", text)) & {"{", "}"}:
        raise RoutesInvalid(f'"{whole}" has a brace that holds no name')
    return names
