"""In what two values of a field may differ and still say the same, where a legacy system keeps them its own way. Pure.

It judges what is read back and never changes what is written. Whoever compares both sides names what was declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum

__all__ = ["Normal", "normalised"]


class Normal(StrEnum):
    """One thing that does not count; several may be declared for a field."""

    CASE = "case"  # DOE is Doe
    BLANKS = "blanks"  # several blanks are one, and a line's end is a blank
    ZEROS = "zeros"  # 120.50 is 120.5, as text as well
    DIGITS = "digits"  # (555) 010-0199 is 5550100199: only the digits count


def normalised(value: object, normals: Sequence[Normal]) -> object:
    """Return a wire value without what does not count, in lists and objects as well."""
    if isinstance(value, Mapping):
        return {name: normalised(entry, normals) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [normalised(entry, normals) for entry in value]
    if not isinstance(value, str):
        return value
    for normal in normals:
        value = _WITHOUT[normal](value)
    return value


def _without_zeros(text: str) -> str:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return f"{number.normalize():f}" if number.is_finite() else text


_WITHOUT: Mapping[Normal, Callable[[str], str]] = {
    Normal.CASE: str.casefold,
    Normal.BLANKS: lambda text: " ".join(text.split()),
    Normal.ZEROS: _without_zeros,
    Normal.DIGITS: lambda text: "".join(sign for sign in text if sign.isdigit()),
}
