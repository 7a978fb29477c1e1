"""Edits by others in the legacy system, imported records, and finds before creates. `protocol.md` 11, 12."""

from __future__ import annotations

import json

import pytest

from tests.integration.sync.declared import declare, image
from tests.integration.sync.story import (
    CONDITION,
    OTHER,
    PATIENT,
    POST_PATIENT,
    PUT_PATIENT,
    Story,
    condition,
    only,
    patient,
)
from worker.ledger import Selection
from worker.legacy import Find, Replace, Unsupported
from worker.mapping import Conflict, WriteBack
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
EDIT = {"last_name": "Canary", "city": "Canaryville"}


def replays(story: Story, of: str = PATIENT) -> None:
    story.ledger.replay(Selection(references=(of,)), who="a test")


def begins(story: Story, conflict: Conflict, **to: object) -> None:
    """Have a patient's record edited in the clinic, and a newer version in Medplum."""
    declare(story, "Patient", to=to, conflict=conflict)
    story.changes(patient())
    story.settles()
    story.clock.forward(60)
    story.edits("patient/4701", **EDIT)
    story.changes(patient(family="Roe"))


def attempt(story: Story) -> str:
    """Tell the detail of the last attempt."""
    return str(story.shown(PATIENT)["attempts"][-1]["detail"])


@on_both
def test_medplum_wins_and_the_before_image_is_kept(story: Story) -> None:
    """Overwrite: the fields are named without a value, and what was there is kept sealed (11)."""
    begins(story, Conflict.OVERWRITE)
    assert story.syncs().kind is End.DONE
    assert story.record()["last_name"] == "Roe"
    assert "edited in the legacy system: city, last_name" in attempt(story)
    assert "Canary" not in json.dumps(story.shown(PATIENT))
    kept = image(story, PATIENT)
    assert kept is not None
    assert json.loads(kept)["last_name"] == "Canary"
    story.agrees()


@on_both
@pytest.mark.parametrize("how", ["update", "replace"])
def test_a_conflict_is_held_with_both_sides(story: Story, how: str) -> None:
    """Hold: nothing is sent, the fields are named, and both sides are sealed for a person to see (11)."""
    begins(story, Conflict.HOLD, **({"update": Replace()} if how == "replace" else {}))
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "conflict"
    assert "city, last_name" in story.mirror()["detail"]
    assert story.writes() == ["POST"]
    kept = image(story, PATIENT)
    assert kept is not None
    assert json.loads(kept)["last_name"] == "Canary"
    sides = story.ledger.sides(PATIENT, who="a test")
    assert [side["last_name"] for side in (json.loads(text) for text in sides.values())] == ["Roe", "Canary"]
    replays(story)
    story.settles()
    assert story.record()["last_name"] == "Roe"
    story.agrees()


def test_a_replay_for_another_reason_lets_no_conflict_pass(story: Story) -> None:
    """Only what a person saw held is let pass: a replay of something else finds the conflict and holds it (11)."""
    begins(story, Conflict.HOLD)
    replays(story)
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "conflict"


def test_a_delete_of_an_edited_record_is_held(story: Story) -> None:
    """What somebody wrote there is not deleted unseen (11)."""
    begins(story, Conflict.HOLD)
    story.deletes(PATIENT)
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "conflict"
    assert len(story.records()) == 1


def test_nobody_looks_where_it_is_off(story: Story) -> None:
    """Off: no baseline is kept, and an edit is overwritten as ever (11)."""
    begins(story, Conflict.OFF)
    story.syncs()
    assert image(story, PATIENT, column="baseline") is None
    assert story.record()["last_name"] == "Roe"


def test_a_record_that_nobody_edited_is_no_conflict(story: Story) -> None:
    """Update after update: what the API gave back of our own writes is the baseline (11)."""
    declare(story, "Patient", conflict=Conflict.HOLD)
    for family in ("Doe", "Roe", "Poe"):
        story.changes(patient(family=family))
        story.settles()
    assert story.state() == "current", story.mirror()
    assert image(story, PATIENT, column="baseline") is not None
    story.agrees()


