"""The judge of `make chaos` sees what it is there to see: each kind of harm, made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.times import DEADLINE_S, LANDS_WITHIN_S
from tests.chaos.plan import BOUND_S, RECIPES, Kind, draw
from tests.chaos.standing import Standing
from tests.chaos.verdict import Landing, Verdict, astray, backward, judge, landings

A, B = "Patient/a", "Patient/b"


def standing(**what: Any) -> Standing:
    """Stand where everything agrees, but for what is given."""
    well: dict[str, Any] = {
        "disagreements": {},
        "strays": {},
        "listed": {},
        "untold": frozenset(),
        "unanswered": frozenset(),
    }
    return Standing(**{**well, **what})


def landed(
    stamp: int, *, of: str = A, record: str = "patient/1", operation: str = "update", late: bool = False
) -> Landing:
    return Landing(record, operation, stamp, of, late)


def judged(quiet: Standing, *steps: Landing, end: Standing | None = None) -> Verdict:
    verdict = Verdict(identity_holds=True)
    judge(verdict, quiet, end or standing(), list(steps))
    return verdict


def test_a_quiet_run_is_kept() -> None:
    """Records that only grew, and agree, break nothing."""
    assert judged(standing(), landed(1, operation="create"), landed(2), landed(2)).broken == []


def test_an_older_state_after_a_newer_one_is_an_order_violation() -> None:
    """Over all records of a resource: a second record with an older state is one too."""
    assert backward([landed(2), landed(1)]) == [landed(1)]
    assert backward([landed(2), landed(1, record="patient/2")]) == [landed(1, record="patient/2")]
    assert judged(standing(), landed(2), landed(1)).backward


def test_a_write_after_the_delete_of_its_record_is_an_order_violation() -> None:
    """A record that lives on after its delete is not the last word of anybody."""
    assert backward([landed(1), landed(1, operation="delete"), landed(2)]) == [landed(2)]


def test_a_record_that_was_given_another_resources_content_is_astray() -> None:
    """Whose stamp a record carries is never two resources'."""
    assert astray([landed(1), landed(2, of=B)]) == [f"patient/1 was given {A} and {B}"]


def test_what_differs_and_is_on_no_list_is_lost() -> None:
    """On a list, never told of, or spoilt beyond the promise is something else."""
    differs = {"disagreements": {A: ("differs",)}}
    assert judged(standing(**differs)).lost
    assert not judged(standing(**differs, listed={A: "gone"}, unanswered=frozenset({A}))).broken
    assert not judged(standing(**differs, untold=frozenset({A}))).broken
    assert judged(standing(), end=standing(**differs)).lost


def test_a_second_record_is_detected_where_its_resource_is_held_for_it() -> None:
    """A stray that is on no list is an undetected duplicate."""
    stray = {"strays": {"patient/2": A}}
    assert judged(standing(**stray)).duplicates_undetected
    held = judged(standing(**stray, listed={A: "second record"}, unanswered=frozenset({A})))
    assert (held.duplicates_detected, held.duplicates_undetected) == (["patient/2, of Patient/a"], [])


def test_what_lands_beyond_the_promise_has_to_be_detected() -> None:
    """A late write that is the last word is on a list, or differs where both ends are compared."""
    steps = landed(2), landed(1, late=True)
    assert judged(standing(), *steps).beyond_undetected
    assert not judged(standing(disagreements={A: ("differs",)}), *steps).broken
    assert not judged(standing(listed={A: "conflict"}, unanswered=frozenset({A})), *steps).broken


def test_what_needs_a_person_is_explained_by_a_fault() -> None:
    """A resource that is held though each of its writes was answered was held for nothing."""
    assert judged(standing(listed={A: "gone"})).unexplained
    assert judged(standing(listed={A: "unmappable"}, unanswered=frozenset({A}))).unexplained


def test_a_landing_is_beyond_the_promise_by_the_clinics_own_times() -> None:
    """Only a late write, and only one that took longer than deadline and lands_within together."""
    times = {1: LANDS_WITHIN_S, 2: DEADLINE_S + LANDS_WITHIN_S + 1}
    journal = [{"n": n, "fault": "late", "received_at": 0.0, "applied_at": took} for n, took in times.items()]
    history = [
        {"journal": n, "record": f"patient/{n}", "operation": "update", "data": {"middle_name": f"v{n}"}} for n in times
    ]
    seen = landings(history, journal, {1: A, 2: B})
    assert [(each.reference, each.beyond) for each in seen] == [(A, False), (B, True)]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_plan_is_its_seeds_alone_and_has_every_kind(database: Any) -> None:
    """The same seed plans the same run, another one another; no kind is left out that the database can have."""
    plan = draw(1, seconds=60, database=database)
    assert plan == draw(1, seconds=60, database=database)
    assert plan != draw(2, seconds=60, database=database)
    assert {strike.kind for strike in plan} == {
        kind for kind, recipe in RECIPES.items() if recipe.only in (None, database)
    }


def test_late_is_well_on_either_side_of_the_promise() -> None:
    """No planned delay is so near the bound that a busy machine decides on which side it falls."""
    assert RECIPES[Kind.LATE_WITHIN].seconds[1] <= LANDS_WITHIN_S
    assert RECIPES[Kind.LATE_BEYOND].seconds[0] > BOUND_S + 1
