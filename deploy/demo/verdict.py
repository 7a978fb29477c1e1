"""Whether the two systems agree: every resource mapped anew, and held against its legacy record. It changes nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.errors import ReverseSyncError
from worker.ledger.values import LinkState
from worker.mapping import Absent, Context, Mapped, MappedRecord, Route, Routes, Skip, apply, load_routes
from worker.medplum.resource import model

Json = Mapping[str, Any]


@dataclass(slots=True)
class Verdict:
    """What was compared, and each fault by the name of what it is about."""

    compared: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    doubled: int = 0

    @property
    def agrees(self) -> bool:
        return not self.faults


def routes_of(settings: Mapping[str, str]) -> Routes:
    """Load the routes that the workers have, as their module is now, whatever the caller's own shell says of a site."""
    for name in [name for name in os.environ if name.startswith("REVERSE_SYNC_SITE_")]:
        del os.environ[name]
    os.environ.update({name: value for name, value in settings.items() if name.startswith("REVERSE_SYNC_SITE_")})
    sys.path[:0] = [entry for entry in settings["PYTHONPATH"].split(os.pathsep) if entry not in sys.path]
    importlib.invalidate_caches()
    return load_routes(settings["REVERSE_SYNC_ROUTES"])


def compare(
    truth: Iterable[Json], records: Mapping[str, Json], links: Iterable[Json], routes: Routes, medplum: str
) -> Verdict:
    """Hold every resource against its legacy record, and every record against the resources."""
    verdict = Verdict()
    linked = {link["reference"]: link for link in links}
    keys = {reference: link["keys"] for reference, link in linked.items() if link["state"] == LinkState.LINKED}
    for line in truth:
        reference = line["reference"]
        route, link = routes[reference.partition("/")[0]], linked.get(reference)
        what, wanted = _wanted(line, route, medplum)
        verdict.compared[what] += 1
        if what == "not synced by rule":
            continue
        record = None if link is None else records.get(_record_name(link))
        faults = _not_gone(link, record) if wanted is None else _unlike(wanted, link, record, keys)
        verdict.faults += [f"{reference}: {fault}" for fault in faults]
    verdict.doubled = sum(record["copies"] > 1 for record in records.values())
    verdict.faults += _strays(records, {_record_name(link) for link in linked.values()})
    return verdict


def _wanted(line: Json, route: Route[Any], medplum: str) -> tuple[str, MappedRecord | None]:
    """Say what should be there because of a resource, and give its record."""
    if line["deleted"]:
        return "deleted", None
    resource = model(json.dumps(line["resource"]).encode())
    try:
        result = apply(route, resource, Context.of(resource, zone=route.to.api.zoneinfo, medplum=medplum))
    except ReverseSyncError:
        return "refused by the mapping", None
    match result:
        case Mapped(records=(record,)):
            return "written", record
        case Absent():
            return "taken back by rule", None
        case Skip():
            return "not synced by rule", None
    raise AssertionError("the demo's mappings make one record of a resource")


def _unlike(
    wanted: MappedRecord, link: Json | None, record: Json | None, keys: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    if link is None or record is None or link["state"] != LinkState.LINKED:
        yield "has no legacy record"
        return
    if missing := wanted.references() - keys.keys():
        yield f"points to {', '.join(sorted(missing))}, which has no legacy record"
        return
    if record["status"] == "inactive" or record["copies"] != 1:
        yield f"its record {record['record']} is {record['status']}, with {record['copies']} copies"
    if differing := wanted.collection.differing(wanted.resolve(keys), record["data"]):
        yield f"its record {record['record']} differs in {', '.join(differing)}"
    owner = keys.get(wanted.parents.get("patient", ""), {})
    if any(record["data"].get(f"patient_{name}", key) != key for name, key in owner.items()):
        yield f"its record {record['record']} is another patient's"


def _not_gone(link: Json | None, record: Json | None) -> Iterator[str]:
    if link is not None and link["state"] == LinkState.LINKED:
        yield "should have no legacy record, and has one"
    elif record is not None and record["copies"]:
        yield f"its record {record['record']} is still there"


def _strays(records: Mapping[str, Json], known: set[str]) -> Iterator[str]:
    """Name active records that no resource has: what a create that was repeated would leave."""
    for name, record in sorted(records.items()):
        if record["copies"] and name not in known:
            yield f"{name}: a record of no resource"


def _record_name(link: Json) -> str:
    return f"{link['collection']}/{next(iter(link['keys'].values()))}"
