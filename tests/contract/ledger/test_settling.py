"""What each change ends as when an attempt settles, row by row, and what becomes of delete hints."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.contract.ledger.story import PATIENT, START, Story, done, read
from worker.ledger import Selection
from worker.ledger.values import Disposition, Hint, Operation, Refusal, Settlement


@pytest.mark.parametrize("said", [Disposition.APPLIED, Disposition.UNCHANGED, Disposition.ECHO, Disposition.SKIPPED])
def test_the_version_that_was_read_ends_as_was_said(story: Story, said: Disposition) -> None:
    """The row of the version read gets the attempt's disposition, and the mirror knows the version."""
    story.hears("v1")
    assert story.settles(story.claims(), "v1", said)
    assert story.changes() == {"v1": said.value}
    assert story.mirror()["state"] == "current"
    assert story.mirror()["applied_version"] == "v1"


def test_a_rule_is_named_on_what_it_skips(story: Story) -> None:
    """A skipped change says by which rule."""
    story.hears("v1")
    story.ledger.finish(story.claims(), read("v1", Disposition.SKIPPED, at=story.clock(), rule="test patients"))
    [change] = story.shown()["changes"]
    assert (change["disposition"], change["rule"]) == ("skipped", "test patients")


def test_older_versions_are_superseded_by_the_row_of_what_was_read(story: Story) -> None:
    """Versions accepted before the claim and not read are superseded, and say by which row."""
    story.hears("v1", "v2", "v3")
    story.settles(story.claims(), "v2", Disposition.APPLIED)
    assert story.changes() == {"v1": "superseded", "v2": "applied", "v3": "superseded"}
    rows = {change["version_id"]: change for change in story.shown()["changes"]}
    assert rows["v1"]["superseded_by"] == rows["v3"]["superseded_by"] == rows["v2"]["id"]
    assert rows["v2"]["superseded_by"] is None


def test_a_version_accepted_after_the_claim_is_untouched(story: Story) -> None:
    """What came after the claim was perhaps not there when the attempt read: it stays open: mutant M2."""
    story.hears("v0", "v1")
    claim = story.claims()
    story.hears("v2")
    story.settles(claim, "v1", Disposition.APPLIED)
    assert story.changes() == {"v0": "superseded", "v1": "applied", "v2": None}
    assert story.mirror()["state"] == "due"


def test_a_version_accepted_after_the_claim_but_read_is_settled(story: Story) -> None:
    """The version that was read ends as applied even if its hint came after the claim; the mirror looks again."""
    story.hears("v1")
    claim = story.claims()
    story.hears("v2")
    story.settles(claim, "v2", Disposition.APPLIED)
    assert story.changes() == {"v1": "superseded", "v2": "applied"}
    assert story.mirror()["state"] == "due"


def test_a_version_that_nobody_told_of_gets_a_row(story: Story) -> None:
    """Reading a version without a row makes one, with source read, counted as accepted."""
    story.hears("v1")
    story.settles(story.claims(), "v2", Disposition.APPLIED)
    rows = {change["version_id"]: change for change in story.shown()["changes"]}
    assert (rows["v2"]["source"], rows["v2"]["disposition"]) == ("read", "applied")
    assert rows["v1"]["superseded_by"] == rows["v2"]["id"]
    assert story.ledger.status()["accepted"] == 2


