"""Write-back in the ledger: whose turn it is, what is noted, which versions are our own, how bounces are counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier

import pytest
from structlog.testing import capture_logs

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, Story, done, read
from worker.ledger.identifying import ToIdentify
from worker.ledger.values import Disposition, Operation

HOLD_S = 60.0


def wants(story: Story, of: str = PATIENT, *, key: int = 17) -> None:
    """Make a record of a resource, whose key is to be put there from now on."""
    story.applies("v1", of=of, key=key)
    asked = "UPDATE links SET identify_at = :now, identify_attempts = 0 WHERE reference = :of"
    story.sql(asked, now=_stored(story), of=of)


def takes(story: Story, resource_type: str = "Patient", *, limit: int = 10) -> tuple[ToIdentify, ...]:
    return story.ledger.take_to_identify(resource_type, limit=limit, within_s=HOLD_S)


def still(story: Story) -> list[tuple[str, int]]:
    """Name the resources that still want their key, and how often it was tried."""
    wanting = "SELECT reference, identify_attempts FROM links WHERE identify_at IS NOT NULL ORDER BY reference"
    return [tuple(row) for row in story.sql(wanting)]


def bounces(story: Story) -> int:
    return int(story.mirror()["bounces"])


def _stored(story: Story) -> object:
    """Give the clock's time as the database stores it."""
    on_sqlite = story.ledger.database.is_sqlite
    return story.clock.now.replace(tzinfo=None).isoformat(" ", "microseconds") if on_sqlite else story.clock.now


def settles(story: Story, version: str, disposition: Disposition = Disposition.APPLIED, *, own: bool) -> None:
    """Settle a version that leads to a write, or does not."""
    story.clock.forward(60)
    story.hears(version)
    claim = story.claims()
    last = None
    if disposition is Disposition.APPLIED:
        operation = Operation.UPDATE if claim.links else Operation.CREATE
        write = story.announces(claim, operation, version=version)
        last = (write.id, done(17 if operation is Operation.CREATE else None))
    settlement = replace(read(version, disposition, at=story.clock.now), own=own)
    assert story.ledger.finish(claim, settlement, last=last)


def test_nothing_is_to_do_without_a_wish(story: Story) -> None:
    """A link whose route wants no write-back is nobody's business."""
    story.applies("v1")
    assert story.ledger.types_to_identify() == ()
    assert takes(story) == ()


def test_a_types_links_are_taken_the_longest_waiting_first(story: Story) -> None:
    """Each type that has links to do is named, and its oldest come first, no more than asked for."""
    wants(story, OTHER, key=18)
    wants(story)
    wants(story, CONDITION, key=1)
    assert story.ledger.types_to_identify() == ("Condition", "Patient")
    [first] = takes(story, limit=1)
    assert (first.reference, first.slot, first.keys) == (OTHER, "", {"number": 18, "uuid": "u18"})
    [second] = takes(story)
    assert second.reference == PATIENT


def test_what_is_taken_is_taken_again_when_its_time_is_over(story: Story) -> None:
    """Nobody else gets a link until then, and a taker that died costs no more."""
    wants(story)
    assert len(takes(story)) == 1
    assert story.ledger.types_to_identify() == ()
    assert takes(story) == ()
    story.clock.forward(HOLD_S)
    assert len(takes(story)) == 1


def test_two_takers_at_once_never_get_the_same_link(story: Story) -> None:
    """On both databases every link goes to one of them."""
    references = [f"Patient/{number}" for number in range(20)]
    for number, each in enumerate(references):
        wants(story, each, key=100 + number)
    gate = Barrier(4)

    def take(_: int) -> list[str]:
        gate.wait(10)
        return [each.reference for each in takes(story, limit=5)]

    with ThreadPoolExecutor(4) as pool:
        taken = [reference for part in pool.map(take, range(4)) for reference in part]
    assert len(taken) == len(set(taken))
    taken += [each.reference for each in takes(story, limit=20)]
    assert sorted(taken) == sorted(references)


@pytest.mark.parametrize("scope", ["Patient", "*"])
def test_a_pause_stops_write_back(story: Story, scope: str) -> None:
    """While a type or everything is paused, none of its keys is put anywhere."""
    wants(story)
    story.ledger.pause([scope], who="op", why="test")
    assert (story.ledger.types_to_identify(), takes(story)) == ((), ())
    story.ledger.resume([], who="op", why="test")
    assert len(takes(story)) == 1


@pytest.mark.parametrize("phase", ["off", "shadow", "paused", "retired"])
def test_only_a_live_route_writes_back(story: Story, phase: str) -> None:
    """In every other phase of its route a link is left alone."""
    wants(story)
    story.sql("UPDATE routes SET phase = :phase WHERE resource_type = 'Patient'", phase=phase)
    assert (story.ledger.types_to_identify(), takes(story)) == ((), ())


def test_a_deleted_record_has_no_key_to_put(story: Story) -> None:
    """A link that became a tombstone before its turn is left alone."""
    wants(story)
    story.sql("UPDATE links SET state = 'tombstone'")
    assert (story.ledger.types_to_identify(), takes(story)) == ((), ())
    assert story.ledger.status()["to_identify"] == 0


