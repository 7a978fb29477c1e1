"""Routes: which function maps which type, and where to. Pure but for importing the module that declares them.

Whatever a mapping does wrong ends here as `Unmappable`, with the mapping's own line and without any value.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Generic, Literal, TypeVar

from fhir.resources.R4B.resource import Resource
from fhir_core.fhirabstractmodel import FHIRAbstractModel

from worker.errors import ReverseSyncError, RoutesInvalid, Unmappable
from worker.ledger.values import Phase
from worker.legacy import Collection, Find, Unsupported
from worker.legacy.call import template
from worker.mapping import place
from worker.mapping.context import Context
from worker.mapping.link import Link
from worker.mapping.results import Absent, Mapped, MappedRecord, Record, Result, Skip
from worker.mapping.tables import Table

R = TypeVar("R", bound=Resource)


class Conflict(StrEnum):
    """What happens where the legacy record is not what was last written."""

    OVERWRITE = "overwrite"  # Medplum wins; what was there is kept with the attempt
    HOLD = "hold"  # a person decides


@dataclass(frozen=True, slots=True, eq=False)
class Route(Generic[R]):
    """What `@route` makes of a function. Still callable as that function."""

    model: type[R]
    function: Callable[[R, Context], Result]
    to: Collection
    phase: Phase
    conflict: Conflict
    deleted: Literal["absent", "keep"]

    def __call__(self, resource: R, ctx: Context) -> Result:
        return self.function(resource, ctx)

    @property
    def type(self) -> str:
        """The resource type."""
        return str(self.model.get_resource_type())

    @property
    def version(self) -> str:
        """A hash of the mapping's module and the tables it names: another one may map alike, the same always does."""
        return _version(self.function)

    @property
    def collections(self) -> tuple[Collection, ...]:
        """All collections that it may write: its own, and those that its code names."""
        named = (self._globals.get(name) for name in self.function.__code__.co_names)
        return tuple(dict.fromkeys([self.to, *(found for found in named if isinstance(found, Collection))]))

    @property
    def source(self) -> str:
        """File and line of the function."""
        return f"{self.function.__code__.co_filename}:{self.function.__code__.co_firstlineno}"

    @property
    def _globals(self) -> dict[str, Any]:
        return self.function.__globals__


Routes = Mapping[str, Route[Any]]
"""The routes by resource type."""


def route(
    model: type[R],
    *,
    to: Collection,
    phase: Phase = Phase.SHADOW,
    conflict: Conflict = Conflict.OVERWRITE,
    deleted: Literal["absent", "keep"] = "absent",
) -> Callable[[Callable[[R, Context], Result]], Route[R]]:
    """Declare that a function maps a resource type.

    Args:
        model: the R4 model; it types the function's first argument.
        to: where its records go, unless a Record names another collection.
        phase: how far a new route is let into the legacy system, until an operator says otherwise.
        conflict: what happens where the legacy record is not what was last written.
        deleted: whether a record is deleted ("absent") or stays ("keep") when its resource is deleted in Medplum.
    """

    def declare(function: Callable[[R, Context], Result]) -> Route[R]:
        return Route(model, function, to, phase, conflict, deleted)

    return declare


def apply(route: Route[Any], resource: FHIRAbstractModel, ctx: Context) -> Mapped | Skip | Absent | Unsupported:
    """Map one resource.

    Raises:
        Unmappable: the mapping refuses a value, or its code failed; names field and line, holds no value and no chain.
    """
    try:
        return run(route, resource, ctx)
    except Unmappable as refusal:
        where = place.of_failure(route.function, refusal.__traceback__) if not refusal.line else None
        failed = _located(refusal, where)
    except Exception as error:  # whatever a mapping's code raises can hold a patient's values
        where = place.of_failure(route.function, error.__traceback__)
        failed = Unmappable(f"the mapping failed with {type(error).__name__}", field=where.field, line=where.line)
    raise failed  # outside of the handlers, so that no context holds what they caught


def _located(refusal: Unmappable, where: place.Place | None) -> Unmappable:
    if where is None:
        return Unmappable(refusal.why, field=refusal.field, line=refusal.line)
    return Unmappable(refusal.why, field=refusal.field or where.field, line=where.line)


def run(route: Route[Any], resource: FHIRAbstractModel, ctx: Context) -> Mapped | Skip | Absent | Unsupported:
    """Map one resource, letting through whatever the mapping raises. For tests; `apply` is for everything else."""
    result = route.function(resource, ctx)
    match result:
        case Skip() | Absent() | Unsupported():
            return result
        case list():
            records = result
        case Mapping():
            records = [Record("", result)]
        case _:
            raise Unmappable(f"the mapping returned {type(result).__name__}", line=f"def {route.function.__name__}(…)")
    if len({record.slot for record in records}) != len(records):
        raise Unmappable("two records have one slot", line=f"def {route.function.__name__}(…)")
    return Mapped(tuple(_record(route, record, ctx) for record in records))


