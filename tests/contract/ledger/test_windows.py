"""Windows of catch-up: what is taken, what is dropped, how far a time is proven, and who may move a position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial

import pytest

from tests.contract.ledger.story import OTHER, PATIENT, START, Story, read
from worker.ledger.values import Disposition, Hint, Phase, Source, State
from worker.ledger.windows import MovedOn, Window

MINUTE = timedelta(minutes=1)
LATER = START + 60 * MINUTE


def own(story: Story, of: str = "Patient") -> Window:
    window = story.ledger.next_window(of)
    assert window is not None
    return window


def version(of: str, version_id: str, updated: datetime = START) -> Hint:
    return Hint(of, version_id, updated, source=Source.CATCH_UP)


def deletion(of: str, updated: datetime | None = START) -> Hint:
    return Hint(of, None, updated, "delete", source=Source.CATCH_UP)


def takes(story: Story, *hints: Hint, due_most: int | None = None) -> int | None:
    """Read one page of the route's own window that holds these, and begin anew."""
    window = own(story)
    taken = story.ledger.take_found(window, "p1", hints, asked_at=LATER, due_most=due_most)
    story.adds_up()
    if taken is None:
        return None
    story.ledger.end_reading(taken[0], proven_to=START, again_s=0)
    return taken[1]


def rests(story: Story) -> None:
    """Have a patient applied, and let the spacing of writes pass."""
    story.applies("v1")
    story.clock.forward(60)


def fails(story: Story, of: str = PATIENT, version_id: str | None = "v1", *, deleted: bool = False) -> None:
    claim = story.claims(of)
    settlement = read(version_id, Disposition.FAILED, at=story.clock.now, deleted=deleted)
    assert story.ledger.fail(claim, reason="refused", detail="the API refuses it", settlement=settlement)


def test_a_route_begins_proven_where_it_was_registered(story: Story) -> None:
    """Nothing before a route is its business; registered again with the next release it stays where it was."""
    story.clock.forward(600)
    story.ledger.register_routes({"Patient": (Phase.LIVE, "m2")})
    assert own(story).from_at == story.ledger.watermark("Patient") == START
    assert own(story).to_at is None


def test_a_reading_proves_its_window_and_comes_again(story: Story) -> None:
    """The watermark follows each reading and never goes back; the next one is due after its time."""
    window, _ = story.ledger.take_found(own(story), "p1", [], asked_at=LATER) or pytest.fail("full")
    assert (window.asked_at, window.position) == (LATER, "p1")
    story.ledger.end_reading(window, proven_to=LATER - MINUTE, again_s=60)
    assert story.ledger.watermark("Patient") == LATER - MINUTE
    assert story.ledger.next_window("Patient") is None
    assert "Patient" not in story.ledger.types_to_catch_up()
    story.clock.forward(60)
    assert story.ledger.types_to_catch_up() == ("Condition", "Patient", "Practitioner")
    story.ledger.end_reading(own(story), proven_to=START, again_s=60)
    assert story.ledger.watermark("Patient") == LATER - MINUTE


def test_only_types_that_run_are_caught_up(story: Story) -> None:
    """Live, shadow and paused routes are; off and retired ones are not."""
    for phase, expected in zip(Phase, (False, True, True, True, False), strict=True):
        story.ledger.set_phase("Patient", phase, who="Ada", why="a test")
        assert ("Patient" in story.ledger.types_caught_up()) is expected
        assert ("Patient" in story.ledger.types_to_catch_up()) is expected


def test_rows_marks_and_position_commit_together(story: Story) -> None:
    """What a page brought and where the reading stands are one transaction: who comes with an old position stores
    nothing at all."""
    window = own(story)
    taken = story.ledger.take_found(window, "p1", [version(PATIENT, "v1")], asked_at=LATER)
    assert taken is not None
    assert (taken[1], own(story).position, own(story).found) == (1, "p1", 1)
    assert story.mirror()["state"] == State.DUE
    assert [change["source"] for change in story.shown()["changes"]] == ["catch-up"]
    with pytest.raises(MovedOn):
        story.ledger.take_found(window, "p9", [version(OTHER, "v1")], asked_at=LATER)
    with pytest.raises(MovedOn):
        story.ledger.end_reading(window, proven_to=LATER, again_s=60)
    assert story.ledger.show(OTHER) is None
    assert own(story).position == "p1"
    story.adds_up()


