"""Strict JSON: bytes to plain values, or one value-free sentence saying why not.

What other readers forgive is refused here: whatever is let in has to survive PostgreSQL, Decimal arithmetic, recursion
and a second reader that picks the other one of two equal keys. Never puts a part of the input into an error.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

from worker.errors import BadResource

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "MAX_EXPONENT", "loads"]

MAX_DEPTH: Final = 64
MAX_DIGITS: Final = 40
MAX_EXPONENT: Final = 400  # JavaScript, which all that Medplum sends has passed through, ends at 308

_BRACKETS: Final = b"{}[]"
_AS_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))
_SURROGATE_PAIR: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_EXPONENT: Final = f"a number has an exponent beyond {MAX_EXPONENT}"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(data: bytes) -> object:
    """Read one JSON value; numbers with a point or an exponent become Decimal, digit for digit.

    Raises:
        BadResource: not UTF-8, not JSON, two equal keys in an object, NaN or Infinity, nested deeper than MAX_DEPTH,
            a number beyond MAX_DIGITS or MAX_EXPONENT, the character U+0000, half of a surrogate pair.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadResource(f"not UTF-8: wrong at byte {error.start}") from None
    _refuse_depth(_without_escapes(data))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadResource(f"not JSON: wrong at character {error.pos}") from None
    except RecursionError:  # unbalanced brackets, which the count of levels leaves to the parser
        raise BadResource("not JSON: brackets that are not closed") from None


def _without_escapes(data: bytes) -> bytes:
    """Blank out what would make a quote look like the end of its string, and refuse what no text should hold."""
    if b"\\" not in data:
        return data
    plain = data.replace(b"\\\\", b"..")  # first, so that each backslash left begins an escape
    if b"\\u0000" in plain:
        raise BadResource("a string holds the character U+0000")
    if b"\\u" in plain and _SURROGATE.search(_SURROGATE_PAIR.sub(b"", plain)):
        raise BadResource("a string holds half of a surrogate pair")
    return plain.replace(b'\\"', b"..")


def _refuse_depth(data: bytes) -> None:
    """Count the levels before anything recurses into them: each round strips the innermost brackets of all.

    A few microseconds for an ordinary resource, where a scan in Python would cost more than the parsing itself.
    """
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:
        return
    outside_strings = b"".join(data.split(b'"')[::2])
    brackets = outside_strings.translate(_AS_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            return  # nothing left, or unbalanced: the parser says where
        brackets = fewer
    if b"[]" in brackets:
        raise BadResource(f"nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadResource("an object has the same key twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        _refuse_digits(text)
    return int(text)


def _decimal(text: str) -> Decimal:
    if len(text) > MAX_DIGITS:
        _refuse_digits(text.lower().partition("e")[0])
    try:
        number = Decimal(text)
    except InvalidOperation:  # an exponent that not even Decimal can hold
        raise BadResource(_EXPONENT) from None
    if abs(number.adjusted()) > MAX_EXPONENT:
        raise BadResource(_EXPONENT)
    return number


def _refuse_digits(text: str) -> None:
    if sum(map(str.isdigit, text)) > MAX_DIGITS:
        raise BadResource(f"a number has more than {MAX_DIGITS} digits")


def _constant(_: str) -> NoReturn:
    raise BadResource("NaN or Infinity, which JSON does not have")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_constant
)
