"""A test resource of a type: as little as FHIR asks for, about nobody, and marked as ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from worker.errors import BadResource
from worker.medplum.marked import CHECK, tag

__all__ = ["sample"]

_SAID: Final = "Test of the reverse sync: no patient"
_NOBODY: Final = {"display": _SAID}
_TEXT: Final = {"text": _SAID}
_CLASS: Final = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
_TIME: Final = "2001-01-01T00:00:00Z"
_WRONG: Final = "entered-in-error"
_LEAST: Final[Mapping[str, Mapping[str, Any]]] = {
    "AllergyIntolerance": {"patient": _NOBODY, "code": _TEXT},
    "Appointment": {"status": _WRONG, "participant": [{"actor": _NOBODY, "status": "declined"}]},
    "CarePlan": {"status": _WRONG, "intent": "plan", "subject": _NOBODY},
    "Condition": {"subject": _NOBODY, "code": _TEXT},
    "Coverage": {"status": _WRONG, "beneficiary": _NOBODY, "payor": [_NOBODY]},
    "DiagnosticReport": {"status": _WRONG, "code": _TEXT},
    "DocumentReference": {"status": _WRONG, "content": [{"attachment": {"title": _SAID}}]},
    "Encounter": {"status": _WRONG, "class": _CLASS},
    "Immunization": {"status": _WRONG, "vaccineCode": _TEXT, "patient": _NOBODY, "occurrenceDateTime": _TIME},
    "MedicationRequest": {
        "status": _WRONG,
        "intent": "proposal",
        "medicationCodeableConcept": _TEXT,
        "subject": _NOBODY,
    },
    "MedicationStatement": {"status": _WRONG, "medicationCodeableConcept": _TEXT, "subject": _NOBODY},
    "Observation": {"status": _WRONG, "code": _TEXT},
    "Organization": {"active": False, "name": _SAID},
    "Patient": {"active": False, "name": [_TEXT]},
    "Practitioner": {"active": False, "name": [_TEXT]},
    "PractitionerRole": {"active": False},
    "Procedure": {"status": _WRONG, "subject": _NOBODY},
    "RelatedPerson": {"active": False, "patient": _NOBODY},
    "ServiceRequest": {"status": _WRONG, "intent": "proposal", "subject": _NOBODY},
    "Task": {"status": _WRONG, "intent": "proposal"},
}


def sample(resource_type: str) -> dict[str, Any]:
    """Make one.

    Raises:
        BadResource: what the type needs at least is not known here.
    """
    made = {
        "resourceType": resource_type,
        "meta": {"tag": [tag(CHECK)]},
        **_LEAST.get(resource_type, {}),
    }
    if resource_type not in _LEAST and not _is_valid(made):
        raise BadResource(f"what a {resource_type} needs at least is not known here: choose another type with --type")
    return made


def _is_valid(resource: Mapping[str, Any]) -> bool:
    import json

    from worker.errors import ReverseSyncError
    from worker.medplum.resource import model

    try:
        model(json.dumps(resource).encode())
    except ReverseSyncError:
        return False
    return True
