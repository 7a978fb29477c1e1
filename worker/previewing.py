"""Reads what a preview needs: the resource, what its mapping asks for, what the ledger knows, the legacy records.

It writes nothing but that somebody looked: a preview shows a patient's values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.asking import Asking
from worker.calling import Budget
from worker.ends import OF_THE_VERSION, Fail, stop_for
from worker.errors import RoutesInvalid
from worker.ledger import Ledger
from worker.ledger.values import Keys, Phase
from worker.legacy import Collection
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Declared, Mapped, Part, Route, Skip, Unsupported, apply
from worker.mapping.surroundings import Surroundings, asked
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.quota import Priority
from worker.medplum.resource import model
from worker.preview import Known, Previewed, preview

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

__all__ = ["Previewing", "Told", "of_bundle"]

BUDGET_S = 60.0

Wanted = Mapped | Skip | MappedAbsent | Unsupported
Legacy = Callable[[Collection, Callable[[float], "Mapping[str, object] | None"]], "Mapping[str, object] | None"]
"""Makes a call that only reads, through the gate; the call is given its deadline in seconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """A preview of one resource: what holds for all of it, and each of its records."""

    reference: str
    said: tuple[str, ...] = ()
    records: tuple[Previewed, ...] = field(default=())


class Previewing:
    """Previews of resources in Medplum."""

    def __init__(
        self, ledger: Ledger, medplum: Medplum, legacy: Legacy, routes: Declared, medplum_base_url: str
    ) -> None:
        self._ledger, self._medplum, self._legacy, self._routes = ledger, medplum, legacy, routes
        self._base_url = medplum_base_url

    def of(self, reference: str, *, who: str, against_legacy: bool) -> Told:
        """Tell what would go out for a resource as it is now. Who looked is recorded first.

        Raises:
            MedplumUnavailable, MedplumRefused, BadResource, LegacyUnavailable: something was not read.
        """
        route = _route(self._routes, reference.partition("/")[0])
        self._ledger.note_preview(reference, who=who)
        budget = Budget(BUDGET_S, time.monotonic)
        read = self._medplum.read(reference, deadline_s=budget.left_s("read"))
        if isinstance(read, Absent):
            return Told(reference, ("Medplum shows neither the resource nor its deletion: it is looked at again",))
        try:
            if isinstance(route, Part):
                return Told(reference, (_of_part(route, read, self._base_url),))
            wanted = self._wanted(route, read, budget)
        except OF_THE_VERSION as refusal:
            return Told(reference, (_in_words(refusal),))
        known, phase = self._known(reference, route)
        compare = self._read if against_legacy else None
        records = tuple(preview(wanted, route, known, now=datetime.now(UTC), read=compare))
        return Told(reference, tuple(_about(wanted, phase)), records)

    def _wanted(self, route: Route[Any], read: Present | Deleted, budget: Budget) -> Wanted:
        if isinstance(read, Deleted):
            keeps = Skip("deleted in Medplum; this route keeps what it wrote")
            return keeps if route.deleted == "keep" else MappedAbsent("deleted in Medplum")
        resource = model(read.body, route.type)
        asking = Asking(self._medplum, note=lambda on, kind: False, left_s=budget.left_s, priority=Priority.SECOND_LOOK)
        return asking.mapped(route, resource, _context(route, resource, self._base_url))

    def _known(self, reference: str, route: Route[Any]) -> tuple[Known, Phase | None]:
        links, unresolved = self._ledger.known_of(reference)
        row = self._ledger.routes().get(route.type)
        sealer = self._ledger.sealer
        known = Known(
            links,
            unresolved,
            lambda living, buried: self._ledger.keys_of(living, buried=buried),
            lambda digest, record: sealer.can_seal and sealer.matches(digest, record.canonical()),
        )
        return known, None if row is None else row.phase

    def _read(self, collection: Collection, keys: Keys, parents: Mapping[str, Keys]) -> Mapping[str, object] | None:
        return self._legacy(collection, lambda left_s: collection.read(keys, parents, deadline_s=left_s))


def of_bundle(body: bytes, routes: Declared, *, medplum_base_url: str) -> Told:
    """Tell what would go out for the first resource of a Bundle, if nothing were known of it.

    Raises:
        BadResource, InvalidResource: it is no resource.
    """
    around = Surroundings.read(body)
    resource = around.model()
    reference = f"{resource.get_resource_type()}/{getattr(resource, 'id', None)}"
    route = _route(routes, str(resource.get_resource_type()))
    if isinstance(route, Part):
        return Told(reference, ("it has no records of its own",))
    try:
        wanted = asked(partial(apply, route, resource), _context(route, resource, medplum_base_url), around.answer)
    except OF_THE_VERSION as refusal:
        return Told(reference, (_in_words(refusal),))
    except RecursionError:
        return Told(reference, (_in_words(Fail("unmappable", "it asks for more and more, without end")),))
    return Told(reference, tuple(_about(wanted, None)), tuple(preview(wanted, route, Known(), now=datetime.now(UTC))))


def _route(routes: Declared, resource_type: str) -> Route[Any] | Part[Any]:
    found = routes.get(resource_type) or routes.parts.get(resource_type)
    if found is None:
        raise RoutesInvalid(f"no route for {resource_type}: the routes are {', '.join(routes)}")
    return found


def _context(route: Route[Any], resource: FHIRAbstractModel, base_url: str) -> Context:
    return Context.of(resource, zone=route.to.api.zoneinfo, medplum=base_url)


def _of_part(part: Part[Any], read: Present | Deleted, base_url: str) -> str:
    if isinstance(read, Deleted):
        return "deleted: those whose mappings have read it are looked at"
    resource = model(read.body, part.type)
    owner = part.owned_by(resource, Context.of(resource, zone="UTC", medplum=base_url))
    return f"it has no records of its own: {owner} would be looked at" if owner else "it is part of nothing"


def _about(wanted: Wanted, phase: Phase | None) -> list[str]:
    said = [f"absent: {wanted.rule}"] if isinstance(wanted, MappedAbsent) else []
    return said if phase in {None, Phase.LIVE} else [*said, f"the route is {phase}: nothing is sent"]


def _in_words(refusal: Exception) -> str:
    stop = stop_for(refusal)
    return f"{stop.reason}: {stop}"
