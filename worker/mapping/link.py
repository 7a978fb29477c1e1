"""A reference to another resource as a value of a mapping: the engine puts the legacy record's key there, or waits.

Pure. It never looks anything up: which reference is meant, and whether it can be one at all, is all that it says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.errors import Unmappable

if TYPE_CHECKING:
    from fhir.resources.R4B.reference import Reference

_RELATIVE = re.compile(r"([A-Z][A-Za-z]*/(?!\.+(?:/|$))[A-Za-z0-9.-]{1,64})(/_history/[A-Za-z0-9.-]{1,64})?")


@dataclass(frozen=True, slots=True)
class Link:
    """The legacy record of another resource. Without a key it is a parent: it fills paths and never a body."""

    reference: str
    key: str = ""


def link(reference: Reference | None, key: str = "") -> Link | None:
    """Refer to the legacy record of another resource.

    Args:
        reference: as the model holds it; None stays None. A version in it is dropped.
        key: which of the record's keys is the value; "" makes it a parent.

    Raises:
        Unmappable: the reference is contained, logical or conditional, or no reference at all
            (https://hl7.org/fhir/R4/references.html). An absolute one is judged by the engine, which knows our Medplum.
    """
    if reference is None:
        return None
    text = reference.reference
    if not text:
        raise Unmappable("a logical reference (an identifier or a display alone) has no legacy record")
    if text.startswith("#"):
        raise Unmappable("a contained resource has no legacy record of its own")
    if text.startswith(("http://", "https://")):
        return Link(text, key)
    return Link(relative(text), key)


def relative(text: str) -> str:
    """Return "Type/id" without a version. Raises Unmappable for anything else, a conditional reference or a URN."""
    parts = _RELATIVE.fullmatch(text)
    if parts is None:
        raise Unmappable("a reference that is not like Type/id")
    return parts[1]
