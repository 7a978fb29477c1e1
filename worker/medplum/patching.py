"""What a JSON Patch has to say so that a resource carries one identifier. Pure: it reads bytes and sends nothing.

PATCH ignores If-Match, so each one begins with a test of the version that was read, and Medplum takes all of it or
nothing. `add /identifier/-` needs an array that is there; `add /identifier` puts one in the place of whatever is there.
An access policy can hide identifiers from our reads: so the first is always tried first, and only a version that has
refused it has none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from worker.errors import BadResource, MedplumRefused
from worker.strict_json import loads

__all__ = ["Identified", "Operations", "Put", "of_identifier", "version_of"]

Operations = list[dict[str, Any]]


class Put(StrEnum):
    """What came of the wish that a resource carries an identifier."""

    ADDED = "added"
    REPLACED = "replaced"  # it carried the key of the record that this one replaces
    THERE = "there"  # it carried it already: nothing was written
    GONE = "gone"  # deleted, or not there: never restored
    FOREIGN = "foreign"  # it names another legacy record under this system: left as it is


@dataclass(frozen=True, slots=True)
class Identified:
    """What came of it; `version_id` names the version that this made, if Medplum told it."""

    put: Put
    version_id: str | None = None


def of_identifier(
    body: bytes,
    version_id: str,
    *,
    system: str,
    value: str,
    former: str | None = None,
    others: Collection[str] = (),
    has_none: bool = False,
) -> tuple[Put, Operations]:
    """Say what a resource needs so that it carries this identifier; no operations: it does already.

    Args:
        body: the resource as it was read, in this version.
        former: the value that was put there before; another one is not ours to replace.
        others: values under the same system that stand for other records of the resource, and stay.
        has_none: this version has refused to have one appended.

    Raises:
        BadResource: it cannot be read.
        MedplumRefused: its type has room for one identifier, and another one is there.
    """
    resource = loads(body)
    held = resource.get("identifier") if isinstance(resource, Mapping) else None
    test = {"op": "test", "path": "/meta/versionId", "value": version_id}
    wanted = {"system": system, "value": value}
    if not held and has_none:
        return Put.ADDED, [test, {"op": "add", "path": "/identifier", "value": [wanted]}]
    held = held or []
    places = (
        {f"/identifier/{at}": each for at, each in enumerate(held)} if isinstance(held, list) else {"/identifier": held}
    )
    ours = {
        place: each.get("value")
        for place, each in places.items()
        if isinstance(each, Mapping) and each.get("system") == system
    }
    if value in ours.values():
        return Put.THERE, []
    for place, standing in ours.items():
        if standing is None or standing == former:
            name = "add" if standing is None else "replace"
            return Put.REPLACED, [test, {"op": name, "path": f"{place}/value", "value": value}]
    if not set(ours.values()) <= set(others):
        return Put.FOREIGN, []
    if not isinstance(held, list):
        raise MedplumRefused("this type has room for one identifier, and another one is there: take `identifier=` off")
    return Put.ADDED, [test, {"op": "add", "path": "/identifier/-", "value": wanted}]


def version_of(response: httpx.Response) -> str | None:
    """Read the version that a write has made out of its answer; None if it does not tell."""
    try:
        resource: Any = loads(response.content)
        version = resource["meta"]["versionId"]
    except (BadResource, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None
