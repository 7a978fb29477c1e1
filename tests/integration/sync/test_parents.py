"""Resources that stand on others: who waits for whom, who wakes whom, and what never gets better. `protocol.md` 8."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.story import (
    CONDITION,
    OTHER,
    PATIENT,
    PRACTITIONER,
    Story,
    condition,
    only,
    patient,
    practitioner,
)
from worker.mapping import Context, Routes, link
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
WITH_DOCTOR: dict[str, Any] = {"generalPractitioner": [{"reference": PRACTITIONER}]}


@on_both
def test_a_child_before_its_parent_waits_and_wakes(story: Story) -> None:
    """A condition whose patient nobody told of waits, has the patient looked at, and is written behind it."""
    story.saves(patient())
    story.changes(condition())
    assert story.syncs(CONDITION).kind is End.WAITING
    assert story.mirror(CONDITION)["waiting_for"] == PATIENT
    assert story.state() == "due"
    assert story.syncs().kind is End.DONE
    assert story.state(CONDITION) == "due"
    assert story.syncs(CONDITION).kind is End.DONE
    assert [line["template"] for line in story.calls("POST")] == [
        "/api/patients",
        "/api/patients/{uuid}/problems",
    ]
    story.agrees()


def test_a_chain_is_written_from_its_root(story: Story) -> None:
    """Condition, patient, practitioner: heard in the wrong order, written in the right one."""
    story.changes(condition(), patient(**WITH_DOCTOR), practitioner())
    for each in (CONDITION, PATIENT, PRACTITIONER):
        story.syncs(each)
    story.settles()
    assert story.record()["provider_id"] == story.record("provider")["id"]
    story.agrees()


def test_a_parent_without_a_route_fails_its_child(story: Story) -> None:
    """What will never have a record is not waited for: failed, and the reference named."""
    story.changes(condition(of="Group/g1"))
    assert story.syncs(CONDITION).kind is End.FAILED
    assert story.mirror(CONDITION)["reason"] == "parent"
    assert "Group/g1" in story.mirror(CONDITION)["detail"]
    assert story.dispositions(CONDITION) == ["failed"]


@on_both
def test_the_child_of_a_deleted_parent_fails_until_there_is_a_link(story: Story) -> None:
    """A parent that is settled without a record fails its child as failed, and a new link wakes it all the same."""
    story.saves(patient())
    story.deletes(PATIENT)
    story.settles()
    story.changes(condition())
    assert story.syncs(CONDITION).kind is End.FAILED
    assert story.dispositions(CONDITION) == ["failed"]
    story.changes(patient())
    assert story.syncs().kind is End.DONE
    assert story.state(CONDITION) == "due"
    story.settles()
    assert story.dispositions(CONDITION) == ["applied"]
    story.agrees()


def test_a_link_that_comes_while_its_child_fails_is_not_missed(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between *no record* and *failed* the parent gets its record: the child is due, not failed for ever."""
    story.saves(patient())
    story.deletes(PATIENT)
    story.settles()
    story.changes(condition())
    fail = type(story.ledger).fail

    def late(ledger: object, *given: object, **named: object) -> bool:
        story.changes(patient())
        assert story.syncs().kind is End.DONE
        return fail(ledger, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(story.ledger), "fail", late)
        story.syncs(CONDITION)
    story.settles()
    story.agrees()


def test_the_child_of_a_failed_parent_waits(story: Story) -> None:
    """A parent that needs a person keeps its children waiting, and its mending wakes them."""
    story.changes(patient() | {"name": []}, condition())
    story.settles(for_s=600)
    assert (story.state(), story.state(CONDITION)) == ("failed", "waiting")
    story.changes(patient())
    story.settles()
    story.agrees()


def test_the_child_of_a_type_that_is_off_fails(story: Story) -> None:
    """A parent whose route is off is settled without a record: its child fails once it looks again."""
    story.sql("UPDATE routes SET phase = 'off' WHERE resource_type = 'Patient'")
    story.changes(patient(), condition())
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("failed", "parent")


def test_a_parent_that_is_nowhere_keeps_its_child_from_nothing_else(story: Story) -> None:
    """A reference to what Medplum does not show fails the parent by name, and the child waits for it."""
    story.changes(condition())
    story.settles(for_s=600)
    assert (story.state(), story.mirror()["reason"]) == ("failed", "absent")
    assert story.state(CONDITION) == "waiting"
    assert story.writes() == []


def test_a_circle_fails(story: Story, routes: Routes) -> None:
    """Two that wait for each other would wait for ever: the second one fails, and says so."""
    story.deploys(circular(routes))
    one = patient(link=[{"other": {"reference": OTHER}, "type": "seealso"}])
    two = patient("p2", link=[{"other": {"reference": PATIENT}, "type": "seealso"}])
    story.changes(one, two)
    assert story.syncs().kind is End.WAITING
    ended = story.syncs(OTHER)
    assert (ended.kind, story.mirror(OTHER)["reason"]) == (End.FAILED, "parent")
    assert "circle" in ended.words
    assert story.dispositions(OTHER) == ["failed"]


