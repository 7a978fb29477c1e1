"""How a form is filled in, and the words in which it is refused: they name values, as the real ones do.

Pure: a form, a body and the record as it is go in, the new fields or complaints come out. It never stores anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

Fields = dict[str, object]
Check = Callable[[object], bool]

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LARGEST_KEY = 2**53


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a form; `blank_clears` is the column that is emptied by "" and deaf to null."""

    accepts: Check
    complaint: str
    required: bool = False
    blank_clears: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """The columns of one kind of record and the names that are the system's own, ignored when they come along."""

    fields: Mapping[str, Field]
    own: frozenset[str]
    defaults: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Filled:
    """A body laid over a record: its fields as they will be, and what is wrong with the body, by field."""

    fields: Fields
    complaints: dict[str, str]


def text(longest: int, *, required: bool = False) -> Field:
    def accepts(value: object) -> bool:
        return isinstance(value, str) and 0 < len(value) <= longest and not _CONTROL.search(value)

    return Field(accepts, f"is not a text of 1 to {longest} characters", required)


def pattern(shape: str, like: str) -> Field:
    compiled = re.compile(shape, re.ASCII)
    return Field(lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None, f"is not like {like}")


def one_of(*codes: str, required: bool = False) -> Field:
    return Field(lambda value: isinstance(value, str) and value in codes, f"is not one of {', '.join(codes)}", required)


def moment(shape: str, format_: str, like: str, *, required: bool = False) -> Field:
    """A day or a wall-clock time, in one form only; strptime alone would take a month without its zero."""
    compiled = re.compile(shape, re.ASCII)

    def accepts(value: object) -> bool:
        return isinstance(value, str) and compiled.fullmatch(value) is not None and _exists(value, format_)

    return Field(accepts, f"is not {like}", required)


def _exists(value: str, format_: str) -> bool:
    try:
        datetime.strptime(value, format_)
    except ValueError:
        return False
    return True


def is_key(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST_KEY


def email() -> Field:
    shape = re.compile(r"[^@\s]{1,60}@[^@\s]{1,39}")
    return Field(
        lambda value: isinstance(value, str) and shape.fullmatch(value) is not None, "is not an e-mail address"
    )


def fill_new(form: Form, body: Mapping[str, object]) -> Filled:
    """Lay a body over an empty record; a required field that is missing or null is a complaint."""
    empty = dict.fromkeys(form.fields) | dict(form.defaults)
    sent = {name: value for name, value in body.items() if value is not None}
    filled = fill(form, sent, empty)
    missing = {name: "is required" for name, field in form.fields.items() if field.required and name not in sent}
    return Filled(filled.fields, filled.complaints | missing)


def fill(form: Form, body: Mapping[str, object], current: Mapping[str, object]) -> Filled:
    """Lay a body over a record: what is sent changes, what is not stays."""
    fields, complaints = dict(current), dict[str, str]()
    for name, value in body.items():
        field = form.fields.get(name)
        if field is None:
            if name not in form.own:
                complaints[name] = f"{value!r} is sent for a field that does not exist"
        elif complaint := _complaint(field, value):
            complaints[name] = complaint
        else:
            fields[name] = _stored(form, name, value, current)
    return Filled(fields, complaints)


def _complaint(field: Field, value: object) -> str | None:
    if value is None:
        return "is required" if field.required else None
    if field.accepts(value) or (field.blank_clears and value == ""):
        return None
    return f"{value!r} {field.complaint}"


def _stored(form: Form, name: str, value: object, current: Mapping[str, object]) -> object:
    if value is None:
        return current[name] if form.fields[name].blank_clears else form.defaults.get(name)
    return None if value == "" else value


def name_of(fields: Mapping[str, object]) -> str:
    """Say whom a record is about, the way error messages do."""
    return f"{fields.get('last_name')}, {fields.get('first_name')}"