def test_what_we_do_not_map_is_no_conflict(story: Story) -> None:
    """Only mapped fields count: the rest of the record is the clinic's own (11)."""
    declare(story, "Patient", conflict=Conflict.HOLD)
    story.changes(patient())
    story.settles()
    story.edits("patient/4701", notes="Canary")
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.state() == "current", story.mirror()


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_our_own_write_without_an_answer_is_no_conflict(story: Story, kind: str) -> None:
    """A record that is as known, or as our unanswered write wanted it, was edited by nobody (11)."""
    declare(story, "Patient", conflict=Conflict.HOLD)
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks(kind, PUT_PATIENT)
    story.syncs()
    story.changes(patient(family="Poe"))
    story.settles()
    assert story.state() == "current", story.mirror()
    story.agrees()


def test_an_edit_under_an_unanswered_write_is_a_conflict(story: Story) -> None:
    """What is neither the baseline nor ours is somebody else's (11)."""
    declare(story, "Patient", conflict=Conflict.HOLD)
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.breaks("reset_after", PUT_PATIENT)
    story.syncs()
    story.edits("patient/4701", city="Canaryville")
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "conflict")


def test_a_record_of_which_nothing_is_known_is_taken_as_it_is(story: Story) -> None:
    """An old link has no baseline: what is there is taken for it this once, and that is said (11)."""
    story.changes(patient())
    story.settles()
    declare(story, "Patient", conflict=Conflict.HOLD)
    story.edits("patient/4701", **EDIT)
    story.changes(patient(family="Roe"))
    story.settles()
    assert "nothing was known" in attempt(story)
    assert story.record()["last_name"] == "Roe"
    story.edits("patient/4701", **EDIT)
    story.changes(patient(family="Poe"))
    story.settles()
    assert story.mirror()["reason"] == "conflict"


def test_a_baseline_is_read_back_where_the_answer_does_not_tell(story: Story) -> None:
    """An answer without the record is followed by a read, whose failure fails no write (11)."""
    declare(story, "Patient", conflict=Conflict.HOLD, to={"record": "data"})
    story.breaks("status", POST_PATIENT, status=201, saves=True, body='{"data": {"number": 4701, "uuid": "none"}}')
    story.changes(patient())
    story.syncs()
    assert [line["method"] for line in story.calls("GET", "POST")] == ["POST", "GET"]
    assert story.state() == "current"


def imports(story: Story, imported: str, **more: str) -> None:
    """Have a record that the clinic had before, imported for the patient, and the patient change in Medplum."""
    declare(story, "Patient", imported=imported)
    story.changes(patient())
    story.settles()
    story.sql("UPDATE links SET origin = 'imported', version_id = NULL, digest = NULL")
    story.edits("patient/4701", **(more or EDIT))
    story.changes(patient(family="Roe"))


def test_the_first_update_of_an_imported_record_names_what_differs(story: Story) -> None:
    """What the record said is kept, the fields are named, and the next update is one like any (11)."""
    imports(story, "update")
    story.settles()
    assert "imported; it differs in city, last_name" in attempt(story)
    kept = image(story, PATIENT)
    assert kept is not None
    assert json.loads(kept)["city"] == "Canaryville"
    story.changes(patient(family="Poe"))
    story.settles()
    assert attempt(story) == ""
    story.agrees()


def test_the_first_update_of_an_imported_record_is_held(story: Story) -> None:
    """Declared so, a person sees both sides first; a replay lets it pass (11)."""
    imports(story, "hold")
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "imported"
    assert story.writes() == ["POST"]
    replays(story)
    story.settles()
    assert story.record()["last_name"] == "Roe"


def test_an_imported_record_that_says_the_same_is_not_held(story: Story) -> None:
    """Where nothing differs there is nothing to decide (11)."""
    imports(story, "hold", last_name="Roe")
    story.settles()
    assert story.state() == "current", story.mirror()


