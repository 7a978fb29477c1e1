"""How one legacy API writes values, and when two of them say the same. Pure: knows neither FHIR nor HTTP.

Formats go by the Python type that a mapping returns. The same object judges what is read back, so that find, compare
and reconcile speak one language.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Final, Literal
from zoneinfo import ZoneInfo

from worker.errors import Unmappable
from worker.legacy.file import is_file

Scalar = str | int | bool | Decimal | date | datetime | time | timedelta | None
"""What a mapping may return for one field, besides links, lists and nested objects of these."""

Constant = Scalar | Sequence["Constant"] | Mapping[str, "Constant"]
"""What a declaration may send besides mapped fields."""

WireValue = str | int | bool | Decimal | None | Sequence["WireValue"] | Mapping[str, "WireValue"]
"""A value as the body holds it."""


class Omit(Enum):
    """The type of OMIT."""

    OMIT = "omit"


OMIT: Final = Omit.OMIT
"""A cleared field is left out of the body: for APIs whose update erases what is missing."""

Clear = Literal[""] | Omit | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How dates, times, durations, numbers, booleans and *nothing* are written.

    `date`, `datetime` and `time` are strftime formats; a datetime is written in the API's own zone. `clear` is what an
    update sends where Medplum has no value: None (a JSON null), "" or OMIT. A create leaves such fields out.
    """

    date: str = "%Y-%m-%d"
    datetime: str = "%Y-%m-%dT%H:%M:%S"
    time: str = "%H:%M:%S"
    duration: Literal["seconds", "minutes"] = "seconds"
    numbers: Literal["numbers", "text"] = "numbers"
    boolean: tuple[bool | int | str, bool | int | str] = (True, False)
    clear: Clear = None

    def write(self, value: Scalar, zone: ZoneInfo) -> str | int | bool | Decimal | None:  # noqa: PLR0911 — one line a type
        """Write one value.

        Raises:
            Unmappable: the value has no exact form: a float, a datetime without zone, part of a minute, another type.
        """
        match value:
            case None | str():
                return value
            case bool():
                return self.boolean[0] if value else self.boolean[1]
            case int() | Decimal():
                return self._number(value)
            case datetime():
                if value.utcoffset() is None:
                    raise Unmappable("a datetime without its zone: take it from ctx.datetime")
                return _formatted(value.astimezone(zone), self.datetime)
            case date():
                return _formatted(value, self.date)
            case time():
                return value.strftime(self.time)
            case timedelta():
                return self._number(_whole(value, timedelta(**{self.duration: 1}), self.duration))
            case _:
                raise Unmappable(f"a {type(value).__name__} cannot be written: return text, a number, a date or a list")

    def constant(self, value: object, zone: ZoneInfo) -> object:
        """Write what a declaration sends besides mapped fields, however deep it is."""
        if isinstance(value, Mapping):
            return {name: self.constant(entry, zone) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.constant(entry, zone) for entry in value]
        return self.write(value, zone)  # type: ignore[arg-type]  # any other type is refused there

    def key(self, value: object) -> object:
        """Write a linked record's key: a number becomes text only where all numbers do."""
        is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
        return str(value) if is_number and self.numbers == "text" else value

    def same(self, sent: object, held: object, zone: ZoneInfo) -> bool:
        """Tell whether what was sent and what the API holds say the same, as `same` does and by these formats besides.

        A boolean equals the word for it, and two texts that are one date or time are equal: APIs give back
        "2024-02-01T00:00:00" for "02/01/2024".
        """

        def alike(one: object, other: object) -> bool:
            if isinstance(one, bool) is not isinstance(other, bool):
                one, other = self._boolean(one), self._boolean(other)
            if one == other or not (isinstance(one, str) and isinstance(other, str)):
                return bool(one == other)
            if one.isdecimal() and other.isdecimal():  # two numbers that one format may read alike
                return False
            forms = (self.datetime, self.date, self.time)
            moment = _moment(one, forms, zone)
            return moment is not None and moment == _moment(other, forms, zone)

        return same(sent, held, alike)

    def _boolean(self, value: object) -> object:
        words = (*self.boolean, str(self.boolean[0]), str(self.boolean[1]))
        return value if isinstance(value, bool) or value not in words else value in words[::2]

    def _number(self, value: int | Decimal) -> int | Decimal | str:
        if isinstance(value, Decimal) and not value.is_finite():
            raise Unmappable("not a finite number")
        return value if self.numbers == "numbers" else f"{value:f}" if isinstance(value, Decimal) else str(value)


Moment = tuple[datetime, bool]
"""A date, or a date with a time, as wall clock; and whether it is a time alone."""


def _moment(text: str, forms: Sequence[str], zone: ZoneInfo) -> Moment | None:
    """Read a date or time by the first of these forms (with a date, date, time alone) that it has, else as ISO 8601."""
    for place, form in enumerate(forms):
        try:
            return datetime.strptime(text, form).replace(tzinfo=None), place == len(forms) - 1
        except ValueError:
            continue
    return _iso_moment(text, zone)


def _iso_moment(text: str, zone: ZoneInfo) -> Moment | None:
    """Read ISO 8601 as people write it: its basic form looks like any number, and 10 would be what 1000 is."""
    try:
        if text[4:5] == "-":
            found = datetime.fromisoformat(text)
            return (found.astimezone(zone) if found.tzinfo else found).replace(tzinfo=None), False
        if text[2:3] == ":":
            return datetime.combine(date(1900, 1, 1), time.fromisoformat(text)), True  # the day that strptime takes
    except (ValueError, OverflowError):
        pass
    return None


def _formatted(value: date, form: str) -> str:
    """Write a date; C's strftime leaves out the zeros of a year before 1000."""
    return value.strftime(form.replace("%Y", f"{value.year:04d}"))


def _whole(value: timedelta, unit: timedelta, name: str) -> int:
    count, rest = divmod(value, unit)
    if rest:
        raise Unmappable(f"not a whole number of {name}")
    return count


def _equal(one: object, other: object) -> bool:
    return bool(one == other)


def same(sent: object, held: object, alike: Callable[[object, object], bool] = _equal) -> bool:
    """Tell whether two wire values say the same.

    Nothing is None, "" or absent; a number equals its text; text is compared without the spaces around it; of an object
    only the sent names count, because the API may hold more. `alike` compares what is neither list nor object. The
    content of a file is not compared.
    """
    if is_file(sent):
        return True
    one, other = _plain(sent), _plain(held)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(same(value, other.get(name), alike) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*pair, alike) for pair in zip(one, other, strict=True))
    if isinstance(one, str) is not isinstance(other, str) and _equal(_numeric(one), _numeric(other)):
        return True
    return alike(one, other)


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value.strip() or None
    return list(value) if isinstance(value, tuple) else value


def _numeric(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return Decimal(value)
    except InvalidOperation:
        return value


def as_json(value: object, *, ordered: bool = False) -> str:
    """Write compact JSON in which a Decimal keeps its digits; `ordered` sorts the names: equal content, equal text."""
    match value:
        case Decimal():
            return f"{value:f}"
        case Mapping():
            items = sorted(value.items()) if ordered else value.items()
            return "{" + ",".join(f"{json.dumps(str(k))}:{as_json(v, ordered=ordered)}" for k, v in items) + "}"
        case list() | tuple():
            return "[" + ",".join(as_json(entry, ordered=ordered) for entry in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)
