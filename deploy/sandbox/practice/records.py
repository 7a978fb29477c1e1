"""What the practice keeps, and when two of its records say the same. Pure: it knows neither requests nor SQL."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from deploy.sandbox.witness.store import Habits, Record


class Kind(StrEnum):
    """What the practice keeps."""

    PROVIDER = "provider"
    PATIENT = "patient"
    APPOINTMENT = "appointment"
    DIAGNOSIS = "diagnosis"
    ALLERGY = "allergy"


SECOND_KEYS: Mapping[str, tuple[str, str]] = {
    Kind.PROVIDER: ("code", "DR"),
    Kind.PATIENT: ("chart_no", "CH"),
    Kind.APPOINTMENT: ("booking", "BK"),
    Kind.DIAGNOSIS: ("entry", "DX"),
    Kind.ALLERGY: ("entry", "AL"),
}
"""The name of each kind's other key, and how its text begins."""

# Two records are the same if all of these are; providers and patients by the key of others alone.
_SAME: Mapping[str, tuple[str, ...]] = {
    Kind.APPOINTMENT: ("patient_id", "provider_id", "starts"),
    Kind.DIAGNOSIS: ("patient_id", "description", "icd10", "noted_on"),
    Kind.ALLERGY: ("patient_id", "substance", "noted_on"),
}


def _status(record: Record) -> str:
    if record.kind == Kind.APPOINTMENT:
        return str(record.data["status"])
    return "inactive" if record.data.get("active") == "0" else "active"


def _external_id(record: Record) -> object:
    return record.data.get("reference" if record.kind == Kind.APPOINTMENT else "external_id") or None


def _sameness(record: Record) -> tuple[object, ...]:
    if names := _SAME.get(record.kind):
        return (record.kind, *(record.data[name] for name in names))
    external_id = _external_id(record)
    return (record.kind, external_id) if external_id else (record.kind, None, record.key)


HABITS = Habits(
    first_keys={
        Kind.PROVIDER: 12,
        Kind.PATIENT: 310_001,
        Kind.APPOINTMENT: 9_000_001,
        Kind.DIAGNOSIS: 500_001,
        Kind.ALLERGY: 700_001,
    },
    status=_status,
    external_id=_external_id,
    sameness=_sameness,
    gone=("inactive", "cancelled"),
    indexed=("chart_no", "code", "booking", "entry", "external_id", "dob", "npi", "patient_id"),
    folded=("last_name",),
)
