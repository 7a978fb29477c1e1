"""What a mapping asks about besides its own resource: answered, noted, and looked at again when it changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.story import PATIENT, PRACTITIONER, Story, patient, practitioner, reference
from worker.ledger.values import Phase
from worker.mapping import Context, Result, part_of
from worker.mapping.r4 import Coverage, Patient, Practitioner, Reference
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
CARD, OTHER_CARD = "Coverage/k1", "Coverage/k2"
Asks = Callable[[Patient, Context], str | None]


def coverage(id_: str = "k1", of: str = PATIENT, plan: str = "Gold") -> dict[str, Any]:
    return {
        "resourceType": "Coverage",
        "id": id_,
        "status": "active",
        "beneficiary": {"reference": of},
        "payor": [{"reference": "Organization/o1"}],
        "network": plan,
    }


def asks(story: Story, question: Asks) -> None:
    """Let the patient's mapping put the answer to a question where the middle name would stand."""
    route = story.routes["Patient"]

    def mapping(p: Patient, ctx: Context) -> Result:
        fields = route.function(p, ctx)
        assert isinstance(fields, Mapping)
        return {**fields, "middle_name": question(p, ctx)}

    story.deploys({**story.routes, "Patient": replace(route, function=mapping)})


def has_parts(story: Story) -> None:
    """Declare that a coverage is part of its patient."""
    part = part_of(Coverage, lambda c: c.beneficiary)
    story.parts = {"Coverage": part}
    types = {name: (Phase.LIVE, route.version) for name, route in story.routes.items()}
    story.ledger.register_routes(types | {"Coverage": (Phase.LIVE, "part")})


def doctor(p: Patient, ctx: Context) -> str | None:
    found = ctx.fetch(Reference.model_validate({"reference": PRACTITIONER}), Practitioner)
    return found.name[0].family if found and found.name else "nobody"


def plans(p: Patient, ctx: Context) -> str | None:
    return " ".join(str(each.network) for each in ctx.search(Coverage, by="patient")) or None


def dependencies(story: Story, of: str = PATIENT) -> list[tuple[str, str]]:
    rows = story.sql("SELECT depends_on, kind FROM dependencies WHERE reference = :of ORDER BY depends_on", of=of)
    return [(row.depends_on, row.kind) for row in rows]


@on_both
def test_a_fetched_resource_is_read_and_noted(story: Story) -> None:
    """The mapping gets what Medplum holds of the fetched resource, and the ledger knows that it was read."""
    asks(story, doctor)
    story.saves(practitioner())
    story.changes(patient())
    assert story.syncs().kind is End.DONE
    assert story.record()["middle_name"] == "Okafor"
    assert dependencies(story) == [(PRACTITIONER, "fetch")]


@on_both
def test_a_change_of_a_fetched_resource_writes_whoever_read_it(story: Story) -> None:
    """When the fetched resource settles with another version, the record that was made of it is written anew."""
    asks(story, doctor)
    story.changes(practitioner(), patient())
    story.settles()
    story.changes(practitioner(family="Roe"))
    story.settles()
    assert story.record()["middle_name"] == "Roe"


def test_a_repeated_hint_of_a_fetched_resource_wakes_nobody(story: Story) -> None:
    """A version that was settled before is no news to those who read it."""
    asks(story, doctor)
    story.changes(practitioner(), patient())
    story.settles()
    story.hears(PRACTITIONER, None)  # a forged delete of a resource that lives
    story.syncs(PRACTITIONER)
    assert story.state() == "current"


def test_a_fetched_resource_that_fails_has_changed_all_the_same(story: Story) -> None:
    """What needs a person on its own way is news to those who read it."""
    asks(story, doctor)
    story.changes(practitioner(), patient())
    story.settles()
    story.breaks("status", {"method": "PUT"}, status=422)
    story.changes(practitioner(family="Roe"))
    assert story.syncs(PRACTITIONER).kind is End.FAILED
    story.settles()
    assert story.record()["middle_name"] == "Roe"


def test_a_fetched_resource_that_was_deleted_is_none(story: Story) -> None:
    """A deletion is an answer; who had read the resource before is written anew."""
    asks(story, doctor)
    story.changes(practitioner(), patient())
    story.settles()
    story.deletes(PRACTITIONER)
    story.settles()
    assert story.record()["middle_name"] == "nobody"


def test_a_fetched_resource_that_is_nowhere_fails_in_words(story: Story) -> None:
    """Absent is never taken for deleted: the version fails, and goes on by itself once the resource comes."""
    asks(story, doctor)
    story.changes(patient())
    ended = story.syncs()
    assert ended.kind is End.FAILED
    assert "absent: the mapping fetches Practitioner/d1, which Medplum does not show" in ended.words
    assert story.dispositions() == ["failed"]
    story.changes(practitioner())
    story.settles()
    assert story.record()["middle_name"] == "Okafor"


