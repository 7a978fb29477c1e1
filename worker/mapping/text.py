"""Small functions over text and lists for mappings. Each takes an attribute as it is, None included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeVar

from worker.errors import Unmappable
from worker.mapping.tables import REFUSE, Refuse

T = TypeVar("T")


def required(value: T | None) -> T:
    """Return the value. Raises Unmappable if it is None, or text without a letter."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Unmappable("is missing")
    return value


def first(values: Sequence[T | None] | None) -> T | None:
    """Return the first entry that is there, None where there is none.

    FHIR's lists can hold null: in a list of texts, an entry that is an extension alone (`_given`).
    """
    return next(iter(_there(values)), None)


def rest(values: Sequence[T | None] | None) -> Sequence[T]:
    """Return the entries that are there, after the first of them."""
    return _there(values)[1:]


def _there(values: Sequence[T | None] | None) -> list[T]:
    return [value for value in values or [] if value is not None]


def prefix(before: str, text: str | None, after: str = "") -> str | None:
    """Put something before (and after) a text that is there."""
    return f"{before}{text}{after}" if text else None


def join(
    *parts: str | Sequence[str | None] | None,
    sep: str = " ",
    max: int = 0,
    overflow: Literal["refuse", "drop", "cut"] = "refuse",
) -> str | None:
    """Join the parts that are there, lists of them too; None where none is.

    Args:
        parts: texts, lists of texts, and None.
        sep: what stands between them.
        max: the most characters that the field takes; 0 is no limit. State it only where the API cuts in silence.
        overflow: beyond that: refuse it, drop parts from the end, or cut the text.

    Raises:
        Unmappable: the text, or with `drop` already its first part, is too long.
    """
    words = [word.strip() for part in parts for word in ([part] if isinstance(part, str) else part or []) if word]
    words = [word for word in words if word]
    while overflow == "drop" and max and len(words) > 1 and len(sep.join(words)) > max:
        words.pop()
    text = sep.join(words)
    if max and len(text) > max:
        if overflow != "cut":
            raise Unmappable(f"longer than {max} characters")
        text = text[:max].rstrip()
    return text or None


class Phone:
    """A number in a shape like "###-###-####". `default` is for what does not fit it; without one it is refused."""

    def __init__(self, shape: str, *, region: Literal["US"] = "US", default: str | Refuse | None = REFUSE) -> None:
        self._shape = shape
        self._region = region
        self._default = default

    def __call__(self, number: str | None) -> str | None:
        """Write a number in the shape; None stays None.

        Fits: ten digits, with or without the country's 1; no letters, extensions or other countries' numbers.

        Raises:
            Unmappable: it does not fit, and no default is stated.
        """
        if not number or not number.strip():
            return None
        digits = re.sub(r"[\s().\-/]", "", number)
        local = re.fullmatch(r"(?:\+?1)?([2-9]\d{9})", digits, re.ASCII)
        if local is not None and len(local[1]) == self._shape.count("#"):
            shown = iter(local[1])
            return re.sub("#", lambda _: next(shown), self._shape)
        if self._default is REFUSE:
            raise Unmappable(f"not a number like {self._shape}")
        return self._default