@pytest.mark.parametrize("theirs", ["", "somebody-else"])
def test_an_imported_record_that_never_heard_of_our_ids_is_ours(story: Story, theirs: str) -> None:
    """An identity field that is empty is nobody's before the first write; one that names another is held (3i, 11)."""
    imports(story, "update", external_id=theirs)
    story.settles()
    if theirs:
        assert (story.state(), story.mirror()["reason"]) == ("held", "identity")
        assert story.record()["external_id"] == theirs
    else:
        story.agrees()
        story.edits("patient/4701", external_id="")
        story.changes(patient(family="Poe"))
        story.settles()
        assert story.mirror()["reason"] == "identity"  # it has heard of them by now


def recovers(story: Story) -> None:
    """Let the ledger have been set back in time."""
    story.sql(
        "INSERT INTO recoveries (kind, started_at, who) VALUES ('ledger', :at, 'a test')",
        at=story.clock.now.replace(tzinfo=None),
    )


@pytest.mark.parametrize("by", ["recovering", "declaration"])
def test_a_record_that_is_there_is_linked_and_not_made_again(story: Story, by: str) -> None:
    """After a restore of the ledger, or where it is declared, each create is looked up first (12)."""
    story.changes(patient())
    story.settles()
    for table in ("links", "writes"):
        story.sql(f"DELETE FROM {table}")  # noqa: S608
    if by == "recovering":
        recovers(story)
    else:
        find = story.routes["Patient"].to.find_by
        assert isinstance(find, Find)
        declare(story, "Patient", to={"find_by": Find(find.request, match=find.match, page="page", before_create=True)})
    replays(story)
    story.settles()
    assert story.outcomes() == [("create", "found")]
    assert only(story.links())["origin"] == "found"
    story.changes(patient(active=True))
    story.settles()
    assert story.dispositions()[-1] == "unchanged"
    assert story.writes() == ["POST"]
    story.agrees()


def test_a_record_that_differs_is_held_while_recovering(story: Story) -> None:
    """A hit that does not agree in all that would be sent is not ours for certain (12)."""
    story.changes(patient())
    story.settles()
    story.sql("DELETE FROM links")
    story.sql("DELETE FROM writes")
    recovers(story)
    story.changes(patient(family="Roe"))
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "found")
    assert "last_name" in story.mirror()["detail"]


def test_a_create_without_a_find_is_held_while_recovering(story: Story) -> None:
    """Where nothing can be looked up nobody knows whether the record is there (12)."""
    recovers(story)
    declare(story, "Patient", to={"find_by": Unsupported("no look-up")})
    story.changes(patient())
    assert story.syncs().kind is End.HELD
    assert story.mirror()["reason"] == "no find"
    assert story.writes() == []


def test_a_record_that_is_nowhere_is_made_while_recovering(story: Story) -> None:
    """A find that shows nothing, or only records of others, is followed by the create (12)."""
    recovers(story)
    story.changes(patient(), patient("p2"))
    story.settles()
    assert story.writes() == ["POST", "POST"]
    assert [only(story.links(of))["origin"] for of in (PATIENT, OTHER)] == ["created", "created"]
    story.agrees()


def test_a_new_key_is_to_be_written_back_where_the_route_says_so(story: Story) -> None:
    """A create, and nothing else, wishes that its key be put on the Medplum resource."""
    declare(story, "Condition", identifier=None)
    declare(story, "Patient", identifier=WriteBack("https://clinic.example.com/patient"))
    story.changes(patient(), condition())
    story.settles()
    wishes = dict(story.sql("SELECT reference, identify_at IS NOT NULL FROM links"))
    assert {of: bool(wish) for of, wish in wishes.items()} == {PATIENT: True, CONDITION: False}
    story.sql("UPDATE links SET identify_at = NULL")
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.sql("SELECT count(*) FROM links WHERE identify_at IS NOT NULL") == [(0,)]


def test_finds_and_reads_that_fail_close_the_gate(story: Story) -> None:
    """An API that answers no read is given a rest as one that takes no write is (7)."""
    story.changes(*(patient(f"b{number}") for number in range(6)))
    story.settles()
    story.changes(*(patient(f"b{number}", family="Roe") for number in range(6)))
    story.clock.forward(60)
    story.breaks("status", {"method": "GET"}, status=503, times=None)
    ended = [story.tries(f"Patient/b{number}").words for number in range(6)]
    assert [words.partition(":")[0] for words in ended] == ["legacy"] * 5 + ["gate"]
