"""A made-up resource that carries given elements: every value comes from its FHIR type, none from a patient."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from worker.scaffold.elements import Path

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel
    from pydantic.fields import FieldInfo

_SAMPLES: dict[str, object] = {
    "Date": "2001-02-03",
    "DateTime": "2001-02-03T10:15:00Z",
    "Instant": "2001-02-03T10:15:00Z",
    "Time": "10:15:00",
    "Integer": 1,
    "UnsignedInt": 1,
    "PositiveInt": 1,
    "Decimal": 1.5,
    "Boolean": True,
    "Base64Binary": "ZXhhbXBsZQ==",
    "Uri": "https://example.com/example",
    "Url": "https://example.com/example",
    "Canonical": "https://example.com/example",
    "Uuid": "urn:uuid:00000000-0000-4000-8000-000000000000",
    "Oid": "urn:oid:1.2.3",
    "Id": "example",
    "Code": "example",
}


def made_up(model: type[FHIRAbstractModel], paths: Iterable[Path]) -> dict[str, Any]:
    """Make a resource of this type with these elements; those that the model does not know are left out.

    What the model requires and nobody carries is not added: the resource is as bare as those that were seen.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        inside = tree
        for name in path:
            inside = inside.setdefault(name, {})
    return {
        "resourceType": str(model.get_resource_type()),
        "id": "example",
        "meta": {"versionId": "1", "lastUpdated": "2001-02-03T10:15:00.000Z"},
        **_filled(model, tree),
    }


def kind(model: type[FHIRAbstractModel], path: Path) -> str:
    """Name the FHIR type of an element, as in Date or Reference; "" where the model does not know it."""
    found = ""
    inside: Any = model
    for name in path:
        field = inside.model_fields.get(_attribute(inside, name)) if inside is not None else None
        if field is None:
            return ""
        inside, found, _ = _typed(field)
    return found


def _filled(model: type[FHIRAbstractModel], tree: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    chosen: set[str] = set()  # of deceasedBoolean and deceasedDateTime a resource has one
    for name, inner in tree.items():
        field = model.model_fields.get(_attribute(model, name))
        if field is None or (choice := _extra(field).get("one_of_many")) in chosen:
            continue
        chosen |= {choice} if choice else set()
        inside, found, many = _typed(field)
        value = _value(name, field, found) if inside is None else _complex(inside, inner, field)
        filled[name] = [value] if many else value
    return filled


def _complex(inside: type[FHIRAbstractModel], inner: dict[str, Any], field: FieldInfo) -> dict[str, Any]:
    value = _filled(inside, inner)
    if "reference" in value:
        types = _extra(field).get("enum_reference_types") or ["Resource"]
        value["reference"] = f"{types[0]}/example"
    return value


def _value(name: str, field: FieldInfo, found: str) -> object:
    allowed = _extra(field).get("enum_values")
    return allowed[0] if allowed else _SAMPLES.get(found, f"Example {name}")


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _attribute(model: Any, name: str) -> str:
    """Name the model's attribute of an element: Encounter.class is class_fhir in Python."""
    return next((at for at, field in model.model_fields.items() if name in (at, field.alias)), name)


def _typed(field: FieldInfo) -> tuple[Any, str, bool]:
    """Take a field's annotation apart: the model of what is inside (None for a primitive), its name, and if many."""
    kinds = [each for each in _flat(field.annotation) if each is not type(None)]
    many = any(typing.get_origin(each) is list for each in _union(field.annotation))
    for each in kinds:
        inner: Callable[[], type[FHIRAbstractModel]] | None = getattr(each, "get_model_klass", None)
        if inner is not None:
            return inner(), each.__name__.removesuffix("Type"), many
    if bool in kinds:
        return None, "Boolean", many
    marks = [type(each).__name__ for each in kinds if type(each).__name__ in {*_SAMPLES, "String", "Markdown"}]
    return None, marks[0] if marks else "String", many


def _union(annotation: Any) -> tuple[Any, ...]:
    """List what an optional element may be; a required one is its annotation itself, as in List[CodeableConcept]."""
    return (annotation,) if typing.get_origin(annotation) is list else typing.get_args(annotation) or (annotation,)


def _flat(annotation: Any) -> list[Any]:
    """List everything that an annotation names, the marks of Annotated included."""
    inside = [*typing.get_args(annotation), *getattr(annotation, "__metadata__", ())]
    return [each for part in inside for each in _flat(part)] if inside else [annotation]
