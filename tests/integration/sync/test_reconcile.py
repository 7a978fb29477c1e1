"""Both sides compared between real processes: each way in which they can disagree is found, named, and mended."""

from __future__ import annotations

import pytest

from tests.integration.sync.reconciling import reconciles, said
from tests.integration.sync.story import CONDITION, OTHER, PATIENT, PUT_PATIENT, Story, condition, patient
from worker.medplum.marked import CHECK, tag

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


def test_where_nothing_differs_nothing_is_found(story: Story) -> None:
    """Two sides that agree give equal records and no finding, and no write to either."""
    story.changes(patient(), patient("p2"), condition())
    story.settles()
    writes = story.writes()
    run = reconciles(story)
    assert said(story, run) == []
    assert {name: numbers["equal"] for name, numbers in run.counts.items() if "equal" in numbers} == {
        "Patient": 2,
        "Condition": 1,
    }
    assert story.writes() == writes


@on_both
def test_a_record_that_was_edited_differs(story: Story) -> None:
    """The field is named and no value is kept; the sync, given it, writes it anew."""
    story.changes(patient())
    story.settles()
    number = story.record()["number"]
    story.edits(f"patient/{number}", last_name="Roe")
    assert said(story, reconciles(story)) == [(PATIENT, "differs", ("last_name",), "due")]
    assert story.state() == "current"
    reconciles(story, repair=True)
    story.settles()
    assert story.record()["last_name"] == "Doe"
    assert said(story, reconciles(story)) == []


def test_a_write_that_acted_after_all_when_nobody_heard_it_is_found(story: Story) -> None:
    """What only a comparison sees (protocol M8c): an old write has the last word, and the sync believes its own."""
    story.changes(patient())
    story.settles()
    story.clock.forward(60)
    story.breaks("reset_before", PUT_PATIENT)
    story.changes(patient(family="Roe"))
    story.syncs()
    story.changes(patient(family="Poe"))
    story.settles()
    assert story.record()["last_name"] == "Poe"
    story.lands()
    assert (story.state(), story.record()["last_name"]) == ("current", "Roe")
    assert said(story, reconciles(story)) == [(PATIENT, "differs", ("last_name",), "due")]
    reconciles(story, repair=True)
    story.settles()
    story.agrees()


def test_a_version_that_was_never_heard_of_differs_and_its_row_says_where_it_came_from(story: Story) -> None:
    """A change whose notification was lost is found, and counted as found by reconciling."""
    story.changes(patient())
    story.settles()
    story.saves(patient(family="Roe"))
    assert said(story, reconciles(story)) == [(PATIENT, "differs", ("last_name",), "due")]
    reconciles(story, repair=True)
    story.settles()
    story.agrees()
    assert story.shown(PATIENT)["changes"][-1]["source"] == "reconcile"


def test_what_changed_a_moment_ago_is_in_flight(story: Story) -> None:
    """A change whose notification may be on its way is no finding."""
    story.changes(patient())
    story.settles()
    story.saves(patient(family="Roe"))
    assert said(story, reconciles(story, fresh_s=30.0)) == [(PATIENT, "in flight", (), "nothing")]


def test_what_the_ledger_knows_is_in_flight_or_a_persons(story: Story) -> None:
    """What is due, and what failed, is told in the ledger's words and not taken for a difference."""
    story.changes(patient(), patient("p2"))
    story.settles()
    story.changes(patient(family="Roe"), patient("p2", gender="x"))
    story.syncs(OTHER)
    assert story.state(OTHER) == "failed"
    assert [line[:2] for line in said(story, reconciles(story))] == [
        (PATIENT, "in flight"),
        (OTHER, "needs a person"),
    ]


@on_both
def test_a_resource_that_nobody_heard_of_is_missing(story: Story) -> None:
    """A resource without link or mirror is found by Medplum's own search, and made by the sync."""
    story.saves(patient())
    assert said(story, reconciles(story)) == [(PATIENT, "missing", (), "due")]
    assert story.ledger.show(PATIENT) is None
    reconciles(story, repair=True)
    story.settles()
    assert len(story.records()) == 1
    assert said(story, reconciles(story)) == []


def removes_record(story: Story, record: str) -> None:
    assert story.clinic.post("/sandbox/edit", json={"record": record, "remove": True}).is_success


def test_a_test_resource_of_the_doctor_is_not_missing(story: Story) -> None:
    """`check --end-to-end` may have one in Medplum just now: no sync would ever write it."""
    story.changes(patient(meta={"tag": [tag(CHECK)]}))
    assert said(story, reconciles(story)) == []


def test_a_record_that_was_removed_is_missing_and_is_made_again(story: Story) -> None:
    """Its link is given up, and the next attempt makes another record after it looked for one."""
    story.changes(patient())
    story.settles()
    removes_record(story, f"patient/{story.record()['number']}")
    assert said(story, reconciles(story)) == [(PATIENT, "missing", (), "forget")]
    reconciles(story, repair=True)
    story.settles()
    assert len(story.records()) == 1
    assert said(story, reconciles(story)) == []


