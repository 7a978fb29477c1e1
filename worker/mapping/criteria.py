"""Which criteria of a Subscription ever fire. Pure.

Medplum takes any criteria and matches it in memory against the new version alone: a parameter that it does not know
there, a chained one or `_author` never matches, and the Subscription stays silent without an error. So only what is
known to fire is let through; what is left out here belongs into the mapping, as a `Skip`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final
from urllib.parse import parse_qsl

__all__ = ["never_fires"]

FIRES_FOR_ALL: Final = frozenset({"_tag", "_id"})
FIRES_BY_MEMBER: Final = frozenset(
    {"identifier", "status", "active", "gender", "category", "code", "type", "intent", "subject", "encounter"}
)
"""Parameters that fire where the type has a member of the same name."""

MODIFIERS: Final = frozenset({"", "not"})


def never_fires(criteria: str) -> str | None:
    """Say why a Subscription with this criteria would never fire, or not be known to; None if it fires."""
    name, _, query = criteria.partition("?")
    members = _members(name)
    if members is None:
        return f'"{name}" is not a resource type of FHIR R4'
    for parameter, value in parse_qsl(query, keep_blank_values=True):
        why = _parameter(parameter, members)
        if why is not None:
            return f'"{parameter}" {why}: leave it out, and return a Skip in the mapping'
        if not value:
            return f'"{parameter}" has no value'
    return None


def _members(name: str) -> Container[str] | None:
    from fhir.resources.R4B import get_fhir_model_class
    from fhir.resources.R4B.resource import Resource

    try:
        found = get_fhir_model_class(name)
    except (KeyError, ValueError):
        return None
    is_one = issubclass(found, Resource) and found is not Resource  # data types have models as well
    return found.model_fields if is_one else None


def _parameter(parameter: str, members: Container[str]) -> str | None:
    code, _, modifier = parameter.partition(":")
    if "." in parameter or code == "_has":
        return "is chained, which Medplum accepts and never matches"
    if code == "_author":
        return "is accepted by Medplum and never matches"
    if modifier not in MODIFIERS:
        return f'has the modifier ":{modifier}", which is not known to match'
    if code in FIRES_FOR_ALL or (code in FIRES_BY_MEMBER and code in members):
        return None
    return "is not known to match: Medplum accepts unknown parameters and never fires"