def test_reading_the_same_version_again_makes_no_second_row(story: Story) -> None:
    """A settled version that is read again keeps its row and its disposition."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v0")
    story.settles(story.claims(), "v1", Disposition.UNCHANGED)
    assert story.changes() == {"v1": "applied", "v0": "superseded"}


def test_a_superseded_version_that_is_read_after_all_is_applied(story: Story) -> None:
    """A version once superseded, and current nevertheless, ends as what was done with it."""
    story.hears("v1", "v2")
    story.settles(story.claims(), "v2", Disposition.APPLIED)
    story.hears("v1")
    story.settles(story.claims(), "v1", Disposition.APPLIED)
    assert story.changes() == {"v1": "applied", "v2": "applied"}


def test_a_failure_keeps_the_version_for_a_person(story: Story) -> None:
    """The version that failed ends as failed and older ones as superseded; the mirror lists the reason."""
    story.hears("v1", "v2")
    story.ledger.fail(
        story.claims(), reason="refused", detail="422 name", settlement=read("v2", Disposition.FAILED, at=START)
    )
    assert story.changes() == {"v1": "superseded", "v2": "failed"}
    [failed] = story.ledger.failed()
    assert (failed["reference"], failed["reason"], failed["detail"]) == (PATIENT, "refused", "422 name")
    assert story.refused() is Refusal.NOT_DUE


def test_a_failure_is_never_said_to_be_anything_else(story: Story) -> None:
    """Whatever the settlement would have said, a version that needs a person ends as failed."""
    story.hears("v1")
    story.ledger.fail(
        story.claims(), reason="parent", detail="", settlement=read("v1", Disposition.UNCHANGED, at=START)
    )
    assert story.changes() == {"v1": "failed"}


def test_a_failure_does_not_count_as_applied(story: Story) -> None:
    """The version that failed is not the applied one: its duplicate wakes the mirror."""
    story.hears("v1")
    story.ledger.fail(story.claims(), reason="refused", detail="", settlement=read("v1", Disposition.FAILED, at=START))
    assert story.hears("v1").woken == (PATIENT,)


def test_a_failed_version_is_moved_on_by_a_newer_one(story: Story) -> None:
    """Failed is not final: the next version that goes through supersedes it."""
    story.hears("v1")
    story.ledger.fail(story.claims(), reason="refused", detail="", settlement=read("v1", Disposition.FAILED, at=START))
    story.hears("v2")
    story.settles(story.claims(), "v2", Disposition.APPLIED)
    assert story.changes() == {"v1": "superseded", "v2": "applied"}


def test_a_failed_version_is_applied_by_a_replay(story: Story) -> None:
    """Failed is not final: read and written again, the same row ends as applied."""
    story.hears("v1")
    story.ledger.fail(story.claims(), reason="refused", detail="", settlement=read("v1", Disposition.FAILED, at=START))
    story.hears("v1")
    story.settles(story.claims(), "v1", Disposition.APPLIED)
    assert story.changes() == {"v1": "applied"}


def test_a_hold_leaves_its_changes_open(story: Story) -> None:
    """What waits for a decision is not settled."""
    story.hears("v1", "v2")
    story.ledger.hold(story.claims(), reason="conflict", detail="")
    assert story.changes() == {"v1": None, "v2": None}
    assert story.ledger.failed()[0]["state"] == "held"


def test_what_a_route_that_is_off_covers_is_skipped(story: Story) -> None:
    """An attempt that reads nothing says so of all that it covers: skipped by the rule, delete hints as well."""
    story.hears("v1", "v2", None)
    claim = story.claims()
    story.hears("v3")
    story.ledger.finish(claim, Settlement(Disposition.SKIPPED, None, None, story.clock(), rule="the route is off"))
    told = {(change["version_id"], change["disposition"], change["rule"]) for change in story.shown()["changes"]}
    assert told == {
        ("v1", "skipped", "the route is off"),
        ("v2", "skipped", "the route is off"),
        (None, "skipped", "the route is off"),
        ("v3", None, None),
    }


def test_a_deletion_that_was_read_settles_the_delete_hint(story: Story) -> None:
    """Deleted: the hint is applied, older versions are superseded by it."""
    story.hears("v1", None)
    assert story.settles(story.claims(), None, Disposition.APPLIED, deleted=True)
    rows = {change["kind"]: change for change in story.shown()["changes"]}
    assert rows["delete"]["disposition"] == "applied"
    assert (rows["version"]["disposition"], rows["version"]["superseded_by"]) == ("superseded", rows["delete"]["id"])


def test_a_deletion_that_nobody_told_of_gets_a_row(story: Story) -> None:
    """A deletion found by reading, with the version that Medplum gave it, is a row of its own."""
    story.hears("v1")
    story.settles(story.claims(), "v2", Disposition.APPLIED, deleted=True)
    rows = {change["kind"]: change for change in story.shown()["changes"]}
    assert (rows["delete"]["source"], rows["delete"]["disposition"]) == ("read", "applied")
    assert rows["version"]["disposition"] == "superseded"


def test_a_deletion_found_without_hint_or_version_loses_nothing(story: Story) -> None:
    """Medplum's list of deletions names no version: the deletion has a row all the same, and supersedes the others."""
    story.hears("v1")
    story.settles(story.claims(), None, Disposition.APPLIED, deleted=True)
    version, deletion = story.shown()["changes"]
    assert (version["disposition"], version["superseded_by"]) == ("superseded", deletion["id"])
    assert (deletion["kind"], deletion["source"], deletion["disposition"]) == ("delete", "read", "applied")
    assert deletion["version_id"] is None
    assert story.ledger.status()["accepted"] == 2
    assert story.mirror()["state"] == "current"


