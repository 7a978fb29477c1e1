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
from urllib.parse import urlsplit

from fhir.resources.R4B.resource import Resource
from fhir_core.fhirabstractmodel import FHIRAbstractModel

from worker.errors import ReverseSyncError, RoutesInvalid, Unmappable
from worker.ledger.values import Phase
from worker.legacy import Call, Collection, File, Find, Unsupported
from worker.legacy.call import CURRENT
from worker.mapping import place
from worker.mapping.context import Context
from worker.mapping.criteria import never_fires
from worker.mapping.link import Link
from worker.mapping.part import DECLARED_HERE, PART_VERSION, Part, Parts
from worker.mapping.results import Absent, Mapped, MappedRecord, Record, Result, Skip
from worker.mapping.tables import Table

R = TypeVar("R", bound=Resource)


class Conflict(StrEnum):
    """What happens where the legacy record is not what the API last said of it."""

    OFF = "off"  # nobody looks: it costs a read for each update
    OVERWRITE = "overwrite"  # Medplum wins; what was there is kept with the link
    HOLD = "hold"  # a person decides


@dataclass(frozen=True, slots=True)
class WriteBack:
    """The legacy key goes back to Medplum, as an identifier of this system on the resource.

    `key` names which of the record's keys; by default the first.
    """

    system: str
    key: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.system)
        if not parts.scheme or not (parts.netloc or parts.path) or any(sign.isspace() for sign in self.system):
            raise RoutesInvalid(f'WriteBack: "{self.system}" should be an absolute URI')


@dataclass(frozen=True, slots=True, eq=False)
class Route(Generic[R]):
    """What `@route` makes of a function. Still callable as that function."""

    model: type[R]
    function: Callable[[R, Context], Result]
    to: Collection
    phase: Phase
    conflict: Conflict = Conflict.OFF
    deleted: Literal["absent", "keep"] = "absent"
    expunged: Literal["hold", "absent", "keep"] = "hold"
    moved: Literal["hold", "replace"] = "hold"
    restored: Literal["create", "undelete", "hold"] = "create"
    imported: Literal["update", "hold"] = "update"
    identifier: WriteBack | None = None
    criteria: str = ""

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


class Declared(dict[str, Route[Any]]):
    """What a module declares: the routes by resource type, and beside them the parts."""

    def __init__(self, routes: Routes, parts: Parts) -> None:
        super().__init__(sorted(routes.items()))
        self.parts: Parts = MappingProxyType(dict(sorted(parts.items())))

    @property
    def types(self) -> dict[str, tuple[Phase, str]]:
        """What the ledger registers: each type's first phase and the version of its mapping."""
        parts = dict.fromkeys(self.parts, (Phase.LIVE, PART_VERSION))
        return parts | {name: (route.phase, route.version) for name, route in self.items()}


def route(
    model: type[R],
    *,
    to: Collection,
    phase: Phase = Phase.SHADOW,
    conflict: Conflict = Conflict.OFF,
    deleted: Literal["absent", "keep"] = "absent",
    expunged: Literal["hold", "absent", "keep"] = "hold",
    moved: Literal["hold", "replace"] = "hold",
    restored: Literal["create", "undelete", "hold"] = "create",
    imported: Literal["update", "hold"] = "update",
    identifier: WriteBack | None = None,
    criteria: str = "",
) -> Callable[[Callable[[R, Context], Result]], Route[R]]:
    """Declare that a function maps a resource type.

    Args:
        model: the R4 model; it types the function's first argument.
        to: where its records go, unless a Record names another collection.
        phase: how far a new route is let into the legacy system, until an operator says otherwise.
        conflict: what happens where the legacy record is not what the API last said of it.
        deleted: whether a record is deleted ("absent") or stays ("keep") when its resource is deleted in Medplum.
        expunged: the same where Medplum shows neither the resource nor its deletion, at two looks; or a person decides.
        moved: whether a record whose parent is another one now is deleted there and created here ("replace").
        restored: what becomes of a deleted record whose resource lives again: a new one, or the old one brought back.
        imported: whether a person sees the differences before the first write to a record that was imported ("hold").
        identifier: puts the legacy key on the Medplum resource.
        criteria: of the Subscription that `subscriptions apply` makes, as in Patient?_tag=pilot; the type's name if not
            given. A resource that leaves it sends nothing: better say `Skip`.
    """

    def declare(function: Callable[[R, Context], Result]) -> Route[R]:
        options = (phase, conflict, deleted, expunged, moved, restored, imported, identifier, criteria)
        return Route(model, function, to, *options)

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
    if isinstance(value, File):
        return ctx.own_file(value)
    if isinstance(value, Mapping):
        return {str(name): _wire(collection, entry, ctx) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_wire(collection, entry, ctx) for entry in value]
    return collection.write(value)  # type: ignore[arg-type]  # it refuses what is no Scalar


