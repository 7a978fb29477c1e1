"""What the clinic accepts in each field, and the words in which it refuses: they name values, as the real ones do.

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

# The post's list: states, the district, territories, armed forces.
_STATES = (
    "AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA"
    " RI SC SD TN TX UT VT VA WA WV WI WY DC AS GU MP PR VI AA AE AP"
)
STATES = frozenset(_STATES.split())


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a form; `blank_clears` is the column that is emptied by "" and deaf to null."""

    accepts: Check
    complaint: str
    required: bool = False
    blank_clears: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """The columns of one kind of record and the names that are the clinic's own, ignored when they come along."""

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


def day(*, required: bool = False) -> Field:
    return Field(_is_day, "is not a date like MM/DD/YYYY", required)


def _is_day(value: object) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"\d\d/\d\d/\d{4}", value, re.ASCII):
        return False
    try:
        datetime.strptime(value, "%m/%d/%Y")
    except ValueError:
        return False
    return True


def is_key(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST_KEY


def _is_email(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^@\s]{1,60}@[^@\s]{1,39}", value) is not None


_PHONE = pattern(r"\d{3}-\d{3}-\d{4}", "###-###-####")

PROVIDER = Form(
    {
        "last_name": text(60, required=True),
        "first_name": text(60, required=True),
        "npi": pattern(r"\d{10}", "##########"),
        "title": text(20),
        "external_ref": text(36),
    },
    own=frozenset({"id", "status"}),
    defaults={"status": "active"},
)

PATIENT = Form(
    {
        "last_name": text(60, required=True),
        "first_name": text(60),
        "middle_name": text(60),
        "birth_date": day(),
        "sex": one_of("F", "M", "O", "U", required=True),
        "phone_home": _PHONE,
        "phone_mobile": _PHONE,
        "email": Field(_is_email, "is not an e-mail address", blank_clears=True),
        "street": text(80),
        "city": text(40),
        "state": Field(lambda value: value in STATES if isinstance(value, str) else False, "is not a state"),
        "zip": pattern(r"\d{5}(-\d{4})?", "#####-####"),
        "marital": one_of("SNG", "MAR", "DIV", "WDW", "SEP", "UNK"),
        "provider_id": Field(is_key, "is not the id of a provider"),
        "deceased_on": day(),
        "external_id": text(36),
    },
    own=frozenset({"number", "uuid", "status"}),
    defaults={"status": "active"},
)

PROBLEM = Form(
    {
        "title": text(200, required=True),
        "icd10": pattern(r"ICD10:[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?", "ICD10:E11.9"),
        "onset": day(required=True),
        "ended": day(),
        "status": one_of("active", "ended"),
    },
    own=frozenset({"id", "patient_number"}),
    defaults={"status": "active"},
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
    """Say whom a record is about, the way the clinic's error messages do."""
    return f"{fields.get('last_name')}, {fields.get('first_name')}"
