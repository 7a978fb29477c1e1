"""What the practice accepts in each field: texts only, lists and objects as JSON inside a text.

Pure. What a form is and how it refuses is the witness's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploy.sandbox.witness import forms
from deploy.sandbox.witness.forms import Field, Fields, Filled, Form, email, moment, one_of, pattern, text

_LEAST_S, _MOST_S = 300, 86_400
_YES_OR_NO = one_of("0", "1")
_ID = pattern(r"[1-9]\d{0,14}", "an id")
_NUMBER = pattern(r"\d{10}", "##########").accepts
_SECONDS = pattern(r"\d{1,6}", "seconds").accepts
_ADDRESS: Mapping[str, Field] = {
    "street": text(80),
    "city": text(40),
    "state": pattern("[A-Z]{2}", "##"),
    "zip": pattern(r"\d{5}(-\d{4})?", "#####-####"),
}


def _day(*, required: bool = False) -> Field:
    return moment(r"\d{4}-\d\d-\d\d", "%Y-%m-%d", "a date like YYYY-MM-DD", required=required)


def _clock(*, required: bool = False) -> Field:
    shape = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    return moment(shape, "%Y-%m-%d %H:%M:%S", "a time like YYYY-MM-DD HH:MM:SS", required=required)


def _is_duration(value: object) -> bool:
    return _SECONDS(value) and _LEAST_S <= int(str(value)) <= _MOST_S


def _are_phones(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(phone, dict)
        and phone.keys() == {"type", "number"}
        and phone["type"] in ("home", "mobile", "work")
        and _NUMBER(phone["number"])
        for phone in value
    )


def _is_address(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in _ADDRESS and (part in (None, "") or _ADDRESS[name].accepts(part)) for name, part in value.items()
    )


_INSIDE = ("phones", "address")  # JSON in a text

PROVIDER = Form(
    {
        "last_name": text(40, required=True),
        "first_name": text(40, required=True),
        "npi": pattern(r"\d{10}", "##########"),
        "specialty": text(40),
        "external_id": text(36),
    },
    own=frozenset({"id", "code", "active"}),
    defaults={"active": "1"},
)

PATIENT = Form(
    {
        "last_name": text(40, required=True),
        "first_name": text(40),
        "middle_name": text(40),
        "dob": _day(),
        "gender": one_of("female", "male", "other", "unknown", required=True),
        "phones": Field(_are_phones, "is not a list of phones"),
        "email": email(),
        "address": Field(_is_address, "is not an address"),
        "died_at": _clock(),
        "pcp_id": _ID,
        "sms_ok": _YES_OR_NO,
        "external_id": text(36),
        "remarks": text(500),
    },
    own=frozenset({"id", "chart_no", "active"}),
    defaults={"active": "1", "sms_ok": "0"},
)

APPOINTMENT = Form(
    {
        "patient_id": Field(_ID.accepts, _ID.complaint, required=True),
        "provider_id": Field(_ID.accepts, _ID.complaint, required=True),
        "starts": _clock(required=True),
        "duration": Field(_is_duration, f"is not {_LEAST_S} to {_MOST_S} seconds", required=True),
        "reason": text(200),
        "reference": text(20),
    },
    own=frozenset({"id", "booking", "status", "cancel_reason"}),
    defaults={"status": "booked"},
)

DIAGNOSIS = Form(
    {
        "description": text(200, required=True),
        "icd10": pattern(r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?", "E11.9"),
        "noted_on": _day(required=True),
        "resolved_on": _day(),
        "chronic": _YES_OR_NO,
    },
    own=frozenset({"id", "entry", "patient_id", "chart_no"}),
    defaults={"chronic": "0"},
)

ALLERGY = Form(
    {
        "substance": text(200, required=True),
        "reaction": text(200),
        "severity": one_of("mild", "moderate", "severe"),
        "noted_on": _day(),
    },
    own=frozenset({"id", "entry", "patient_id", "chart_no"}),
    defaults={},
)


def fill_new(form: Form, sent: Mapping[str, str]) -> Filled:
    """Lay a body over an empty record."""
    return _as_texts(forms.fill_new(form, _understood(form, sent)))


def change(form: Form, sent: Mapping[str, str], current: Fields) -> Filled:
    """Lay a body over a record: what is not sent stays."""
    return _as_texts(forms.fill(form, _understood(form, sent), current))


def replace(form: Form, sent: Mapping[str, str], current: Fields) -> Filled:
    """Put a body in a record's place: what is not sent is emptied."""
    return _as_texts(forms.fill(form, dict.fromkeys(form.fields) | _understood(form, sent), current))


def _understood(form: Form, sent: Mapping[str, str]) -> Fields:
    """Leave out what the form does not know, and read what is nothing or JSON."""
    return {
        name: None if value == "" else _inside(value) if name in _INSIDE else value
        for name, value in sent.items()
        if name in form.fields
    }


def _inside(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _as_texts(filled: Filled) -> Filled:
    return Filled({name: _blank(value) for name, value in filled.fields.items()}, filled.complaints)


def _blank(value: object) -> object:
    """Write nothing as "", inside an address as well."""
    if isinstance(value, dict):
        return {name: _blank(part) for name, part in value.items()}
    return "" if value is None else value