def test_a_resource_that_stands_on_itself_fails(story: Story, routes: Routes) -> None:
    """The smallest circle is one resource."""
    story.deploys(circular(routes))
    story.changes(patient(link=[{"other": {"reference": PATIENT}, "type": "seealso"}]))
    assert story.syncs().kind is End.FAILED
    assert story.dispositions() == ["failed"]


def test_a_condition_is_deleted_under_its_deleted_patient(story: Story) -> None:
    """The delete of a child needs its parent's key, also where the parent is buried already (5)."""
    story.changes(patient(), condition())
    story.settles()
    story.removes(PATIENT, CONDITION)
    story.hears(PATIENT, None)
    assert story.syncs().kind is End.DONE
    story.hears(CONDITION, None)
    assert story.syncs(CONDITION).kind is End.DONE
    assert story.records("problem") == []
    assert only(story.links(CONDITION))["state"] == "tombstone"


def test_a_child_of_a_restored_parent_is_not_left_under_the_old_record(story: Story) -> None:
    """A parent that got another record has its children looked at; what cannot follow it is held, and never silent."""
    story.changes(patient(), condition())
    story.settles()
    story.deletes(PATIENT)
    story.syncs()
    assert story.state(CONDITION) == "due"
    story.settles()
    story.changes(patient())
    story.settles()
    assert story.state(CONDITION) in {"held", "failed"}


@on_both
def test_who_names_a_restored_record_gets_its_new_key(story: Story) -> None:
    """Deleted and restored, a practitioner is another provider: each patient's record names the new one (8)."""
    story.changes(practitioner(), patient(**WITH_DOCTOR))
    story.settles()
    before = story.record()["provider_id"]
    story.deletes(PRACTITIONER)
    story.settles()
    assert story.state() == "current"
    assert story.writes() == ["POST", "POST", "DELETE"]
    story.changes(practitioner())
    story.settles()
    assert story.record()["provider_id"] == story.record("provider")["id"] != before
    assert story.writes() == ["POST", "POST", "DELETE", "POST", "PUT"]
    story.agrees()


def test_a_key_that_moves_during_an_attempt_is_looked_up_again(story: Story) -> None:
    """Between the look-up of a key and the announcement its record gets another: nothing is sent under the old one."""
    story.changes(practitioner(), patient(**WITH_DOCTOR))
    story.syncs(PRACTITIONER)
    keys_of = type(story.ledger).keys_of

    def then_moves(*given: Any, **named: Any) -> Any:
        found = keys_of(*given, **named)
        patch.undo()
        story.deletes(PRACTITIONER)
        story.syncs(PRACTITIONER)
        story.changes(practitioner())
        story.syncs(PRACTITIONER)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(story.ledger), "keys_of", then_moves)
        assert story.tries().kind is End.AGAIN
    assert [line["template"] for line in story.calls("POST")].count("/api/patients") == 0
    story.settles()
    story.agrees()


def test_a_child_that_moves_to_another_parent_is_held(story: Story) -> None:
    """A record is not moved between patients unless the route says how: held, nothing written (8)."""
    story.changes(patient(), patient("p2"), condition())
    story.settles()
    story.changes(condition(of=OTHER))
    assert story.syncs(CONDITION).kind is End.HELD
    assert story.mirror(CONDITION)["reason"] == "moved"
    assert story.writes() == ["POST", "POST", "POST"]


def test_a_look_that_is_due_waits_for_its_parent(story: Story) -> None:
    """The second look of a child whose patient is deleted meanwhile is no defect: it fails for want of a parent."""
    story.changes(patient(), condition())
    story.syncs()
    story.breaks("reset_before", {"method": "POST", "template": "/api/patients/{uuid}/problems"})
    story.tries(CONDITION)
    story.syncs(CONDITION)
    assert only(story.links(CONDITION))["look_at"] is not None
    story.deletes(PATIENT)
    story.settles()
    assert (story.state(CONDITION), story.mirror(CONDITION)["reason"]) == ("failed", "parent")


def circular(routes: Routes) -> Routes:
    """Let each patient's record name that of the patient whom it is linked with."""
    real = routes["Patient"]

    def linked(p: Any, ctx: Context) -> Any:
        fields: dict[str, Any] = dict(real.function(p, ctx))  # type: ignore[arg-type]
        return fields | {f"link{number}": link(each.other, "uuid") for number, each in enumerate(p.link or ())}

    return {**routes, "Patient": replace(real, function=linked)}
