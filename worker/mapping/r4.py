"""The R4 models that mappings are typed with. Medplum speaks R4; the default of fhir.resources is R5."""

from fhir.resources.R4B.address import Address
from fhir.resources.R4B.codeableconcept import CodeableConcept
from fhir.resources.R4B.coding import Coding
from fhir.resources.R4B.condition import Condition
from fhir.resources.R4B.contactpoint import ContactPoint
from fhir.resources.R4B.humanname import HumanName
from fhir.resources.R4B.identifier import Identifier
from fhir.resources.R4B.patient import Patient
from fhir.resources.R4B.period import Period
from fhir.resources.R4B.practitioner import Practitioner
from fhir.resources.R4B.reference import Reference
from fhir.resources.R4B.resource import Resource

__all__ = [
    "Address",
    "CodeableConcept",
    "Coding",
    "Condition",
    "ContactPoint",
    "HumanName",
    "Identifier",
    "Patient",
    "Period",
    "Practitioner",
    "Reference",
    "Resource",
]