def test_nothing_is_written_yet_the_read_is_noted(story: Story) -> None:
    """A mapping that reads and then leaves the record as it is depends on what it read."""
    story.changes(practitioner(), patient(name=[{"family": "Doe", "given": ["Jane", "Okafor"]}]))
    story.settles()
    before = len(story.writes())
    asks(story, doctor)
    story.changes(patient(active=True))
    story.settles()
    assert len(story.writes()) == before
    assert dependencies(story) == [(PRACTITIONER, "fetch")]


def test_a_mapping_that_asks_without_end_is_refused(story: Story) -> None:
    """Whatever is asked, an attempt comes to an end."""
    numbers = itertools.count()

    def endless(p: Patient, ctx: Context) -> str | None:
        while True:
            ctx.fetch(Reference.model_validate({"reference": f"Practitioner/n{next(numbers)}"}), Practitioner)

    asks(story, endless)
    story.saves(*(practitioner(f"n{number}") for number in range(60)))
    story.changes(patient())
    ended = story.syncs()
    assert (ended.kind, "without end" in ended.words) == (End.FAILED, True)


def test_the_history_tells_since_when(story: Story) -> None:
    """`since` reads the resource's versions, and does not drift with a version that changes something else."""

    def active(version: Patient) -> bool:
        return version.active is True

    asks(story, lambda p, ctx: ctx.since(active).isoformat() if p.active else None)
    story.changes(patient())
    story.changes(patient(active=True))
    story.settles()
    since = story.record()["middle_name"]
    story.changes(patient(active=True, family="Roe"))
    story.settles()
    assert story.record()["last_name"] == "Roe"
    assert since
    assert story.record()["middle_name"] == since


def test_a_search_that_medplum_does_not_take_is_refused(story: Story) -> None:
    """A parameter that does not exist is the mapping's mistake, and no reason to try for ever."""
    asks(story, lambda p, ctx: str(len(ctx.search(Coverage, by="nonsense"))))
    story.changes(patient())
    ended = story.syncs()
    assert (ended.kind, "Coverage by nonsense" in ended.words) == (End.FAILED, True)


@on_both
def test_parts_make_their_owner_due(story: Story) -> None:
    """A new part, a changed one, one that moves and one that is deleted: each time the owners are written anew."""
    has_parts(story)
    asks(story, plans)
    story.changes(patient(), patient("p2"))
    story.settles()
    held = {}

    def middle_names() -> dict[str, str | None]:
        story.settles()
        return {record["external_id"]: record["middle_name"] for record in story.records()}

    story.changes(coverage())
    held["new"] = middle_names()
    story.changes(coverage("k2", plan="Silver"))
    held["second"] = middle_names()
    story.changes(coverage(plan="Tin"))
    held["changed"] = middle_names()
    story.changes(coverage(of="Patient/p2", plan="Tin"))
    held["moved"] = middle_names()
    story.deletes(OTHER_CARD)
    held["deleted"] = middle_names()
    assert held == {
        "new": {"p1": "Gold", "p2": None},
        "second": {"p1": "Gold Silver", "p2": None},
        "changed": {"p1": "Tin Silver", "p2": None},
        "moved": {"p1": "Silver", "p2": "Tin"},
        "deleted": {"p1": None, "p2": "Tin"},
    }
    assert {change["rule"] for change in story.shown(CARD)["changes"]} == {"part of its Patient"}
    assert story.dispositions(OTHER_CARD)[-1] == "skipped"


def test_a_part_that_comes_first_brings_its_owner(story: Story) -> None:
    """A part of a resource that was never heard of makes that resource due as well."""
    has_parts(story)
    asks(story, plans)
    story.saves(patient())
    story.changes(coverage())
    story.settles()
    assert story.record()["middle_name"] == "Gold"


def test_what_changed_before_it_was_noted_is_searched_again(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a search and its note somebody can change whom nobody knew: the search is made once more."""
    asks(story, plans)
    story.saves(coverage())
    noted = type(story.ledger).note_read

    def changes_first(ledger: Any, of: str, on: Any, kind: str) -> bool:
        new = noted(ledger, of, on, kind)
        if new:
            story.saves(coverage(plan="Tin"))
        return new

    monkeypatch.setattr(type(story.ledger), "note_read", changes_first)
    story.changes(patient())
    story.settles()
    assert story.record()["middle_name"] == "Tin"


def test_two_that_read_each_other_come_to_rest(story: Story) -> None:
    """News goes round once: a resource that settles with the version it had tells nobody."""
    asks(story, doctor)
    story.changes(practitioner(), patient())
    story.settles()
    story.ledger.note_read(PRACTITIONER, [PATIENT], "fetch")
    story.ledger.note_read(PATIENT, [PATIENT], "fetch")
    story.changes(patient(family="Roe"))
    story.settles()
    assert (story.state(), story.state(PRACTITIONER)) == ("current", "current")
    assert reference(practitioner()) == PRACTITIONER
