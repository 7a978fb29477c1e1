"""From the bytes of a resource to the model that mappings read, and what two readings of one version differ in.

Bytes stay as they came: nothing here turns a model back into a body. fhir.resources is imported at the first model
only, because it costs half a second and 45 MB. No error quotes a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from worker import strict_json
from worker.errors import BadResource, InvalidResource

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

__all__ = ["compare", "model", "parse", "presigned", "without_signature"]

META_OF_FHIR = frozenset({"versionId", "lastUpdated", "source", "profile", "security", "tag", "id", "extension"})
MOST_FIELDS = 5  # named in the words of an error; `fields` has them all

_SIGNATURES = frozenset({"Signature", "X-Amz-Signature", "X-Goog-Signature", "sig"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def parse(body: bytes) -> dict[str, Any]:
    """Read one resource out of strict JSON; numbers with a point are Decimal, as many digits as came.

    Raises:
        BadResource: it is not one, and why.
    """
    resource = strict_json.loads(body)
    if not isinstance(resource, dict):
        raise BadResource("not a JSON object")
    if not isinstance(resource.get("resourceType"), str):
        raise BadResource("resourceType is missing")
    return resource


def model(body: bytes, resource_type: str | None = None) -> FHIRAbstractModel:
    """Read a resource into its R4 model, without those members of `meta` that are Medplum's own.

    Raises:
        BadResource: it is not a resource, or of another type than expected.
        InvalidResource: the R4 models refuse it; names the fields, never what stands in them.
    """
    from pydantic import ValidationError

    resource = parse(body)
    name = resource["resourceType"]
    if resource_type is not None and name != resource_type:
        raise BadResource(f"resourceType is not {resource_type}")
    model_class = _model_class(name, "resourceType")
    for place, contained in _contained(resource):
        _model_class(contained, place)  # inside the models an unknown type would be a KeyError
    try:
        return model_class.model_validate(_with_fhir_meta(resource))
    except ValidationError as error:
        raise _invalid(name, error.errors(include_input=False, include_url=False, include_context=False)) from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, AssertionError):
        raise InvalidResource(f"the R4 model of {name} cannot read it") from None


def compare(notified: bytes, read: bytes) -> str | None:
    """Return the path of the first member that the notification of a version carried and the read of it lacks.

    An access policy hides members from a read, and never from a notification. `meta` is left out; values are not
    compared: of one version they differ in presigned URLs only, which are made anew each time.
    """
    if notified == read:
        return None
    try:
        first, second = (json.loads(body, parse_int=str, parse_float=str) for body in (notified, read))
        steps = _lacking({**first, "meta": None}, {**second, "meta": None})
    except (ValueError, TypeError, RecursionError):
        raise BadResource("not a JSON object") from None
    return None if steps is None else _path(steps)


def presigned(url: str) -> bool:
    """Tell whether a URL was signed for a while: Medplum's storage, or the object store behind it."""
    if "?" not in url or not url.startswith(("https://", "http://")):
        return False
    try:
        return not _SIGNATURES.isdisjoint(name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))
    except ValueError:
        return False


def without_signature(url: str) -> str:
    """Return what a URL names: of a presigned one all but the query, because the Binary's id is in the path."""
    return url.partition("?")[0] if presigned(url) else url


def _model_class(name: object, place: str) -> type[FHIRAbstractModel]:
    from fhir.resources.R4B import get_fhir_model_class
    from fhir.resources.R4B.resource import Resource

    try:
        found: type[FHIRAbstractModel] = get_fhir_model_class(str(name))
    except (KeyError, ValueError):
        found = Resource
    if found is Resource or not issubclass(found, Resource):  # data types have models as well
        raise InvalidResource(f"{place} is not a resource type of FHIR R4", fields=[place])
    return found


def _contained(resource: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    """Yield the place and the type of each contained resource."""
    contained = resource.get("contained")
    for number, each in enumerate(contained if isinstance(contained, list) else ()):
        yield f"contained[{number}].resourceType", each.get("resourceType") if isinstance(each, dict) else None


def _with_fhir_meta(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource with what FHIR knows of `meta`, in contained resources as well."""
    kept = dict(resource)
    if isinstance(meta := kept.get("meta"), dict):
        kept["meta"] = {name: value for name, value in meta.items() if name.removeprefix("_") in META_OF_FHIR}
    if isinstance(contained := kept.get("contained"), list):
        kept["contained"] = [_with_fhir_meta(each) if isinstance(each, dict) else each for each in contained]
    return kept


def _invalid(name: str, errors: Iterable[Mapping[str, Any]]) -> InvalidResource:
    problems = dict.fromkeys((_path(error["loc"]) or name, str(error["type"])) for error in errors)
    shown = [f"{path} ({kind})" for path, kind in problems][:MOST_FIELDS]
    more = f" and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    fields = list(dict.fromkeys(path for path, _ in problems))
    return InvalidResource(f"the R4 model of {name} refuses {', '.join(shown)}{more}", fields=fields)


def _path(loc: Iterable[str | int]) -> str:
    """Write a path as in FHIRPath; a member whose name is not one, and so could be anything, as a question mark."""
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += ("." if path else "") + (step if _NAME.fullmatch(step) else "?")
    return path


def _lacking(first: Any, second: Any) -> tuple[str | int, ...] | None:
    """Return the steps to the first thing that the second value lacks."""
    if isinstance(first, dict) and isinstance(second, dict):
        pairs: Iterable[tuple[str | int, Any, Any]] = ((name, one, second.get(name)) for name, one in first.items())
    elif isinstance(first, list) and isinstance(second, list):
        others = second + [None] * (len(first) - len(second))
        pairs = ((number, one, others[number]) for number, one in enumerate(first))
    else:
        same_kind = not isinstance(first, (dict, list)) and second is not None
        return None if first is None or same_kind else ()
    for step, one, other in pairs:
        if (rest := _lacking(one, other)) is not None:
            return (step, *rest)
    return None
