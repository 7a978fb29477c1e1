"""More rows than a page in one millisecond: all of them are found, or the millisecond is named. Never a loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.catch_up.story import Story, ids, patient
from worker.catch_up import instant
from worker.catch_up.reading import TOO_MANY

MILLISECOND = timedelta(milliseconds=1)
SMALL = {"page": 20, "most_offset": 60, "overlap": 4}


def crowd(number: int, crowded: int, begin: datetime) -> list[dict[str, Any]]:
    """Make patients, a millisecond apart, so many of which share one in their middle."""
    alone = (number - crowded) // 2
    made = []
    for place, id_ in enumerate(ids(number)):
        step = place if place < alone else alone if place < alone + crowded else place - crowded + 1
        made.append(patient(id_, updated=begin + step * MILLISECOND))
    return made


@pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True, ids=str
)
def test_a_crowded_millisecond_is_read_whole(story: Story) -> None:
    """Of 2,500 resources 1,200 share one millisecond: each becomes one change, and the time is proven."""
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(2500, 1200, begin))
    turn = story.reads()
    assert (turn.found, len(story.found()), story.changes(), turn.left) == (2500, 2500, 2500, [])
    assert story.unproven() == []
    assert story.watermark() > begin + timedelta(minutes=50)


@pytest.mark.timeout(120)
def test_twenty_thousand_of_which_three_thousand_share_a_millisecond(story: Story) -> None:
    """None is skipped, and the second pass finds nothing more."""
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(20_000, 3000, begin))
    turn = story.reads(for_s=500)
    assert (turn.found, len(story.found()), story.changes(), turn.left) == (20_000, 20_000, 20_000, [])
    assert story.unproven() == []
    assert turn.pages < 40


def test_more_than_both_ends_reach_is_named(story: Story) -> None:
    """Of 200 rows in one millisecond two offsets reach 160: these are taken, the millisecond stays unproven and is
    shown, and what comes after it is found and proven."""
    story.reading = SMALL
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(300, 200, begin))
    turn = story.reads()
    crowded = instant(begin + 50 * MILLISECOND)
    middle = sorted(ids(300)[50:250])[80:120]
    missing = {f"Patient/{id_}" for id_ in ids(300)} - story.found()
    assert missing
    assert missing <= {f"Patient/{id_}" for id_ in middle}  # a few of them came with the page before
    assert story.unproven() == [(crowded, TOO_MANY)]
    assert len(turn.left) == 1
    assert story.watermark() > begin + timedelta(minutes=50)


def test_an_unread_millisecond_is_tried_again_and_proven(story: Story) -> None:
    """Once rows have left it, the two ends meet: what was hidden is found, and nothing stays unproven."""
    story.reading = SMALL
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(200, 200, begin))
    story.reads()
    hidden = {f"Patient/{id_}" for id_ in ids(200)} - story.found()
    assert len(hidden) == 40
    story.writes(*(patient(id_) | {"active": True} for id_ in sorted(ids(200))[:50]))
    assert story.reads().left == []
    assert story.unproven() != []  # an hour has not passed
    story.clock.forward(3601)
    story.reads()
    assert story.unproven() == []
    assert hidden <= story.found()


@pytest.mark.parametrize("page", [3, 4, 5, 6])
def test_rows_that_leave_the_millisecond_hide_no_other(story: Story, page: int) -> None:
    """A hundred rows in front are written anew while the pages are read: the pages behind them move, none is lost."""
    story.reading = {"page": 50, "most_offset": 10_000, "overlap": 4}
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(300, 300, begin))
    front = sorted(ids(300))

    def leave(number: int) -> None:
        if number == page:
            story.writes(*(patient(id_) | {"active": True} for id_ in front[:100]))

    story.after = leave
    story.reads()
    assert story.found() == {f"Patient/{id_}" for id_ in ids(300)}
    assert story.unproven() == []


def test_a_row_that_leaves_behind_the_front_hides_no_other(story: Story) -> None:
    """Read from the back, rows that leave at the back move the pages the same way."""
    story.reading = {"page": 20, "most_offset": 60, "overlap": 4}
    begin = story.begins() + timedelta(minutes=1)
    story.loads(crowd(140, 140, begin))
    back = sorted(ids(140), reverse=True)

    def leave(number: int) -> None:
        if number == 8:  # two pages by time, five from the front, the first from the back
            story.writes(*(patient(id_) | {"active": True} for id_ in back[:17]))

    story.after = leave
    turn = story.reads()
    assert story.found() == {f"Patient/{id_}" for id_ in ids(140)}
    assert turn.left == []


def test_deletions_of_one_millisecond_are_read_the_same_way(story: Story) -> None:
    """A hundred deletions share a millisecond: each becomes a delete hint."""
    story.reading = SMALL
    begin = story.begins() + timedelta(minutes=1)
    story.loads((patient(id_, updated=begin) for id_ in ids(100)), deleted=True)
    turn = story.reads()
    assert (turn.found, len(story.found()), story.unproven()) == (100, 100, [])
    assert story.sql("SELECT DISTINCT kind, interaction FROM changes") == [("delete", "delete")]


def test_a_crowd_that_fills_its_page_exactly_is_no_crowd(story: Story) -> None:
    """As many rows as a page takes, and nothing behind them: one page, and no search by offset."""
    story.reading = SMALL
    begin = story.begins() + timedelta(minutes=1)
    story.loads(patient(id_, updated=begin) for id_ in ids(20))
    assert story.reads().pages == 2
    assert len(story.found()) == 20


def test_milliseconds_that_straddle_pages_are_found_once(story: Story) -> None:
    """Each three rows share a millisecond, and pages end in the middle of one."""
    story.reading = SMALL
    begin = story.begins() + timedelta(minutes=1)
    story.loads(patient(id_, updated=begin + place // 3 * MILLISECOND) for place, id_ in enumerate(ids(100)))
    turn = story.reads()
    assert (turn.found, story.changes()) == (100, 100)
    assert datetime.now(UTC) > story.watermark()