def test_a_deletion_that_is_read_again_makes_no_second_row(story: Story) -> None:
    """Looks at what is long deleted, and more late hints of its versions, go with the row that the deletion has."""
    story.hears("v1")
    story.settles(story.claims(), None, Disposition.APPLIED, deleted=True)
    for late in ("v1", "v0"):
        story.hears(late)
        story.settles(story.claims(), None, Disposition.UNCHANGED, deleted=True)
    assert [change["kind"] for change in story.shown()["changes"]] == ["version", "delete", "version"]
    assert story.changes() == {"v1": "superseded", None: "applied", "v0": "superseded"}


def test_a_look_at_what_is_deleted_tells_nothing_new(story: Story) -> None:
    """Where there is nothing to settle, a deletion without hint and version makes no row."""
    story.hears(None)
    story.settles(story.claims(), None, deleted=True)
    story.ledger.replay(Selection(references=(PATIENT,)), who="ana")
    story.settles(story.claims(), None, deleted=True)
    assert [change["disposition"] for change in story.shown()["changes"]] == ["unchanged"]


def test_a_deletion_that_failed_is_settled_by_the_next_attempt(story: Story) -> None:
    """A delete that was refused is one row, which ends as failed, and as applied when it goes through."""
    story.hears("v1")
    refused = read(None, Disposition.FAILED, at=START, deleted=True)
    story.ledger.fail(story.claims(), reason="refused", detail="422", settlement=refused)
    assert story.changes() == {"v1": "superseded", None: "failed"}
    story.ledger.replay(Selection(references=(PATIENT,)), who="ana")
    story.settles(story.claims(), None, Disposition.APPLIED, deleted=True)
    assert story.changes() == {"v1": "superseded", None: "applied"}
    assert story.ledger.status()["accepted"] == 2


def test_a_deletion_that_failed_is_a_phantom_once_the_resource_lives(story: Story) -> None:
    """A refused delete of what was restored meanwhile does not stay failed for ever."""
    story.hears("v1")
    refused = read(None, Disposition.FAILED, at=START, deleted=True)
    story.ledger.fail(story.claims(), reason="refused", detail="422", settlement=refused)
    story.hears("v2")
    story.settles(story.claims(), "v2", Disposition.APPLIED)
    story.clock.forward(60)
    story.settles(story.claims(), "v2")
    assert story.changes() == {"v1": "superseded", None: "phantom", "v2": "applied"}


def test_due_since_is_when_it_became_due(story: Story) -> None:
    """However often an attempt has to be made again, the mirror tells since when it is due; settled, it starts anew."""
    story.hears("v1")
    began = story.mirror()["since"]
    for _ in range(2):
        story.clock.forward(30)
        story.ledger.release(story.claims(), reason="legacy", detail="", after_s=1)
    assert story.mirror()["since"] == began
    story.clock.forward(30)
    story.settles(story.claims(), "v1")
    assert story.mirror()["since"] > began


def test_waiting_since_outlasts_the_slow_looks(story: Story) -> None:
    """A mirror that looks and goes on waiting has waited since its first attempt."""
    story.hears("v1")
    story.ledger.wait(story.claims(), "Practitioner/1", "")
    began = story.mirror()["since"]
    story.clock.forward(300)
    story.ledger.wait(story.claims(), "Practitioner/1", "")
    assert (story.mirror()["state"], story.mirror()["since"]) == ("waiting", began)


