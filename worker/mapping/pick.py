"""Choosing one entry out of FHIR's lists. Every function takes the attribute as it is, None included.

An entry with a period counts only while it lasts: at `at`, which a mapping takes from `ctx.updated` so that the same
version always maps alike. Without `at`, an entry that has an end is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TypeVar

from worker.errors import Unmappable
from worker.mapping.r4 import (
    Address,
    CodeableConcept,
    Coding,
    ContactPoint,
    Element,
    HumanName,
    Identifier,
    Period,
    Reference,
    Resource,
)
from worker.mapping.text import join

Used = TypeVar("Used", HumanName, Address)

_NAME_USES = ("official", "usual", "")
_ADDRESS_USES = ("home", "", "work")


def name(names: Sequence[HumanName] | None, *uses: str, at: datetime | None = None) -> HumanName | None:
    """Return the name of the first of these uses that there is; "" is a name without a use.

    Without uses: official, usual, one without a use. Never a maiden, old or nickname that was not asked for.
    """
    return _by_use(names, uses or _NAME_USES, at)


def full_name(chosen: HumanName | None) -> str | None:
    """Return a name as one line: its text, or prefix, given names, family and suffix."""
    if chosen is None:
        return None
    return join(chosen.text) or join(chosen.prefix, chosen.given, chosen.family, chosen.suffix)


def address(addresses: Sequence[Address] | None, *uses: str, at: datetime | None = None) -> Address | None:
    """Return the address of the first of these uses that there is; "" is one without a use.

    Without uses: home, one without a use, work. Never an old or a billing address that was not asked for.
    """
    return _by_use(addresses, uses or _ADDRESS_USES, at)


def telecom(
    contacts: Sequence[ContactPoint] | None, system: str, use: str = "", *, at: datetime | None = None
) -> str | None:
    """Return the value of a contact point, the one with the lowest rank first; use "" takes any that is not old."""
    fitting = [
        entry
        for entry in contacts or []
        if entry.system == system and entry.value and _lasts(entry.period, at)
        if (entry.use == use if use else entry.use != "old")
    ]
    return min(fitting, key=lambda entry: entry.rank or _NO_RANK).value if fitting else None


_NO_RANK = 2**31


def identifier(
    identifiers: Sequence[Identifier] | None,
    *,
    type: str = "",
    system: str = "",
    at: datetime | None = None,
) -> str | None:
    """Return the value of the first identifier of this type code, this system, or both; none that is old."""
    for entry in identifiers or []:
        fits = (not system or entry.system == system) and (not type or has_code([entry.type], type))
        if fits and entry.value and entry.use != "old" and _lasts(entry.period, at):
            return entry.value
    return None


def coding(concept: CodeableConcept | None, *systems: str) -> Coding | None:
    """Return the coding of the first of these systems that there is, one that a user selected before others.

    Without systems: the first coding.
    """
    codings = [entry for entry in (concept.coding if concept else None) or [] if entry.code]
    codings.sort(key=lambda entry: not entry.userSelected)
    if not systems:
        return codings[0] if codings else None
    return next((entry for system in systems for entry in codings if entry.system == system), None)


def code(concept: CodeableConcept | None, *systems: str) -> str | None:
    """Return the code of `coding(concept, *systems)`."""
    chosen = coding(concept, *systems)
    return chosen.code if chosen else None


def text(concept: CodeableConcept | None, *systems: str) -> str | None:
    """Return a concept in words: its text, else a display, that of the first of these systems before any other."""
    if concept is None:
        return None
    in_order = [*systems, *(entry.system for entry in concept.coding or [])]
    displays = (entry.display for system in in_order for entry in concept.coding or [] if entry.system == system)
    return join(concept.text) or next((word for display in displays if (word := join(display))), None)


def has_code(concepts: Iterable[CodeableConcept | None] | None, *codes: str) -> bool:
    """Tell whether one of the concepts has one of the codes, in whatever system."""
    return any(entry.code in codes for concept in concepts or [] if concept for entry in concept.coding or [])


def reference(references: Sequence[Reference] | None, kind: type[Resource]) -> Reference | None:
    """Return the first reference to a resource of this type; absolute ones count as well."""
    wanted = kind.get_resource_type()
    for entry in references or []:
        parts = (entry.reference or "").partition("/_history/")[0].split("/")
        if (entry.type or "") == wanted or (len(parts) > 1 and parts[-2] == wanted):
            return entry
    return None


def references_to(references: Sequence[Reference] | None, *kinds: type[Resource]) -> list[Reference]:
    """Return all references to resources of these types, in their order."""
    return [entry for entry in references or [] if any(reference([entry], kind) for kind in kinds)]


def extension_code(resource: Element | Resource | None, url: str, *inner: str) -> str | None:
    """Return the code in an extension, in the extension within it that each further URL names; None if there is none.

    A code is whatever the extension's value has of a code, a coding's code, a concept's first code or a string.
    """
    found: Element | Resource | None = resource
    for wanted in (url, *inner):
        inside = getattr(found, "extension", None) or []
        found = next((each for each in inside if each.url == wanted), None)
    if found is None:
        return None
    coded = getattr(found, "valueCoding", None) or coding(getattr(found, "valueCodeableConcept", None))
    said = coded.code if coded else getattr(found, "valueCode", None) or getattr(found, "valueString", None)
    return said or None


def _by_use(entries: Sequence[Used] | None, uses: Sequence[str], at: datetime | None) -> Used | None:
    lasting = [entry for entry in entries or [] if _lasts(entry.period, at)]
    return next((entry for use in uses for entry in lasting if (entry.use or "") == use), None)


def _lasts(period: Period | None, at: datetime | None) -> bool:
    if period is None:
        return True
    if at is None:
        return period.end is None
    begun = period.start is None or _bounds(period.start)[0] <= at
    return begun and (period.end is None or at < _bounds(period.end)[1])


def _bounds(value: date | str) -> tuple[datetime, datetime]:
    """Return when a FHIR date or time begins and when it is over: a day, month or year is its whole length."""
    start = value if isinstance(value, datetime) else datetime.combine(_first_day(value), time(), UTC)
    try:
        after = _after(value, start)
    except (ValueError, OverflowError):  # 9999-12-31: for ever, in the words of many systems
        after = datetime.max.replace(tzinfo=UTC)
    return start, after


def _first_day(value: date | str) -> date:
    if isinstance(value, date):
        return value
    year, _, month = value.partition("-")
    try:
        return date(int(year), int(month or 1), 1)
    except ValueError:
        pass
    raise Unmappable("a period that is not of dates")


def _after(value: date | str, start: datetime) -> datetime:
    if isinstance(value, str):
        return start.replace(year=start.year + 1) if "-" not in value else (start + timedelta(days=31)).replace(day=1)
    return start + (timedelta(seconds=1) if isinstance(value, datetime) else timedelta(days=1))
