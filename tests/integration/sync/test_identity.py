"""Records whose identity fields are not ours are never changed or deleted: both APIs, every policy. 3i."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.acceptance.legacies import PRACTICE
from tests.integration.sync.conftest import sandbox
from tests.integration.sync.declared import declare
from tests.integration.sync.story import CLINIC_KEY, Story, only, patient, practitioner, reference
from tests.integration.sync.test_example import booking, visit
from worker.ledger import Selection
from worker.legacy import Call
from worker.mapping import Conflict, Routes, load_routes

SITES = {
    "clinic": ("worker.mappings", {"URL": "{url}/api", "KEY": CLINIC_KEY}),
    "practice": (PRACTICE.routes, PRACTICE.site),
}
CHANGED: Mapping[str, tuple[dict[str, Any], Mapping[str, Any]]] = {
    "Practitioner": (practitioner("d2"), {"name": [{"family": "Adeyemi", "given": ["Ngozi"]}]}),
    "Patient": (patient("p3"), {"name": [{"family": "Roe", "given": ["Jane"]}]}),
    "Appointment": (booking(), {"end": "2026-12-02T04:15:00Z"}),
    "Encounter": (visit(), {"status": "finished"}),
}
CASES = [
    (legacy, kind, change)
    for legacy in sorted(SITES)
    for kind in sorted(CHANGED)
    for change in ("update", "delete")
    # the practice has no visits, and the clinic deletes none
    if kind != "Encounter" or (legacy, change) == ("clinic", "update")
]
IDENTITY = {("clinic", "Practitioner"): "external_ref", ("practice", "Appointment"): "reference"}


@pytest.fixture(scope="module")
def legacy(request: pytest.FixtureRequest) -> str:
    """Name the legacy system; each test says which."""
    return str(request.param)


@pytest.fixture(scope="module")
def clinic_url(legacy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    options = ["--api-key", CLINIC_KEY] if legacy == "clinic" else []
    with sandbox(legacy, tmp_path_factory.mktemp(legacy), *options) as url:
        yield url


@pytest.fixture(scope="module")
def clinic(clinic_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=clinic_url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def routes(legacy: str, clinic_url: str) -> Iterator[Routes]:
    """The routes to this legacy system, loaded anew and left out of sight of other tests."""
    module, site = SITES[legacy]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.items():
            patch.setenv(f"REVERSE_SYNC_SITE_{legacy.upper()}_{name}", value.format(url=clinic_url))
        before = {name: found for name, found in sys.modules.items() if name.startswith(module)}
        for name in before:
            del sys.modules[name]
        loaded = load_routes(module)
        for name in [name for name in sys.modules if name.startswith(module)]:
            del sys.modules[name]
        sys.modules.update(before)
    yield loaded
    loaded["Patient"].to.api.close()


@pytest.fixture
def another_s(story: Story, legacy: str, kind: str) -> dict[str, Any]:
    """Have a record under our key that has become another's. Returns what it says."""
    resource, _ = CHANGED[kind]
    story.changes(practitioner(), patient(), resource)
    story.settles()
    link = only(story.links(reference(resource)))
    record = f"{link['collection']}/{next(iter(link['keys'].values()))}"
    story.edits(record, **{IDENTITY.get((legacy, kind), "external_id"): "another"})
    story.clock.forward(3600)
    return found(story, record)


def found(story: Story, record: str) -> dict[str, Any]:
    return next(line for line in story.lines("records") if line["record"] == record)


@pytest.mark.parametrize("conflict", Conflict)
@pytest.mark.parametrize(("legacy", "kind", "change"), CASES, indirect=["legacy"])
def test_a_record_that_is_not_ours_is_never_touched(
    story: Story, kind: str, change: str, conflict: Conflict, another_s: dict[str, Any]
) -> None:
    """Whatever the route says of conflicts, an update and a delete are held with that reason, and nothing is sent."""
    resource, news = CHANGED[kind]
    declare(story, kind, conflict=conflict)
    before = story.writes()
    if change == "update":
        story.changes({**resource, **news})
    else:
        story.deletes(reference(resource))
    story.settles()
    mirror = story.mirror(reference(resource))
    assert (mirror["state"], mirror["reason"]) == ("held", "identity")
    assert story.writes() == before
    assert found(story, another_s["record"]) == another_s


@pytest.mark.parametrize("conflict", Conflict)
@pytest.mark.parametrize(("legacy", "kind"), [("clinic", "Appointment")], indirect=["legacy"])
def test_a_deleted_record_that_is_not_ours_is_never_brought_back(
    story: Story, kind: str, conflict: Conflict, another_s: dict[str, Any]
) -> None:
    """An undelete of a record that was given to somebody else meanwhile is held as well."""
    declare(story, kind, conflict=conflict)
    resource, news = CHANGED[kind]
    story.edits(another_s["record"], external_id=resource["id"])
    story.deletes(reference(resource))
    story.settles()
    story.edits(another_s["record"], external_id="another")
    cancelled, before = found(story, another_s["record"]), story.writes()
    assert cancelled["status"] == "cancelled"
    story.clock.forward(3600)
    story.changes({**resource, **news})
    story.settles()
    mirror = story.mirror(reference(resource))
    assert (mirror["state"], mirror["reason"]) == ("held", "identity")
    assert story.writes() == before
    assert found(story, another_s["record"]) == cancelled


@pytest.mark.parametrize("conflict", Conflict)
@pytest.mark.parametrize(
    ("legacy", "kind"),
    [("clinic", "Patient"), ("practice", "Patient"), ("practice", "Appointment")],
    indirect=["legacy"],
)
def test_an_expunged_resource_takes_no_record_of_anothers(
    story: Story, kind: str, conflict: Conflict, another_s: dict[str, Any]
) -> None:
    """Where the route deletes what Medplum shows no more, a record that is not ours stays, and is held."""
    resource, _ = CHANGED[kind]
    declare(story, kind, conflict=conflict, expunged="absent")
    before = story.writes()
    story.faults(hidden={"sync": [reference(resource)]})
    story.hears(reference(resource), None)
    story.settles()
    mirror = story.mirror(reference(resource))
    assert (mirror["state"], mirror["reason"]) == ("held", "identity")
    assert story.writes() == before
    assert found(story, another_s["record"]) == another_s


@pytest.mark.parametrize(("legacy", "kind"), [("clinic", "Encounter")], indirect=["legacy"])
@pytest.mark.parametrize("replayed", [False, True])
def test_neither_a_move_nor_a_replay_touches_a_record_of_anothers(
    story: Story, kind: str, replayed: bool, another_s: dict[str, Any]
) -> None:
    """A person's replay lets no other identity pass, and a visit of another patient now does not take it along."""
    resource, news = CHANGED[kind]
    declare(story, kind, to={"delete": Call("DELETE /patients/{patient.uuid}/visits/{id}")}, moved="replace")
    before = story.writes()
    if not replayed:
        story.changes(patient("p9"))
        story.settles()
        before = story.writes()
    story.changes({**resource, **news} if replayed else {**resource, "subject": {"reference": "Patient/p9"}})
    story.settles()
    if replayed:
        story.ledger.replay(Selection(references=(reference(resource),)), who="ana", why="I want it")
        story.settles()
    mirror = story.mirror(reference(resource))
    assert (mirror["state"], mirror["reason"]) == ("held", "identity")
    assert story.writes() == before
    assert found(story, another_s["record"]) == another_s
