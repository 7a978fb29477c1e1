"""What a route may ask of its legacy API: options that it cannot carry out are refused when the routes are loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.errors import RoutesInvalid
from worker.mapping import Conflict, Routes, WriteBack, load_routes

MODULE = """
from worker.legacy import Call, Find, LegacyApi, Unsupported
from worker.mapping import Conflict, WriteBack, link, route
from worker.mapping.r4 import Patient

api = LegacyApi("clinic", base_url="https://clinic.example.com", auth=None, zone="UTC")
people = api.collection(
    "person", keys=("id",), create="POST /{home.id}/people", update="PUT /people/{id}",
    delete=DELETE, find=Unsupported("no look-up"), READ
)


@route(Patient, to=people, OPTIONS)
def person(p, ctx):
    return {"home": link(p.managingOrganization), "name": "x"}
"""
READ = 'read="GET /people/{id}"'
UNDELETE = 'undelete="POST /people/{id}/undelete"'


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Routes]]:
    """Load a module of one route with these options."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(options: str, *, more: str = "", delete: str = '"DELETE /people/{id}"') -> Routes:
        source = MODULE.replace("OPTIONS", options).replace("DELETE,", f"{delete},").replace("READ", more)
        (tmp_path / "optional.py").write_text(source)
        return load_routes("optional")

    yield load
    sys.modules.pop("optional", None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("conflict=Conflict.HOLD", r"optional\.py:\d+: person: conflict=HOLD .* needs read"),
        ("conflict=Conflict.OVERWRITE", "conflict=OVERWRITE .* needs read"),
        ('restored="undelete"', 'restored="undelete" needs undelete'),
        ('identifier=WriteBack("https://a.example/id", key="uuid")', 'no key "uuid"'),
        ('identifier=WriteBack("person id")', r"optional\.py:\d+: .*should be an absolute URI"),
    ],
)
def test_an_option_that_the_api_cannot_carry_out_is_refused(
    load: Callable[..., Routes], options: str, said: str
) -> None:
    """File and line are named, and what is lacking."""
    with pytest.raises(RoutesInvalid, match=said):
        load(options)


def test_a_move_needs_a_delete(load: Callable[..., Routes]) -> None:
    """A record that cannot be deleted cannot be moved."""
    with pytest.raises(RoutesInvalid, match='moved="replace" needs a create and a delete'):
        load('moved="replace"', delete='Unsupported("kept")')


def test_options_are_those_of_the_route(load: Callable[..., Routes]) -> None:
    """What is declared is what the sync asks."""
    options = (
        'conflict=Conflict.HOLD, expunged="absent", moved="replace", restored="undelete", imported="hold", '
        'identifier=WriteBack("urn:oid:1.2.3", key="id")'
    )
    route = load(options, more=f"{READ}, {UNDELETE}")["Patient"]
    assert route.identifier == WriteBack("urn:oid:1.2.3", "id")
    given: list[Any] = [route.conflict, route.expunged, route.moved, route.restored, route.imported]
    assert given == [Conflict.HOLD, "absent", "replace", "undelete", "hold"]


def test_nothing_is_asked_by_default(load: Callable[..., Routes]) -> None:
    """Without options nobody reads for conflicts, nothing is moved or expunged, and what lives again is made anew."""
    route = load("")["Patient"]
    given: list[Any] = [route.conflict, route.expunged, route.moved, route.restored, route.imported, route.identifier]
    assert given == [Conflict.OFF, "hold", "hold", "create", "update", None]
