"""A resource with what its mapping may ask for, out of one FHIR Bundle: for fixture pairs and previews of files.

The first entry is the resource; of it, further versions are its history. Everything else is what Medplum would hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from worker import strict_json
from worker.mapping.context import Context
from worker.mapping.question import Asked, Fetch, History, Question, Search
from worker.medplum.resource import model

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

T = TypeVar("T")
Json = dict[str, Any]

QUESTIONS_MOST = 50


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The resource itself, and others beside it."""

    resource: Json = field(repr=False)
    others: Sequence[Json] = field(repr=False)

    @classmethod
    def read(cls, body: bytes) -> Surroundings:
        """Take a resource, or a Bundle apart.

        Raises:
            BadResource: it is no JSON that a FHIR server would send.
        """
        read = strict_json.loads(body)
        if not isinstance(read, dict) or read.get("resourceType") != "Bundle":
            return cls(read if isinstance(read, dict) else {}, ())
        entries = [entry.get("resource") for entry in read.get("entry", ()) if isinstance(entry, dict)]
        resources = [entry for entry in entries if isinstance(entry, dict)]
        return cls(resources[0] if resources else {}, resources[1:])

    def model(self) -> FHIRAbstractModel:
        """Read the resource into its R4 model.

        Raises:
            BadResource, InvalidResource: the models refuse it.
        """
        return model(as_bytes(self.resource))

    def answer(self, question: Question) -> tuple[FHIRAbstractModel, ...]:
        """Answer from what is in the Bundle; what is not there is not there."""
        found = [each for each in self.others if _answers(each, question)]
        if isinstance(question, History):
            found = sorted(found, key=_written, reverse=True)
        return tuple(model(as_bytes(each)) for each in found)


def asked(mapping: Callable[[Context], T], ctx: Context, answer: Callable[[Question], Any]) -> T:
    """Run a mapping as often as it asks something new.

    Raises:
        RecursionError: it asks without end.
    """
    for _ in range(QUESTIONS_MOST):
        try:
            return mapping(ctx)
        except Asked as one:
            question = one.question
        ctx = ctx.told(question, answer(question))
    raise RecursionError("a mapping that asks without end")


def as_bytes(resource: Mapping[str, Any]) -> bytes:
    """Write a resource as JSON again. For fixtures only: decimals lose their zeros."""
    return json.dumps(resource, default=plain).encode()


def plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else str(value)


def _answers(resource: Json, question: Question) -> bool:
    reference = f"{resource.get('resourceType')}/{resource.get('id')}"
    match question:
        case Fetch(wanted) | History(wanted):
            return reference == wanted
        case Search(kind, _, target):
            return resource.get("resourceType") == kind and target in _references(resource)
    raise AssertionError("unreachable")


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for entry in value.values():
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)


def _written(resource: Json) -> datetime:
    return datetime.fromisoformat(resource["meta"]["lastUpdated"])
