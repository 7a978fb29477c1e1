"""What the clinic accepts in each field. How a form is filled in is the witness's business."""

from __future__ import annotations

import math
from dataclasses import replace

from deploy.sandbox.witness.forms import Field, Form, email, is_key, moment, one_of, pattern, text

# The post's list: states, the district, territories, armed forces.
_STATES = (
    "AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA"
    " RI SC SD TN TX UT VT VA WA WV WI WY DC AS GU MP PR VI AA AE AP"
)
STATES = frozenset(_STATES.split())

_MOST_MINUTES = 1_440
_PHONE = pattern(r"\d{3}-\d{3}-\d{4}", "###-###-####")
_PROVIDER_ID = Field(is_key, "is not the id of a provider")


def _day(*, required: bool = False) -> Field:
    return moment(r"\d\d/\d\d/\d{4}", "%m/%d/%Y", "a date like MM/DD/YYYY", required=required)


def _clock(*, required: bool = False) -> Field:
    shape = r"\d\d/\d\d/\d{4} (0[1-9]|1[0-2]):\d\d [AP]M"
    return moment(shape, "%m/%d/%Y %I:%M %p", "a time like MM/DD/YYYY hh:mm AM", required=required)


def _number(least: float, most: float, *, whole: bool = False, required: bool = False) -> Field:
    def accepts(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        return math.isfinite(value) and least <= value <= most

    kind = "a whole number" if whole else "a number"
    return Field(accepts, f"is not {kind} from {least} to {most}", required)


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
        "birth_date": _day(),
        "sex": one_of("F", "M", "O", "U", required=True),
        "phone_home": _PHONE,
        "phone_mobile": _PHONE,
        "email": replace(email(), blank_clears=True),
        "street": text(80),
        "city": text(40),
        "state": Field(lambda value: value in STATES if isinstance(value, str) else False, "is not a state"),
        "zip": pattern(r"\d{5}(-\d{4})?", "#####-####"),
        "marital": one_of("SNG", "MAR", "DIV", "WDW", "SEP", "UNK"),
        "provider_id": _PROVIDER_ID,
        "deceased_on": _day(),
        "external_id": text(36),
    },
    own=frozenset({"number", "uuid", "status"}),
    defaults={"status": "active"},
)

PROBLEM = Form(
    {
        "title": text(200, required=True),
        "icd10": pattern(r"ICD10:[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?", "ICD10:E11.9"),
        "onset": _day(required=True),
        "ended": _day(),
        "status": one_of("active", "ended"),
    },
    own=frozenset({"id", "patient_number"}),
    defaults={"status": "active"},
)

VISIT = Form(
    {
        "started": _clock(required=True),
        "ended": _clock(),
        "kind": one_of("OFFICE", "PHONE", "VIDEO", "HOME", "HOSPITAL", required=True),
        "reason": text(200),
        "provider_id": _PROVIDER_ID,
        "status": one_of("open", "closed"),
        "external_id": text(36),
    },
    own=frozenset({"id", "patient_number"}),
    defaults={"status": "open"},
)

APPOINTMENT = Form(
    {
        "patient_number": Field(is_key, "is not the number of a patient", required=True),
        "provider_id": _PROVIDER_ID,
        "starts": _clock(required=True),
        "minutes": _number(1, _MOST_MINUTES, whole=True, required=True),
        "reason": text(200),
        "status": one_of("booked", "arrived", "noshow", "cancelled"),
        "external_id": text(36),
    },
    own=frozenset({"id"}),
    defaults={"status": "booked"},
)

PRESCRIPTION = Form(
    {
        "drug": text(200, required=True),
        "rxnorm": pattern(r"\d{1,8}", "########"),
        "sig": text(200),
        "quantity": _number(0, 100_000),
        "refills": _number(0, 99, whole=True),
        "written_on": _day(required=True),
        "provider_id": _PROVIDER_ID,
        "status": one_of("active", "ended"),
    },
    own=frozenset({"id", "patient_number"}),
    defaults={"status": "active"},
)

VITAL = Form(
    {
        "code": one_of("BP_SYS", "BP_DIA", "PULSE", "TEMP", "WEIGHT", "HEIGHT", "SPO2", required=True),
        "value": _number(0, 1_000, required=True),
        "unit": one_of("mmHg", "/min", "C", "F", "kg", "lb", "cm", "in", "%", required=True),
        "taken_at": _clock(required=True),
    },
    own=frozenset({"id", "patient_number"}),
    defaults={},
)