def _record(route: Route[Any], record: Record, ctx: Context) -> MappedRecord:
    collection = record.to or route.to
    fields, parents = dict[str, object](), dict[str, str]()
    for name, value in record.fields.items():
        written, why = _written(collection, name, value, ctx)
        if why:
            where = place.of_field(route.function, name)
            raise Unmappable(why, field=where.field, line=where.line or f"def {route.function.__name__}(…)")
        if isinstance(written, Link) and not written.key:
            parents[name] = written.reference
        else:
            fields[name] = written
    return MappedRecord(record.slot, collection, fields, parents)


def _written(collection: Collection, name: str, value: object, ctx: Context) -> tuple[object, str]:
    """Return a field's wire form, or why there is none."""
    if value is None and name in collection.parents:
        return None, "is missing: it fills the path"
    try:
        return ctx.own(value) if isinstance(value, Link) else _wire(collection, value, ctx), ""
    except Unmappable as refusal:
        return None, refusal.why


def _wire(collection: Collection, value: object, ctx: Context) -> object:
    if isinstance(value, Link):
        if not value.key:
            raise Unmappable("a link without a key is a parent, and stands alone as a field")
        return ctx.own(value)
    if isinstance(value, Mapping):
        return {str(name): _wire(collection, entry, ctx) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_wire(collection, entry, ctx) for entry in value]
    return collection.write(value)  # type: ignore[arg-type]  # it refuses what is no Scalar


def load_routes(name: str) -> Routes:
    """Import the module (of a package: all its modules) that declares the routes.

    Raises:
        RoutesInvalid: with file and line: it does not import, has no route or two for a type, or a brace names nothing.
    """
    found: dict[int, Route[Any]] = {}
    for module in _modules(name):
        found |= {id(each): each for each in vars(module).values() if isinstance(each, Route)}
    if not found:
        raise RoutesInvalid(f"{name} declares no route: decorate a function with @route")
    routes: dict[str, Route[Any]] = {}
    for each in found.values():
        if (other := routes.setdefault(each.type, each)) is not each:
            raise RoutesInvalid(f"two routes for {each.type}: {other.source} and {each.source}: keep one")
    keys = frozenset(key for each in routes.values() for collection in each.collections for key in collection.keys)
    for each in routes.values():
        _check_names(each, keys)
        _ = each.version  # of the source that was imported, not of what the file may become
    return MappingProxyType(dict(sorted(routes.items())))


def _modules(name: str) -> list[ModuleType]:
    failed: RoutesInvalid
    try:
        module = importlib.import_module(name)
        inside = [entry.name for entry in pkgutil.walk_packages(getattr(module, "__path__", ()), name + ".")]
        return [module, *map(importlib.import_module, inside)]
    except ReverseSyncError as error:
        failed = RoutesInvalid(f"{_culprit(error, name)}: {error}")
    except SyntaxError as error:
        failed = RoutesInvalid(f"{error.filename}:{error.lineno}: {error.msg}")
    except ImportError as error:
        failed = RoutesInvalid(f"{_culprit(error, name)}: {error.msg}")
    except Exception as error:
        failed = RoutesInvalid(f"{_culprit(error, name)}: it failed with {type(error).__name__} when imported")
    raise failed


def _culprit(error: BaseException, name: str) -> str:
    """Return file and line of the last of the user's own frames that an import failed in; else the module's name."""
    worker = Path(__file__).parent.parent
    own_rooms = tuple(f"{worker / room}{os.sep}" for room in ("mapping", "legacy"))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*own_rooms, "<", sys.base_prefix)) and "site-packages" not in frame.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name


def _check_names(route: Route[Any], keys: frozenset[str]) -> None:
    """Check what can be checked before a resource is there: each brace is a key, a mapped field or a parent's key."""
    fields = place.keys_in(route.function)
    for collection in route.collections:
        for request in collection.requests:
            for name in template(request).names:
                first, dot, key = name.partition(".")
                known = fields is None or first in fields or (not dot and first in collection.keys)
                if not known or (dot and key not in keys):
                    raise RoutesInvalid(f'{route.source}: {collection.name}: nothing is called "{name}" in "{request}"')
        matched = tuple(collection.find_by.match) if isinstance(collection.find_by, Find) else ()
        for name in (*matched, *collection.identity, *collection.clear):
            if fields is not None and name not in fields:
                raise RoutesInvalid(f'{route.source}: {collection.name}: the mapping returns no field "{name}"')


@cache
def _version(function: Callable[..., Any]) -> str:
    tables = {name: found for name, found in function.__globals__.items() if isinstance(found, Table)}
    digest = hashlib.sha256(place.source(function).encode())
    digest.update(repr(sorted(tables.items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()[:16]