def test_what_is_done_is_noted_with_its_version(story: Story) -> None:
    """Nothing is left to do, the key is on the link, the version is our own, and the story tells it."""
    wants(story)
    [taken] = takes(story)
    story.ledger.identified(taken, key="17", version_id="v2", detail="put there")
    assert still(story) == []
    [link] = story.shown()["links"]
    assert (link["identified_key"], link["identify_attempts"]) == ("17", 0)
    assert story.ledger.is_own(PATIENT, "v2")
    assert not story.ledger.is_own(PATIENT, "v1")
    assert not story.ledger.is_own(OTHER, "v2")
    told = story.shown()["attempts"][-1]
    assert (told["outcome"], told["detail"], told["version_id"]) == ("write-back", "put there", "v2")


def test_a_key_that_changed_meanwhile_is_still_to_be_put(story: Story) -> None:
    """Whoever puts the old key there does not take the wish for the new one away."""
    wants(story)
    [taken] = takes(story)
    story.clock.forward(1)
    story.sql("UPDATE links SET identify_at = :now", now=_stored(story))
    story.ledger.identified(taken, key="17", version_id="v2", detail="put there")
    assert still(story) == [(PATIENT, 0)]
    assert story.ledger.is_own(PATIENT, "v2")
    story.ledger.identify_later(taken, after_s=900, detail="away")
    assert [each.reference for each in takes(story)] == [PATIENT]


def test_a_try_that_came_to_nothing_is_counted_and_comes_again(story: Story) -> None:
    """It is not tried before its time, then it is, with the count of the tries so far; the mirror feels nothing."""
    wants(story)
    before = story.mirror()
    [taken] = takes(story)
    story.ledger.identify_later(taken, after_s=300, detail="Medplum answered 503")
    assert still(story) == [(PATIENT, 1)]
    assert takes(story) == ()
    story.clock.forward(300)
    [again] = takes(story)
    assert again.attempts == 1
    assert story.mirror() == before


def test_what_was_given_back_untried_is_not_counted(story: Story) -> None:
    """A link that a turn had no time for waits as long as it is told to, as if it had not been taken."""
    wants(story)
    story.ledger.give_back_to_identify(takes(story), after_s=5)
    assert still(story) == [(PATIENT, 0)]
    assert takes(story) == ()
    story.clock.forward(5)
    assert len(takes(story)) == 1


def test_a_link_knows_the_keys_of_its_resources_other_records(story: Story) -> None:
    """What stands for another slot's record is named, so that nobody takes it for an old value."""
    story.hears("v1")
    claim = story.claims()
    for slot, key in (("a", 17), ("b", 18)):
        write = story.announces(claim, Operation.CREATE, slot=slot)
        story.ledger.record(write.id, done(key))
    story.settles(claim, "v1", Disposition.APPLIED)
    story.sql("UPDATE links SET identify_at = :now WHERE slot = 'a'", now=_stored(story))
    [taken] = takes(story)
    assert (taken.slot, taken.keys["number"]) == ("a", 17)
    assert [keys["number"] for keys in taken.others] == [18]


def test_the_status_tells_what_is_to_do_and_since_when(story: Story) -> None:
    """The number of keys to be put and the age of the oldest are told; without any, no age."""
    assert (story.ledger.status()["to_identify"], story.ledger.status()["oldest_to_identify_seconds"]) == (0, None)
    wants(story)
    story.clock.forward(300)
    status = story.ledger.status()
    assert (status["to_identify"], status["oldest_to_identify_seconds"]) == (1, 300.0)


def test_old_versions_of_our_own_are_forgotten(story: Story) -> None:
    """Only those written longer ago than asked for; a younger one stays known."""
    for number, of in enumerate((PATIENT, OTHER)):
        wants(story, of, key=17 + number)
        [taken] = takes(story)
        story.ledger.identified(taken, key="17", version_id="v2", detail="put there")
        story.clock.forward(3600)
    assert story.ledger.forget_own_versions(after=timedelta(hours=1, minutes=30)) == 1
    assert (story.ledger.is_own(PATIENT, "v2"), story.ledger.is_own(OTHER, "v2")) == (False, True)


def test_a_version_of_our_own_that_leads_to_a_write_is_a_bounce(story: Story) -> None:
    """Each in a row counts; one by somebody else that is written ends the row; what is not written changes nothing."""
    settles(story, "v1", own=False)
    assert bounces(story) == 0
    settles(story, "v2", own=True)
    assert bounces(story) == 1
    settles(story, "v3", Disposition.ECHO, own=True)
    settles(story, "v4", Disposition.UNCHANGED, own=False)
    assert bounces(story) == 1
    settles(story, "v5", own=False)
    assert bounces(story) == 0


def test_a_version_is_our_own_by_its_id_as_well(story: Story) -> None:
    """Where Medplum names no author, the version that we noted counts as a bounce all the same."""
    wants(story)
    [taken] = takes(story)
    story.ledger.identified(taken, key="17", version_id="v2", detail="put there")
    settles(story, "v2", own=False)
    assert bounces(story) == 1


def test_the_second_bounce_is_alarmed_once(story: Story) -> None:
    """The log warns at the second, not at the first or third, and the status counts the resource from then on."""
    with capture_logs() as said:
        settles(story, "v1", own=True)
        assert (said, story.ledger.status()["bouncing"]) == ([], 0)
        settles(story, "v2", own=True)
        assert [(line["log_level"], line["reference"]) for line in said] == [("warning", PATIENT)]
        assert story.ledger.status()["bouncing"] == 1
        settles(story, "v3", own=True)
    assert len(said) == 1
    settles(story, "v4", own=False)
    assert story.ledger.status()["bouncing"] == 0
