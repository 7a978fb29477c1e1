"""What the clinic keeps, and when two of its records say the same. Pure: it knows neither requests nor SQL."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from deploy.sandbox.witness.store import Habits, Record


class Kind(StrEnum):
    """What the clinic keeps."""

    PROVIDER = "provider"
    PATIENT = "patient"
    PROBLEM = "problem"
    VISIT = "visit"
    APPOINTMENT = "appointment"
    PRESCRIPTION = "prescription"
    VITAL = "vital"


# Of the kinds that have no column for a key of others: two records are the same if all of these are.
_SAME: Mapping[str, tuple[str, ...]] = {
    Kind.PROBLEM: ("patient_number", "title", "icd10", "onset"),
    Kind.PRESCRIPTION: ("patient_number", "drug", "rxnorm", "written_on"),
    Kind.VITAL: ("patient_number", "code", "taken_at", "value"),
}


def _status(record: Record) -> str:
    return str(record.data.get("status", "active"))


def _external_id(record: Record) -> object:
    return record.data.get("external_ref" if record.kind == Kind.PROVIDER else "external_id")


def _sameness(record: Record) -> tuple[object, ...]:
    if names := _SAME.get(record.kind):
        return (record.kind, *(record.data[name] for name in names))
    external_id = _external_id(record)
    return (record.kind, external_id) if external_id else (record.kind, None, record.key)


HABITS = Habits(
    first_keys={**dict.fromkeys(Kind, 1), Kind.PATIENT: 4701},
    status=_status,
    external_id=_external_id,
    sameness=_sameness,
    gone=("inactive", "cancelled", "void"),
    indexed=("uuid", "external_id", "birth_date", "npi", "patient_number"),
    folded=("last_name",),
)
