"""What a notification says: headers and bytes to a hint. Pure. It believes nothing about content, order or deletes.

The headers are not signed and a Subscription's `channel.header` may replace or double them, so they are only heard
where the body does not speak. A complaint names what is wrong and never repeats a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from worker import strict_json
from worker.errors import BadResource
from worker.ledger.values import Hint

__all__ = ["Headers", "read"]

SUBSCRIPTION: Final = b"x-medplum-subscription"
INTERACTION: Final = b"x-medplum-interaction"
DELETED: Final = b"x-medplum-deleted-resource"
TRACE: Final = b"x-trace-id"

_INTERACTIONS: Final = frozenset({"create", "update", "delete"})
_TYPE: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID: Final = re.compile(r"(?!\.+\Z)[A-Za-z0-9\-.]{1,64}")  # FHIR's id, less what a path would take for a folder
_AUTHOR: Final = re.compile(r"[A-Za-z]{1,64}(/[A-Za-z0-9\-.]{1,64})?")  # "system" is one too
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


class Headers:
    """A request's headers as ASGI has them: pairs, names in lower case. A doubled one stays doubled."""

    __slots__ = ("_once", "_pairs")

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._pairs = tuple(pairs)
        once = dict(self._pairs)
        self._once = once if len(once) == len(self._pairs) else None  # nothing doubled: no need to search each time

    def all(self, name: bytes) -> Sequence[bytes]:
        """Return every value that the header has."""
        if self._once is None:
            return [value for key, value in self._pairs if key == name]
        value = self._once.get(name)
        return () if value is None else (value,)


def read(headers: Headers, body: bytes) -> Hint:
    """Read one verified notification; the hint carries the body as it came.

    Raises:
        BadResource: the body is not one FHIR resource, or header and body contradict each other.
    """
    resource = strict_json.loads(body)
    if not isinstance(resource, dict):
        raise BadResource("the body should be a JSON object")
    interaction, deleted = _interaction(headers), _deleted(headers)
    if resource:
        return _version(headers, body, resource, interaction, deleted)
    return _delete(headers, interaction, deleted)


def _version(
    headers: Headers, body: bytes, resource: dict[str, Any], interaction: str | None, deleted: str | None
) -> Hint:
    reference = _reference(resource)
    if deleted not in {None, reference}:
        raise BadResource("X-Medplum-Deleted-Resource names another resource than the body")
    if interaction == "delete" and deleted is None:
        raise BadResource("X-Medplum-Interaction says delete and the body is a resource")
    meta = resource.get("meta")
    if not isinstance(meta, dict):
        raise BadResource("meta is missing, or no object")
    return Hint(
        reference=reference,
        version_id=_matching(_ID, meta.get("versionId"), "meta.versionId"),
        last_updated=_instant(meta.get("lastUpdated")),
        interaction="create" if interaction == "create" else "update",
        author=_author(meta.get("author")),
        trace_id=_id_of(headers, TRACE),
        subscription=_id_of(headers, SUBSCRIPTION),
        body=body,
    )


def _delete(headers: Headers, interaction: str | None, deleted: str | None) -> Hint:
    if deleted is None:
        raise BadResource("the body is empty and X-Medplum-Deleted-Resource is missing")
    if interaction in {"create", "update"}:
        raise BadResource("X-Medplum-Interaction does not say delete and the body is empty")
    return Hint(
        reference=deleted,
        interaction="delete",
        trace_id=_id_of(headers, TRACE),
        subscription=_id_of(headers, SUBSCRIPTION),
    )


def _interaction(headers: Headers) -> str | None:
    """Return what the header says, and None where it says nothing to believe: missing, unknown or doubled."""
    found = headers.all(INTERACTION)
    word = found[0].decode("latin-1") if len(found) == 1 else ""
    return word if word in _INTERACTIONS else None


def _deleted(headers: Headers) -> str | None:
    found = headers.all(DELETED)
    if not found:
        return None
    if len(found) > 1:
        raise BadResource("X-Medplum-Deleted-Resource comes twice")
    resource_type, _, resource_id = found[0].decode("latin-1").partition("/")
    if not (_TYPE.fullmatch(resource_type) and _ID.fullmatch(resource_id)):
        raise BadResource("X-Medplum-Deleted-Resource should be Type/id")
    return f"{resource_type}/{resource_id}"


def _reference(resource: dict[str, Any]) -> str:
    resource_type = _matching(_TYPE, resource.get("resourceType"), "resourceType")
    return f"{resource_type}/{_matching(_ID, resource.get('id'), 'id')}"


def _matching(pattern: re.Pattern[str], value: object, name: str) -> str:
    if value is None:
        raise BadResource(f"{name} is missing")
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadResource(f"{name} does not have the form that FHIR gives it")
    return value


def _instant(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(_matching(_INSTANT, value, "meta.lastUpdated")).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadResource("meta.lastUpdated is not a time") from None


def _author(value: object) -> str | None:
    """Return the writing profile where it is told in the usual form; it only ever chooses a word."""
    reference = value.get("reference") if isinstance(value, dict) else None
    return reference if isinstance(reference, str) and _AUTHOR.fullmatch(reference) else None


def _id_of(headers: Headers, name: bytes) -> str | None:
    """Return the header's value if it comes once and looks like an id; it goes into rows and logs."""
    found = headers.all(name)
    text = found[0].decode("latin-1") if len(found) == 1 else ""
    return text if _ID.fullmatch(text) else None