def load_routes(name: str) -> Declared:
    """Import the module (of a package: all its modules) that declares the routes.

    Raises:
        RoutesInvalid: with file and line: it does not import, has no route or two for a type, or a brace names nothing.
    """
    found: dict[int, Route[Any]] = {}
    parts: dict[str, Part[Any]] = {}
    for module in _modules(name):
        found |= {id(each): each for each in vars(module).values() if isinstance(each, Route)}
        parts |= {each.type: each for each in vars(module).get(DECLARED_HERE, ())}
    if not found:
        raise RoutesInvalid(f"{name} declares no route: decorate a function with @route")
    routes: dict[str, Route[Any]] = {}
    for each in found.values():
        if (other := routes.setdefault(each.type, each)) is not each:
            raise RoutesInvalid(f"two routes for {each.type}: {other.source} and {each.source}: keep one")
    for part in parts.values():
        if part.type in routes:
            raise RoutesInvalid(f"{part.source}: {part.type} has a route, so it is no part of another: keep one")
    keys = frozenset(key for each in routes.values() for collection in each.collections for key in collection.keys)
    for each in routes.values():
        _check_names(each, keys)
        _check_options(each)
        _check_criteria(each)
        _ = each.version  # of the source that was imported, not of what the file may become
    return Declared(routes, parts)


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
        for name in sorted(collection.names):
            first, dot, key = name.partition(".")
            known = fields is None or first in fields or (not dot and first in collection.keys)
            if first != CURRENT and (not known or (dot and key not in keys)):
                wanted = next((each for each in collection.requests if f"{{{name}}}" in each), "a constant")
                raise RoutesInvalid(f'{route.source}: {collection.name}: nothing is called "{name}" in "{wanted}"')
        matched = tuple(collection.find_by.match) if isinstance(collection.find_by, Find) else ()
        for name in (*matched, *collection.identity, *collection.clear):
            if fields is not None and name not in fields:
                raise RoutesInvalid(f'{route.source}: {collection.name}: the mapping returns no field "{name}"')


def _check_criteria(route: Route[Any]) -> None:
    """Check that Medplum would tell of changes: it takes criteria that never fire."""
    if not route.criteria:
        return
    why = never_fires(route.criteria)
    if why is None and route.criteria.partition("?")[0] != route.type:
        why = f"it is not one of {route.type}"
    if why is not None:
        raise RoutesInvalid(f'{route.source}: criteria="{route.criteria}": {why}')


def _check_options(route: Route[Any]) -> None:
    """Check that the legacy API can do what the route's options ask of it."""
    for collection in route.collections:
        can_replace = isinstance(collection.create, Call) and isinstance(collection.delete, Call)
        refusals = (
            (
                route.conflict is not Conflict.OFF and not collection.can_read,
                f"conflict={route.conflict.name} compares with what is read, so it needs read",
            ),
            (
                route.restored == "undelete" and collection.undelete is None,
                'restored="undelete" needs undelete',
            ),
            (
                route.moved == "replace" and bool(collection.parents) and not can_replace,
                'moved="replace" needs a create and a delete that the API can do',
            ),
            (
                route.identifier is not None and route.identifier.key not in {"", *collection.keys},
                f'WriteBack: it has no key "{route.identifier.key if route.identifier else ""}"',
            ),
        )
        for refused, why in refusals:
            if refused:
                raise RoutesInvalid(f"{route.source}: {collection.name}: {why}")


@cache
def _version(function: Callable[..., Any]) -> str:
    tables = {name: found for name, found in function.__globals__.items() if isinstance(found, Table)}
    digest = hashlib.sha256(place.source(function).encode())
    digest.update(repr(sorted(tables.items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()[:16]