def test_of_many_who_read_the_same_page_one_goes_on(story: Story) -> None:
    """However they meet, the page is taken once."""
    window = own(story)

    def take(number: int) -> bool:
        try:
            story.ledger.take_found(window, f"p{number}", [version(PATIENT, "v1")], asked_at=LATER)
        except MovedOn:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(take, range(6))) == 1
    assert own(story).found == 1
    story.adds_up()


def test_what_was_applied_is_dropped(story: Story) -> None:
    """The applied version is no news; another one, known or not, is: a version that is known makes no second row."""
    rests(story)
    story.hears("v2")
    story.settles(story.claims(), "v3")  # v2 was superseded by what was read
    assert takes(story, version(PATIENT, "v3")) == 0
    assert story.mirror()["state"] == State.CURRENT
    assert takes(story, version(PATIENT, "v2")) == 1
    assert story.mirror()["state"] == State.DUE
    assert len(story.changes()) == 3
    assert takes(story, version(OTHER, "v1")) == 1


@pytest.mark.parametrize("disposition", [Disposition.SKIPPED, Disposition.UNCHANGED, Disposition.ECHO])
def test_what_was_settled_without_a_write_is_dropped_as_well(story: Story, disposition: Disposition) -> None:
    """Passes over the overlap make no work for what a rule skips, or what was equal."""
    story.hears("v1")
    story.settles(story.claims(), "v1", disposition)
    assert takes(story, version(PATIENT, "v1")) == 0


def test_a_failed_version_is_not_tried_again_by_each_pass(story: Story) -> None:
    """It is on the list already; a newer version wakes it, as always."""
    story.hears("v1")
    fails(story)
    assert takes(story, version(PATIENT, "v1")) == 0
    assert story.mirror()["state"] == State.FAILED
    assert takes(story, version(PATIENT, "v2")) == 1
    assert story.mirror()["state"] == State.DUE


def test_what_is_due_or_held_already_is_not_asked_for_again(story: Story) -> None:
    """A pass counts no hint on a mirror that is at work on this very version: an attempt under way would run twice."""
    story.hears("v1")
    hints = story.mirror()["hints"]
    assert takes(story, version(PATIENT, "v1")) == 0
    assert story.mirror()["hints"] == hints
    assert story.ledger.hold(story.claims(), reason="conflict", detail="both changed it")
    assert takes(story, version(PATIENT, "v1")) == 0


def test_a_deletion_that_was_settled_is_dropped(story: Story) -> None:
    """That very deletion; a later one, of a resource that lived meanwhile, is news."""
    rests(story)
    at = story.clock.now
    assert takes(story, deletion(PATIENT, at)) == 1
    claim = story.claims()
    assert story.settles(claim, None, Disposition.APPLIED, deleted=True)
    assert takes(story, deletion(PATIENT, story.clock.now)) == 0
    assert takes(story, deletion(PATIENT, story.clock.now + MINUTE)) == 1


def test_a_deletion_that_failed_makes_no_rows_without_end(story: Story) -> None:
    """The same deletion, seen by each pass, is on the list once; one after it is a change of its own, once."""
    rests(story)
    deleted_at = story.clock.now
    assert takes(story, deletion(PATIENT, deleted_at)) == 1
    fails(story, version_id=None, deleted=True)
    rows = len(story.shown()["changes"])
    assert takes(story, deletion(PATIENT, deleted_at)) == 0
    assert takes(story, deletion(PATIENT, None)) == 0
    again = story.clock.now + MINUTE
    assert takes(story, deletion(PATIENT, again)) == 1
    assert takes(story, deletion(PATIENT, again)) == 0
    assert len(story.shown()["changes"]) == rows + 1