def test_a_live_resource_is_synced_and_its_delete_hint_looks_again(story: Story) -> None:
    """Present against a fresh delete hint: the version is applied at once, the hint stays open until its own look."""
    story.hears("v1", None)
    story.settles(story.claims(), "v1", Disposition.APPLIED)
    assert story.changes() == {"v1": "applied", None: None}
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(59.9)
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(0.1)
    claim = story.claims()
    assert claim.delete_hint is not None
    story.settles(claim, "v1")
    assert story.changes() == {"v1": "applied", None: "phantom"}
    assert story.mirror()["state"] == "current"
    assert story.refused() is Refusal.NOT_DUE


def test_a_read_that_started_too_early_makes_no_phantom(story: Story) -> None:
    """It counts when the read started, not when it is settled: a moment too early leaves the hint open."""
    story.hears(None)
    story.clock.forward(60)
    claim = story.claims()
    story.settles(claim, "v1", read_at=START + timedelta(seconds=59.9))
    assert story.changes()[None] is None
    assert story.mirror()["look_at"] is not None
    story.settles(story.claims(), "v1", read_at=START + timedelta(seconds=60))
    assert story.changes()[None] == "phantom"


def test_a_repeated_delete_hint_starts_the_wait_anew(story: Story) -> None:
    """Sixty seconds count from the last receipt, not from the first."""
    story.hears(None)
    story.settles(story.claims(), "v1")
    story.clock.forward(30)
    story.hears(None)
    story.settles(story.claims(), "v1")
    story.clock.forward(31)
    assert story.refused() is Refusal.NOT_YET
    assert story.changes()[None] is None
    story.clock.forward(29)
    story.settles(story.claims(), "v1")
    assert story.changes()[None] == "phantom"


def test_a_repeat_during_the_last_look_keeps_the_hint_open(story: Story) -> None:
    """A delete hint that is repeated after the claim is not a phantom of that claim's read."""
    story.hears(None)
    story.clock.forward(60)
    claim = story.claims()
    read_at = story.clock()
    story.clock.forward(1)
    story.hears(None)
    story.settles(claim, "v1", read_at=read_at)
    assert story.changes()[None] is None
    assert story.mirror()["state"] == "due"


def test_a_delete_that_was_early_is_seen_at_the_look(story: Story) -> None:
    """A delete notification that came before its commit: present first, deleted at the second look, then applied."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    story.settles(story.claims(), "v1")
    story.clock.forward(60)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None)), deleted=True)
    assert story.changes()[None] == "applied"
    assert [link["state"] for link in story.shown()["links"]] == ["tombstone"]


@pytest.mark.parametrize("end", ["fail", "wait", "release"])
def test_a_young_delete_hint_is_looked_at_however_the_attempt_ends(story: Story, end: str) -> None:
    """A resource that fails or waits while a delete hint is young is looked at again: it may be deleted by then."""
    story.hears("v1", None)
    claim = story.claims()
    if end == "fail":
        story.ledger.fail(claim, reason="unmappable", detail="", settlement=read("v1", Disposition.FAILED, at=START))
    elif end == "wait":
        story.ledger.wait(claim, "Practitioner/1", "")
    else:
        story.ledger.release(claim, reason="legacy", detail="", after_s=30)
    story.clock.forward(300 if end == "wait" else 60)
    story.claims()


def test_a_delete_hint_for_a_resource_never_seen_ends(story: Story) -> None:
    """A forged delete of an id that is deleted or unknown is settled as unchanged, without a write."""
    story.ledger.accept([Hint("Patient/forged", None)])
    claim = story.claims("Patient/forged")
    assert not claim.sent_by_medplum
    story.settles(claim, None, Disposition.UNCHANGED, deleted=True)
    assert story.changes("Patient/forged") == {None: "unchanged"}


def test_the_last_answer_and_the_settlement_go_in_together(story: Story) -> None:
    """Finishing records the answer and settles in one transaction: the link and the disposition are both there."""
    story.hears("v1")
    claim = story.claims()
    assert story.settles(claim, "v1", Disposition.APPLIED, last=(story.announces(claim), done()))
    assert story.outcomes() == ["done"]
    assert story.changes() == {"v1": "applied"}
    assert len(story.shown()["links"]) == 1
