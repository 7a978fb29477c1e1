"""The rules of catch-up, taken away one by one: what proves a time, what is dropped, and what a crowd hides."""

from __future__ import annotations

from tests.machine.mutants.mutant import Edit, Mutant

WINDOWS, CATCHING, READING = "worker/ledger/windows.py", "worker/catch_up/catching.py", "worker/catch_up/reading.py"
VERBS, CROWDED = "tests/contract/ledger/test_windows.py", "tests/integration/catch_up/test_crowded.py"
FOUND = "tests/integration/sync/test_catch_up.py"

CATCH_UP_MUTANTS = (
    Mutant(
        "no-overlap",
        "10: a window is proven up to the overlap before Medplum's time when its reading began",
        (Edit(CATCHING, "proven_to = window.asked_at - self._overlap", "proven_to = window.asked_at"),),
        (f"{FOUND}::test_what_is_committed_late_is_found",),
    ),
    Mutant(
        "any-position",
        "10: rows, marks and position commit together, and one reader goes on",
        (
            Edit(
                WINDOWS,
                "stands = windows.c.position.is_(None) if found is None else windows.c.position == found",
                "stands = windows.c.id > 0",
            ),
        ),
        (f"{VERBS}::test_rows_marks_and_position_commit_together",),
    ),
    Mutant(
        "deletions-unread",
        "10: the deletions are read through as well",
        (
            Edit(
                READING,
                "then = None if position.deleted else Position(begin, deleted=True)",
                "then = None",
            ),
        ),
        (f"{FOUND}::test_what_medplum_never_sent_is_found",),
    ),
    Mutant(
        "known-is-enough",
        "10: a row is dropped only where it was settled last, or its mirror is at work on it",
        (Edit(WINDOWS, "at_work = mirror.state != State.CURRENT  #", "at_work = True  #"),),
        (f"{VERBS}::test_an_open_delete_hint_is_woken_where_its_mirror_rests",),
    ),
    Mutant(
        "failed-again-and-again",
        "10: a pass over the overlap wakes no mirror that failed on what it reads again",
        (Edit(WINDOWS, "at_work = mirror.state != State.CURRENT  #", "at_work = False  #"),),
        (f"{VERBS}::test_a_failed_version_is_not_tried_again_by_each_pass",),
    ),
    Mutant(
        "any-deletion",
        "10: a deletion is dropped only where that very deletion was settled",
        (
            Edit(
                WINDOWS,
                "settled = mirror.applied_version is None and mirror.applied_updated == hint.last_updated is not None",
                "settled = mirror.applied_version is None",
            ),
        ),
        (f"{VERBS}::test_a_deletion_that_was_settled_is_dropped",),
    ),
    Mutant(
        "offset-believed",
        "10: an offset page is believed only where it joins on",
        (Edit(READING, "if offset == 0 or joins:", "if offset >= 0 or joins:"),),
        (f"{CROWDED}::test_rows_that_leave_the_millisecond_hide_no_other",),
    ),
    Mutant(
        "crowd-passed-over",
        "10: what cannot be read whole stays unproven, with the reason",
        (Edit(WINDOWS, "if _doubt(tx, window.resource_type, moment, moment, why):", "if moment is None:"),),
        (f"{CROWDED}::test_more_than_both_ends_reach_is_named",),
    ),
    Mutant(
        "one-end",
        "10: a crowded millisecond is read from both ends",
        (
            Edit(
                READING,
                "        if not crowd.back:\n            turned",
                "        if crowd.at is None:\n            turned",
            ),
        ),
        (f"{CROWDED}::test_a_row_that_leaves_behind_the_front_hides_no_other",),
    ),
    Mutant(
        "fill-before-live",
        "10: nothing is taken while much is due",
        (Edit(CATCHING, "asked_at=step.at, due_most=self._due_most", "asked_at=step.at"),),
        (f"{FOUND}::test_live_changes_go_before_a_first_fill",),
    ),
)
