"""What the server adds to a resource and reads out of it: meta, compartments, search tokens, JSON Patch.

Pure: it stores nothing and asks no clock.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from typing import Any

from .javascript import Json, canonical, dumps
from .outcome import bad_request
from .store import Token

__all__ = [
    "PARAMETERS",
    "as_patch",
    "patched",
    "presigned",
    "same_content",
    "shown",
    "stamped",
    "tokens_of",
]

NOT_SHOWN = ("author", "project", "compartment", "account", "accounts")
_SERVER_OWNED = ("versionId", "lastUpdated", *NOT_SHOWN)
_CHANGES_WITH_EVERY_WRITE = ("versionId", "lastUpdated", "author")
_CODES = ("status", "outcome", "gender", "active", "url", "criteria", "intent", "type")
PARAMETERS = frozenset(
    {"identifier", "_tag", "_author", "patient", "subject", "encounter", "entity", "practitioner", *_CODES}
)
"""Search parameters that this server knows, besides the special ones of `search.py`."""

Stamp = tuple[str, str, Json, str]
"""versionId, lastUpdated, author, project."""


def stamped(resource: Json, stamp: Stamp, previous: Json | None) -> Json:
    """Return the resource with the server's meta; what a client says about author or project is not believed."""
    version_id, last_updated, author, project = stamp
    given = resource.get("meta")
    meta = {key: value for key, value in (given if isinstance(given, dict) else {}).items() if key not in _SERVER_OWNED}
    meta |= {"versionId": version_id, "lastUpdated": last_updated, "author": author, "project": project}
    accounts = {key: value for key, value in (previous or {}).get("meta", {}).items() if key in {"account", "accounts"}}
    meta["compartment"] = [{"reference": reference} for reference in _compartments(resource, project, accounts)]
    return resource | {"meta": meta | accounts}


def _compartments(resource: Json, project: str, accounts: Json) -> list[str]:
    found = [f"Project/{project}"]
    found += [account["reference"] for account in accounts.get("accounts", [])]
    if resource["resourceType"] == "Patient":
        found.append(f"Patient/{resource['id']}")
    found += [reference for _, reference in _references(resource) if reference.startswith("Patient/")]
    return list(dict.fromkeys(found))


def _references(resource: Json) -> Iterator[tuple[str, str]]:
    """Yield member and reference of top-level references, and of the participants of an Appointment."""
    for name, value in resource.items():
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                continue
            if isinstance(item.get("reference"), str):
                yield name, item["reference"]
            actor = item.get("actor")
            if isinstance(actor, dict) and isinstance(actor.get("reference"), str):
                yield "actor", actor["reference"]


def same_content(one: Json, other: Json) -> bool:
    """Tell whether a write changes nothing: Medplum leaves version, time and author out of the comparison."""
    return canonical(_without_stamp(one)) == canonical(_without_stamp(other))


def _without_stamp(resource: Json) -> Json:
    meta = {key: value for key, value in resource["meta"].items() if key not in _CHANGES_WITH_EVERY_WRITE}
    return resource | {"meta": meta}


def shown(resource: Json, *, extended: bool, hidden: frozenset[str]) -> Json:
    """Return what an API client gets to see: meta in short form unless extended, without hidden fields."""
    seen = {key: value for key, value in resource.items() if key not in hidden}
    if not extended:
        seen["meta"] = {key: value for key, value in resource["meta"].items() if key not in NOT_SHOWN}
    return seen


# search tokens


def tokens_of(resource: Json) -> set[Token]:
    """Return what searches and criteria find this resource by."""
    found = {("identifier", *token) for token in _tokens(resource.get("identifier"))}
    meta = resource.get("meta", {})
    found |= {("_tag", *token) for token in _tokens(meta.get("tag"), "code")}
    found.add(("_author", "", meta.get("author", {}).get("reference", "")))
    found |= {(name, "", _spelt(resource[name])) for name in _CODES if isinstance(resource.get(name), str | bool)}
    for name, reference in _references(resource):
        if name in PARAMETERS:
            found.add((name, "", reference))
        if reference.startswith("Patient/"):
            found.add(("patient", "", reference))
    if resource["resourceType"] == "Subscription" and isinstance(resource.get("channel"), dict):
        channel = resource["channel"]
        found |= {("url", "", str(channel.get("endpoint", ""))), ("type", "", str(channel.get("type", "")))}
    for entity in resource.get("entity", []) if resource["resourceType"] == "AuditEvent" else []:
        found.add(("entity", "", entity["what"]["reference"]))
    return found


def _tokens(items: Any, member: str = "value") -> Iterator[tuple[str, str]]:
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, dict) and isinstance(item.get(member), str):
            yield str(item.get("system", "")), item[member]


def _spelt(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value


# attachments

_BINARY = re.compile(rb'"url":"(?:https?://[^"/]+/fhir/R4/)?Binary/([A-Za-z0-9.-]{1,64})"')


def presigned(body: bytes, base_url: str, expires: int) -> bytes:
    """Return the body with each `Binary/…` URL as a presigned one: another at every call, as at every attempt."""
    if b"Binary/" not in body:
        return body

    def sign(match: re.Match[bytes]) -> bytes:
        url = f"{base_url}/storage/{match[1].decode()}/current?Expires={expires}&Signature={secrets.token_urlsafe(64)}"
        return f'"url":"{url}"'.encode()

    return _BINARY.sub(sign, body)


# JSON Patch

_LAST = "-"


def as_patch(operations: Any) -> list[Json]:
    """Check that a body is a JSON Patch."""
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("Patch body must be an array of operations")
    return operations


def patched(document: Json, operations: list[Json]) -> Json:
    """Apply a JSON Patch (add, replace, remove, test) to the document in place; any failure is a 400."""
    for operation in operations:
        name, path = operation.get("op"), operation.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise bad_request("Patch operation without a path")
        parent, key = _find(document, path)
        match name:
            case "test":
                if canonical(_value(parent, key)) != canonical(operation.get("value")):
                    raise bad_request("Test failed")
            case "add":
                _add(parent, key, operation.get("value"))
            case "replace":
                _value(parent, key)
                parent[_position(parent, key)] = operation.get("value")
            case "remove":
                _value(parent, key)
                del parent[_position(parent, key)]
            case _:
                raise bad_request("Unknown patch operation")
    return document


def _find(document: Json, path: str) -> tuple[Any, str]:
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in path[1:].split("/")]
    parent: Any = document
    for step in steps:
        parent = _value(parent, step)
    if not isinstance(parent, dict | list):
        raise bad_request("Path not found")
    return parent, last


def _value(parent: Any, key: str) -> Any:
    try:
        return parent[_position(parent, key)]
    except (KeyError, IndexError, TypeError, ValueError):
        raise bad_request("Path not found") from None


def _position(parent: Any, key: str) -> Any:
    if not isinstance(parent, list):
        return key
    if not key.isdecimal():
        raise bad_request("Path not found")
    return int(key)


def _add(parent: Any, key: str, value: Any) -> None:
    if isinstance(parent, dict):
        parent[key] = value
    elif key == _LAST:
        parent.append(value)
    elif _position(parent, key) <= len(parent):
        parent.insert(int(key), value)
    else:
        raise bad_request("Path not found")


def deletion_body(type_: str, id_: str, stamp: Stamp) -> bytes:
    """Return the body of a deletion's version."""
    return dumps(stamped({"resourceType": type_, "id": id_}, stamp, None))