def test_where_many_records_are_gone_only_some_are_made_again(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A legacy system that was emptied is not filled again by one command: the rest is told to a person."""
    monkeypatch.setattr("worker.reconcile.passes.FORGET_MOST", 2)
    story.changes(*(patient(f"p{number}") for number in range(5)))
    story.settles()
    for record in story.records():
        removes_record(story, f"patient/{record['number']}")
    run = reconciles(story, "Patient", repair=True)
    assert sorted(mend for _, _, _, mend in said(story, run)) == ["forget", "forget", "person", "person", "person"]
    story.settles()
    assert len(story.records()) == 2


def test_a_parent_that_was_removed_is_made_again_with_what_stood_under_it(story: Story) -> None:
    """A patient and the problems that went with its chart are all missing, and all come again."""
    story.changes(patient(), condition())
    story.settles()
    problem = story.records("problem")[0]
    removes_record(story, f"problem/{problem['id']}")
    removes_record(story, f"patient/{story.record()['number']}")
    assert [line[:2] for line in said(story, reconciles(story))] == [(CONDITION, "missing"), (PATIENT, "missing")]
    reconciles(story, repair=True)
    story.settles()
    reconciles(story, repair=True)  # the problem was under way with its patient
    story.settles()
    assert said(story, reconciles(story)) == []
    story.agrees()


def test_a_record_that_only_stands_there_as_deleted_is_missing(story: Story) -> None:
    """Somebody made the patient inactive: every field agrees, and the record is not there."""
    story.changes(patient())
    story.settles()
    story.edits(f"patient/{story.record()['number']}", status="inactive")
    assert said(story, reconciles(story)) == [(PATIENT, "missing", (), "forget")]


def test_a_delete_that_was_never_heard_of_leaves_an_extra_record(story: Story) -> None:
    """The record of a resource that is deleted in Medplum is extra; the sync deletes it."""
    story.changes(patient(), condition())
    story.settles()
    story.removes(CONDITION)
    assert said(story, reconciles(story)) == [(CONDITION, "extra", (), "due")]
    reconciles(story, repair=True)
    story.settles()
    assert story.records("problem") == []
    assert said(story, reconciles(story)) == []


@on_both
def test_a_record_that_lives_again_under_a_grave_is_extra(story: Story) -> None:
    """Somebody brought back what the sync had deleted: its link is taken up again, and the sync deletes it again."""
    story.changes(patient())
    story.settles()
    number = story.record()["number"]
    story.deletes(PATIENT)
    story.settles()
    assert story.records() == []
    assert said(story, reconciles(story)) == []
    story.edits(f"patient/{number}", status="active")
    assert said(story, reconciles(story)) == [(PATIENT, "extra", (), "relink")]
    reconciles(story, repair=True)
    story.settles()
    assert story.records() == []
    assert said(story, reconciles(story)) == []


def post(story: Story, path: str, body: dict[str, object]) -> dict[str, object]:
    answer = story.clinic.post(f"/api/{path}", json=body, headers={"X-Api-Key": "clinic-key"})
    assert answer.is_success, answer.text
    made: dict[str, object] = answer.json()["data"]
    return made


def test_records_that_no_link_owns_are_duplicates_or_extra(story: Story) -> None:
    """A twin of ours is a duplicate, what is nobody's is extra: at the top and under a patient. A person mends both."""
    story.changes(patient(), condition())
    story.settles()
    uuid = story.record()["uuid"]
    twin = post(story, "patients", {"last_name": "Doe", "sex": "F", "external_id": "p1"})
    other = post(story, "patients", {"last_name": "Poe", "sex": "M"})
    second = post(story, f"patients/{uuid}/problems", {"title": "Gout", "onset": "01/01/2019"})
    stray = post(story, f"patients/{uuid}/problems", {"title": "Asthma", "onset": "01/01/2019"})
    run = reconciles(story, repair=True)
    assert said(story, run) == [
        (CONDITION, "duplicate", (), "person"),
        (PATIENT, "duplicate", (), "person"),
        (f"patient {other['number']}", "extra", (), "person"),
        (f"problem {stray['id']}", "extra", (), "person"),
    ]
    assert {twin["number"], second["id"]}.isdisjoint({other["number"], stray["id"]})
    assert run.counts["Patient"]["listed"] == 3


def test_a_record_whose_link_is_lost_is_not_made_twice(story: Story) -> None:
    """The record agrees and no link owns it: extra, and nothing that a repair would create a second one of."""
    story.changes(patient())
    story.settles()
    for table in ("links", "writes", "dependencies"):
        story.sql(f"DELETE FROM {table}")  # noqa: S608
    assert said(story, reconciles(story, repair=True)) == [(PATIENT, "extra", (), "person")]
    story.settles()
    assert len(story.records()) == 1
