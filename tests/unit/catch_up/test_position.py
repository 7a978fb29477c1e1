"""Positions as text, and what a page's parts leave behind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.catch_up import Crowd, Position, Step, instant
from worker.catch_up.reading import hint
from worker.ledger.values import Source
from worker.medplum import Deleted, Present

AT = datetime(2026, 11, 22, 12, 0, 0, 123000, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def row(number: int, after: int = 0) -> Present:
    return Present(f"Patient/p{number}", f"v{number}", AT + after * MILLISECOND, "Practitioner/d1", b"{}", AT)


@pytest.mark.parametrize(
    "position",
    [
        Position(AT),
        Position(AT, deleted=True),
        Position(AT).within(Crowd(AT, 980, "p9")),
        Position(AT, deleted=True).within(Crowd(AT, 10_000, "p1", back=True, front="p0")),
    ],
)
def test_a_position_is_the_same_after_a_restart(position: Position) -> None:
    """What is written down is read back, and nothing written means the beginning."""
    assert Position.of(position.text(), AT - MILLISECOND) == position
    assert Position.of(None, AT) == Position(AT)


def test_times_are_written_as_medplum_does() -> None:
    """In milliseconds, as UTC, whatever the zone."""
    assert instant(AT) == "2026-11-22T12:00:00.123Z"


def test_a_part_ends_where_the_next_row_begins() -> None:
    """A page that is taken in parts can be gone on with from any of them: no row between two positions is left out."""
    rows = tuple(row(number, number) for number in range(5))
    step = Step(rows, Position(AT), Position(AT, deleted=True), AT)
    parts = list(step.parts(2))
    assert [len(hints) for hints, _ in parts] == [2, 2, 1]
    assert [position for _, position in parts] == [
        Position(AT + 2 * MILLISECOND),
        Position(AT + 4 * MILLISECOND),
        Position(AT, deleted=True),
    ]


def test_an_empty_page_moves_the_position_all_the_same() -> None:
    """There is one part, without a hint."""
    assert list(Step((), Position(AT), Position(AT, deleted=True), AT).parts(2)) == [([], Position(AT, deleted=True))]


def test_a_part_of_a_crowd_is_read_again_as_a_whole() -> None:
    """Within a crowd only the page's end is a position: rows are in the order of ids there."""
    here = Position(AT).within(Crowd(AT, 4, "p3"))
    then = Position(AT).within(Crowd(AT, 8, "p7"))
    positions = [position for _, position in Step((row(1), row(2), row(3)), here, then, AT).parts(2)]
    assert positions == [here, then]


def test_what_is_young_is_left_out() -> None:
    """But the position passes it: the next reading begins before it."""
    rows = tuple(row(number, number) for number in range(3))
    [(hints, position)] = Step(rows, Position(AT), Position(AT, deleted=True), AT).parts(9, AT + MILLISECOND)
    assert [each.reference for each in hints] == ["Patient/p0", "Patient/p1"]
    assert position == Position(AT, deleted=True)


def test_a_row_is_a_hint_like_a_notification() -> None:
    """A living one by its version, a deletion without one, both by catch-up and without content."""
    living, deleted = hint(row(1)), hint(Deleted("Patient/p2", None, AT, AT))
    assert (living.version_id, living.last_updated, living.author) == ("v1", AT, "Practitioner/d1")
    assert (deleted.version_id, deleted.last_updated, deleted.interaction) == (None, AT, "delete")
    assert {each.source for each in (living, deleted)} == {Source.CATCH_UP}
    assert living.body is None
