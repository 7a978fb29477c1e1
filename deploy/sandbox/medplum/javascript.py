"""JSON as Medplum's JavaScript reads and writes it: compact UTF-8, numbers after a passage through a double.

Pure. It knows nothing of FHIR.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from decimal import Decimal
from typing import Any

__all__ = ["Json", "canonical", "dumps", "loads"]

Json = dict[str, Any]

_LARGEST_EXACT_INTEGER = 2**53
_DIGITS_OF_IT = 16
_EXPONENT_FROM = 1e21
_EXPONENT_BELOW = 1e-6

# json has no hook for how a float is spelt, so a float that JavaScript spells otherwise travels as a marked string.
# The mark is random, so that no document can contain it.
_MARK = f"\ue000{secrets.token_hex(8)}:"
_MARKED = re.compile(rf'"{_MARK}([^"]*)"'.encode())
_LONE_SURROGATE = "backslashreplace"


class _Spelt(str):
    """A number in JavaScript's own spelling, waiting to be written without its quotes."""

    __slots__ = ()


def _number(text: str) -> Any:
    """Return what `JSON.stringify(JSON.parse(text))` would show for a number."""
    value = float(text)
    if not math.isfinite(value):
        return None
    if value == 0:
        return 0
    size = abs(value)
    if value.is_integer() and size < _EXPONENT_FROM:
        return int(Decimal(repr(value)))
    shortest = repr(value)
    if "e" not in shortest:
        return value
    if _EXPONENT_BELOW <= size < _EXPONENT_FROM:
        return _Spelt(_MARK + format(Decimal(shortest), "f"))
    return _Spelt(_MARK + re.sub(r"e([+-])0*(\d)", r"e\1\2", shortest))


def _integer(text: str) -> Any:
    if len(text) <= _DIGITS_OF_IT and abs(int(text)) <= _LARGEST_EXACT_INTEGER:
        return int(text)
    return _number(text)


def loads(raw: bytes | str) -> Any:
    """Parse JSON with JavaScript's numbers: `120.50` becomes 120.5, twenty digits lose their end."""
    return json.loads(raw, parse_float=_number, parse_int=_integer)


def dumps(value: Any) -> bytes:
    """Write compact UTF-8 JSON; lone surrogates stay escaped, as `JSON.stringify` leaves them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    raw = text.encode("utf-8", _LONE_SURROGATE)
    return _MARKED.sub(rb"\1", raw) if _MARK.encode() in raw else raw


def canonical(value: Any) -> str:
    """Return a text that is equal for two values exactly if they are the same JSON, whatever the order of members."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
