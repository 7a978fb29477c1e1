"""Fixture pairs: a resource beside what it maps to, one test each, and a damage test that comes with them.

For the tests of mappings; nothing that runs in production imports it. No ledger, no keys, no network.

    test_problem = pairs(problem, "fixtures/problem")

collects `<case>.fhir.json` and `<case>.legacy.json` of the folder. The right-hand side holds values in wire form, null
where an update clears, and links by reference:

    [{"record": "problem", "fields": {"patient": "→ Patient/p1", "title": "Gout", "icd10": null}}]

or {"skip": rule}, {"absent": rule}, {"unsupported": why}, {"unmappable": field, "why": why}. With `--update` it is
written. The left-hand side is a resource, or a Bundle: first the resource, then what its mapping may fetch, search for
or find in the resource's history.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import BadResource, InvalidResource, Unmappable
from worker.legacy import File, Unsupported
from worker.mapping.context import Context
from worker.mapping.link import Link
from worker.mapping.results import Absent, Mapped, MappedRecord, Skip
from worker.mapping.route import Route, apply, run
from worker.mapping.surroundings import Surroundings, as_bytes, asked, plain

if TYPE_CHECKING:
    import pytest
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

MEDPLUM = "https://api.medplum.com/"
_DAY = re.compile(r"(\d{4})-\d{2}-\d{2}(T.*)?")
_LEFT, _RIGHT = ".fhir.json", ".legacy.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer `--update`; a conftest imports this function, or pytest is called with `-p worker.mapping.pairs`."""
    with suppress(ValueError):  # the other way has offered it already
        parser.addoption("--update", action="store_true", help="write what mappings return into their fixture pairs")


def pairs(route: Route[Any], folder: str | Path, *, medplum: str = MEDPLUM) -> Callable[..., None]:
    """Make the test of a route's fixture pairs.

    Args:
        route: what `@route` made.
        folder: where the pairs are; a relative one is taken from the file that calls this.
        medplum: the base URL under which absolute references are ours.
    """
    import pytest

    caller = Path(sys._getframe(1).f_globals["__file__"])
    cases = sorted((caller.parent / folder).glob(f"*{_LEFT}"))
    if not cases:
        raise FileNotFoundError(f"no {_LEFT} in {folder}")

    @pytest.mark.parametrize("damaged", [False, True], ids=["maps", "damaged"])
    @pytest.mark.parametrize("case", cases, ids=[case.name.removesuffix(_LEFT) for case in cases])
    def test(case: Path, damaged: bool, request: pytest.FixtureRequest) -> None:
        """A resource maps to what stands beside it; damaged, it is mapped or refused in words."""
        if damaged:
            survives_damage(route, case, medplum)
        else:
            _compare(route, case, medplum, update=bool(request.config.getoption("--update", default=False)))

    return test


def mapped(route: Route[Any], body: bytes, medplum: str = MEDPLUM) -> object:
    """Map the bytes of a resource; return the right-hand side of its pair."""
    around = Surroundings.read(body)
    resource = around.model()
    try:
        result = asked(partial(apply, route, resource), _context(route, resource, medplum), around.answer)
    except Unmappable as refusal:
        return {"unmappable": refusal.field, "why": refusal.why}
    match result:
        case Skip(rule):
            return {"skip": rule}
        case Absent(rule):
            return {"absent": rule}
        case Unsupported(why):
            return {"unsupported": why}
        case Mapped(records):
            return [_shown(record) for record in records]


def survives_damage(route: Route[Any], case: Path, medplum: str = MEDPLUM) -> None:
    """Leave each element out once, cut each date to month and year: the mapping answers or refuses, and never crashes.

    Raises:
        AssertionError: names the damage that it crashed on.
    """
    tried, around = 0, Surroundings.read(case.read_bytes())
    for damage, body in damages(around.resource):
        try:
            resource = Surroundings.read(body).model()
        except (BadResource, InvalidResource):
            continue  # the models refuse it first
        tried += 1
        try:
            asked(partial(run, route, resource), _context(route, resource, medplum), around.answer)
        except Unmappable:
            continue
        except Exception as error:
            raise AssertionError(f"{case.name}: {damage}: the mapping crashed with {type(error).__name__}") from error
    assert tried, f"{case.name}: nothing in it can be damaged"  # noqa: S101 — a test


def damages(resource: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield each damage of a resource in words, and the damaged resource."""
    for path in _paths(resource):
        if path in (("resourceType",), ("id",)):
            continue
        found = _found(resource, path)
        for said, replacement in (("left out", None), *_cuts(found)):
            broken = copy.deepcopy(resource)
            parent = _found(broken, path[:-1])
            if replacement is None:
                del parent[path[-1]]
            else:
                parent[path[-1]] = replacement
            yield f"{'.'.join(map(str, path))} {said}", as_bytes(broken)


def _cuts(value: object) -> list[tuple[str, str]]:
    day = _DAY.fullmatch(value) if isinstance(value, str) else None
    return [("cut to its month", day[0][:7]), ("cut to its year", day[1])] if day else []


def _paths(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    entries: Iterator[tuple[str | int, object]] = iter(())
    if isinstance(value, dict):
        entries = iter(value.items())
    elif isinstance(value, list):
        entries = iter(enumerate(value))
    for name, entry in entries:
        yield (*at, name)
        yield from _paths(entry, (*at, name))


def _found(value: Any, path: tuple[str | int, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def _compare(route: Route[Any], case: Path, medplum: str, *, update: bool) -> None:
    found = mapped(route, case.read_bytes(), medplum)
    beside = case.with_name(case.name.removesuffix(_LEFT) + _RIGHT)
    if update:
        beside.write_text(json.dumps(found, indent=2, ensure_ascii=False, default=plain) + "\n", encoding="utf-8")
    expected = json.loads(beside.read_text(encoding="utf-8"), parse_float=Decimal)
    assert found == expected, f"{case.name} maps to something else: mend the mapping, or run with --update"  # noqa: S101


def _shown(record: MappedRecord) -> dict[str, object]:
    slot = {"slot": record.slot} if record.slot else {}
    parents = {name: f"→ {reference}" for name, reference in record.parents.items()}
    fields = {name: _linked(value) for name, value in record.fields.items()}
    return {"record": record.collection.name, **slot, "fields": {**parents, **fields}}


def _linked(value: object) -> object:
    if isinstance(value, Link):
        return f"→ {value.reference} ({value.key})"
    if isinstance(value, File):
        return str(value)
    if isinstance(value, dict):
        return {name: _linked(entry) for name, entry in value.items()}
    return [_linked(entry) for entry in value] if isinstance(value, list) else value


def _context(route: Route[Any], resource: FHIRAbstractModel, medplum: str) -> Context:
    return Context.of(resource, zone=route.to.api.zoneinfo, medplum=medplum)