def test_an_open_delete_hint_is_woken_where_its_mirror_rests(story: Story) -> None:
    """A delete that a read contradicted waits for its second look; that Medplum lists the deletion makes it due."""
    rests(story)
    story.hears(None)
    story.settles(story.claims(), "v1")
    assert story.mirror()["state"] == State.CURRENT
    assert takes(story, deletion(PATIENT, story.clock.now)) == 1
    assert story.mirror()["state"] == State.DUE
    assert list(story.changes()).count(None) == 1


def test_nothing_is_taken_while_much_is_due(story: Story) -> None:
    """Live changes do not wait behind a first fill; what needs nothing is read on all the same."""
    story.hears("v1", of=OTHER)
    assert takes(story, version(PATIENT, "v1"), due_most=1) is None
    assert (own(story).position, story.ledger.show(PATIENT)) == (None, None)
    assert takes(story, version(OTHER, "v1"), due_most=1) == 0
    story.ledger.pause(["Patient"], who="Ada", why="nobody works on these")
    assert takes(story, version(PATIENT, "v1"), due_most=1) == 1


def test_time_in_doubt_is_a_window_until_it_is_proven(story: Story) -> None:
    """It is read at once, after the route's own window; what is too young to be proven is read again when it is not."""
    story.ledger.end_reading(own(story), proven_to=START, again_s=3600)
    assert story.ledger.doubt("Patient", START, START + 10 * MINUTE, "deliveries failed")
    window = own(story)
    assert (window.from_at, window.to_at, window.reason) == (START, START + 10 * MINUTE, "deliveries failed")
    assert not story.ledger.end_reading(window, proven_to=START + 6 * MINUTE, again_s=60)
    assert story.ledger.next_window("Patient") is None
    story.clock.forward(240)
    assert own(story).from_at == START + 6 * MINUTE
    assert story.ledger.end_reading(own(story), proven_to=START + 11 * MINUTE, again_s=60)
    assert [window.reason for window in story.ledger.unread_windows("Patient")] == [None]
    assert story.sql("SELECT count(*) FROM windows WHERE proven_at IS NULL") == [(0,)]


def test_a_doubt_that_goes_on_is_one_window(story: Story) -> None:
    """Said again it lasts longer and makes no second row; one whose reading is under way is left as it is."""
    doubt = story.ledger.doubt
    assert doubt("Patient", START, START + MINUTE, "silence")
    assert not doubt("Patient", START, START + MINUTE, "silence")
    assert doubt("Patient", START + MINUTE, START + 2 * MINUTE, "silence")
    assert story.sql("SELECT count(*) FROM windows WHERE reason = 'silence'") == [(1,)]
    story.ledger.end_reading(own(story), proven_to=START, again_s=3600)
    taken = story.ledger.take_found(own(story), "p1", [], asked_at=LATER)
    assert taken is not None
    assert doubt("Patient", START, START + 3 * MINUTE, "silence")
    spans = [(window.from_at, window.to_at) for window in story.ledger.unread_windows("Patient")][1:]
    assert spans == [(START, START + 2 * MINUTE), (START + 2 * MINUTE, START + 3 * MINUTE)]


def test_a_millisecond_that_cannot_be_read_stays_in_doubt(story: Story) -> None:
    """It is a window of its own, once, is tried again in an hour, and the watermark does not pass it."""
    assert story.ledger.leave_unread(own(story), START + MINUTE, "too many")
    assert story.ledger.leave_unread(own(story), START + MINUTE, "too many")
    taken = story.ledger.take_found(own(story), "p1", [], asked_at=LATER)
    assert taken is not None
    story.ledger.end_reading(taken[0], proven_to=LATER, again_s=7200)
    assert story.ledger.next_window("Patient") is None
    [route] = [each for each in story.ledger.status()["routes"] if each["resource_type"] == "Patient"]
    assert (route["watermark"], route["unproven"]) == ((START + MINUTE).isoformat(), 1)
    story.clock.forward(3600)
    window = own(story)
    assert window.from_at == window.to_at == START + MINUTE
    assert not story.ledger.leave_unread(window, START + MINUTE, "too many")
    assert story.ledger.next_window("Patient") is None
    assert story.sql("SELECT count(*) FROM windows WHERE reason = 'too many'") == [(1,)]


