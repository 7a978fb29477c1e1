"""The R4 models that mappings are typed with. Medplum speaks R4; the default of fhir.resources is R5.

Each is imported when it is first named: all of them together cost half a second and 10 MB.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fhir.resources.R4B.address import Address
    from fhir.resources.R4B.age import Age
    from fhir.resources.R4B.allergyintolerance import AllergyIntolerance
    from fhir.resources.R4B.annotation import Annotation
    from fhir.resources.R4B.appointment import Appointment
    from fhir.resources.R4B.codeableconcept import CodeableConcept
    from fhir.resources.R4B.coding import Coding
    from fhir.resources.R4B.communication import Communication
    from fhir.resources.R4B.composition import Composition
    from fhir.resources.R4B.condition import Condition
    from fhir.resources.R4B.contactpoint import ContactPoint
    from fhir.resources.R4B.coverage import Coverage
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport
    from fhir.resources.R4B.documentreference import DocumentReference
    from fhir.resources.R4B.dosage import Dosage
    from fhir.resources.R4B.element import Element
    from fhir.resources.R4B.encounter import Encounter
    from fhir.resources.R4B.extension import Extension
    from fhir.resources.R4B.healthcareservice import HealthcareService
    from fhir.resources.R4B.humanname import HumanName
    from fhir.resources.R4B.identifier import Identifier
    from fhir.resources.R4B.immunization import Immunization
    from fhir.resources.R4B.location import Location
    from fhir.resources.R4B.medication import Medication
    from fhir.resources.R4B.medicationrequest import MedicationRequest
    from fhir.resources.R4B.observation import Observation
    from fhir.resources.R4B.organization import Organization
    from fhir.resources.R4B.patient import Patient
    from fhir.resources.R4B.period import Period
    from fhir.resources.R4B.practitioner import Practitioner
    from fhir.resources.R4B.practitionerrole import PractitionerRole
    from fhir.resources.R4B.procedure import Procedure
    from fhir.resources.R4B.quantity import Quantity
    from fhir.resources.R4B.reference import Reference
    from fhir.resources.R4B.relatedperson import RelatedPerson
    from fhir.resources.R4B.resource import Resource
    from fhir.resources.R4B.schedule import Schedule
    from fhir.resources.R4B.servicerequest import ServiceRequest
    from fhir.resources.R4B.slot import Slot
    from fhir.resources.R4B.task import Task

__all__ = [
    "Address",
    "Age",
    "AllergyIntolerance",
    "Annotation",
    "Appointment",
    "CodeableConcept",
    "Coding",
    "Communication",
    "Composition",
    "Condition",
    "ContactPoint",
    "Coverage",
    "DiagnosticReport",
    "DocumentReference",
    "Dosage",
    "Element",
    "Encounter",
    "Extension",
    "HealthcareService",
    "HumanName",
    "Identifier",
    "Immunization",
    "Location",
    "Medication",
    "MedicationRequest",
    "Observation",
    "Organization",
    "Patient",
    "Period",
    "Practitioner",
    "PractitionerRole",
    "Procedure",
    "Quantity",
    "Reference",
    "RelatedPerson",
    "Resource",
    "Schedule",
    "ServiceRequest",
    "Slot",
    "Task",
]


if not TYPE_CHECKING:  # a name that is not there is to be a type error

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"fhir.resources.R4B.{name.lower()}"), name)
