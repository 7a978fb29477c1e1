"""How a body is written: as JSON, as a form, as JSON:API. Pure: values come in wire form, and leave as bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from worker.legacy.wire import as_json

__all__ = ["Body", "form_body", "json_api", "json_body"]

Body = Callable[[Mapping[str, object], Mapping[str, object]], tuple[str, bytes]]
"""Turns fields and own keys into a content type and bytes."""


def json_body(fields: Mapping[str, object], own_keys: Mapping[str, object]) -> tuple[str, bytes]:
    """Write the fields as one JSON object. Own keys stay in the path."""
    return "application/json", as_json(fields).encode()


def form_body(fields: Mapping[str, object], own_keys: Mapping[str, object]) -> tuple[str, bytes]:
    """Write the fields as a form, lists and objects as JSON inside. Own keys stay in the path."""
    return "application/x-www-form-urlencoded", urlencode([(name, _text(v)) for name, v in fields.items()]).encode()


def json_api(kind: str, relationships: Mapping[str, str] | None = None) -> Body:
    """Write the fields as a JSON:API document of type `kind`.

    Args:
        kind: the document's `type`.
        relationships: fields that are relationships and no attributes, each with the type that it points to.
    """
    types = dict(relationships or {})

    def body(fields: Mapping[str, object], own_keys: Mapping[str, object]) -> tuple[str, bytes]:
        related = {name: {"data": _pointers(fields[name], to)} for name, to in types.items() if name in fields}
        data: dict[str, object] = {"type": kind}
        if own_keys:
            data["id"] = str(next(iter(own_keys.values())))
        data["attributes"] = {name: value for name, value in fields.items() if name not in types}
        if related:
            data["relationships"] = related
        return "application/vnd.api+json", as_json({"data": data}).encode()

    return body


def _pointers(value: object, to: str) -> object:
    if isinstance(value, list | tuple):
        return [_pointers(entry, to) for entry in value]
    return None if value is None or value == "" else {"type": to, "id": str(value)}


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
    return as_json(value)