def test_a_person_asks_for_time_that_is_proven(story: Story) -> None:
    """From before the route began, up to the watermark: what comes after it is read anyhow. Asked again it goes on."""
    begin = START - timedelta(days=30)
    story.ledger.ask_for_catch_up(["Patient"], begin)
    story.ledger.ask_for_catch_up(["Patient"], begin + MINUTE)
    windows = story.ledger.unread_windows("Patient")
    assert [(window.from_at, window.to_at) for window in windows] == [(START, None), (begin, START)]
    story.ledger.end_reading(own(story), proven_to=LATER, again_s=3600)
    story.ledger.put_off(own(story), after_s=3600)
    assert story.ledger.next_window("Patient") is None
    story.ledger.ask_for_catch_up(["Patient"], None)
    assert own(story).to_at is None


def test_a_sweep_takes_its_days(story: Story) -> None:
    """Batches come as the time of the round goes by, each link once, and the next round begins after it."""
    for number in range(5):
        story.applies("v1", of=f"Patient/p{number}", key=number)
    story.applies("v1", of="Condition/c1", key=99)
    next_batch = partial(story.ledger.next_batch, "Patient", limit=2, over_s=36_000.0)
    assert next_batch() is None  # the round begins
    assert next_batch() is None
    seen: list[str] = []
    for _ in range(10):
        story.clock.forward(3600)
        while batch := next_batch():
            seen += batch.references
            assert len(seen) <= 6
            assert story.ledger.take_swept(batch, []) == 0
    assert seen == [f"Patient/p{number}" for number in range(5)]
    assert story.ledger.sweep_rounds()["Patient"] == {"total": 5, "read": 5, "found": 0, "ended": True}
    story.clock.forward(1)
    next_batch()
    assert story.ledger.sweep_rounds()["Patient"]["ended"] is False


def test_a_sweep_goes_on_from_its_position(story: Story) -> None:
    """Asked for by a person it does not wait; who comes with an old position moves nothing; tombstones are left out."""
    for number in range(3):
        story.applies("v1", of=f"Patient/p{number}", key=number)
    story.sql("UPDATE links SET state = 'tombstone' WHERE reference = 'Patient/p1'")
    story.ledger.begin_sweep(["Patient"])
    assert "Patient" in story.ledger.types_to_catch_up()
    next_batch = partial(story.ledger.next_batch, "Patient", limit=1, over_s=36_000.0)
    first = next_batch()
    assert first is not None
    gone = [deletion("Patient/p0", None), version("Patient/p0", "v1")]
    assert story.ledger.take_swept(first, gone) == 1
    with pytest.raises(MovedOn):
        story.ledger.take_swept(first, gone)
    story.ledger.begin_sweep(["Patient"])  # the round that is under way goes on
    second = next_batch()
    assert second is not None
    assert second.references == ("Patient/p2",)
    assert story.ledger.take_swept(second, [], due_most=1) == 0
    assert next_batch() is None
    assert story.ledger.sweep_rounds()["Patient"] == {"total": 2, "read": 2, "found": 1, "ended": True}
    story.adds_up()


def test_a_window_that_grew_since_it_was_taken_is_not_proven(story: Story) -> None:
    """A doubt that lasts longer while its first page is read is read anew: its reader never asked for the rest."""
    story.ledger.doubt("Patient", START, START + MINUTE, "off")
    own_first = story.ledger.next_window("Patient")
    assert own_first is not None
    story.ledger.put_off(own_first, after_s=600)
    taken = story.ledger.next_window("Patient")
    assert taken is not None
    assert taken.reason == "off"
    story.ledger.doubt("Patient", START, START + 2 * MINUTE, "off")
    with pytest.raises(MovedOn):
        story.ledger.end_reading(taken, proven_to=LATER, again_s=0)
    again = story.ledger.next_window("Patient")
    assert again is not None
    assert again.to_at == START + 2 * MINUTE
