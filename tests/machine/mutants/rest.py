"""Rules of the other sections, taken away one by one: hints, reads, leases, dispatch, parents, recovery, SQL."""

from __future__ import annotations

from tests.machine.mutants.models import ANSWERING, CLAIMING, ENDING, LINKING, RACES, SYNC
from tests.machine.mutants.mutant import MACHINE, Edit, Mutant
from tests.machine.mutants.writes import INTAKE

STATEMENTS, BACKLOG = "worker/ledger/statements.py", "worker/ledger/backlog.py"
DATABASE, READS = "worker/ledger/database.py", "worker/medplum/reads.py"
CLAIM, QUEUE = "tests/contract/ledger/test_claim.py", "tests/contract/ledger/test_backlog.py"
HINTS, CHILDREN = "tests/contract/ledger/test_intake.py", "tests/contract/ledger/test_parents.py"
READING, DELETES = "tests/integration/sync/test_reading.py", "tests/integration/sync/test_deletes.py"

OTHER_MUTANTS = (
    Mutant(
        "not-before-ignored",
        "1: a mirror runs at the later of due_at and not_before",
        (Edit(STATEMENTS, "    or_(mirrors.c.not_before.is_(None), mirrors.c.not_before <= NOW),\n", ""),),
        (f"{CLAIM}::test_an_attempt_is_not_made_before_its_time",),
    ),
    Mutant(
        "repeat-does-not-wake",
        "1: a repeated hint suppresses the row and never the wake-up",
        (
            Edit(
                INTAKE,
                "            counts[hint.reference] += 1\n",
                "            if (hint.reference, hint.version_id) in known:\n                continue\n"
                "            counts[hint.reference] += 1\n",
            ),
        ),
        (f"{HINTS}::test_a_repeated_version_wakes_and_makes_no_row",),
    ),
    Mutant(
        "hint-wakes-held",
        "1: a hint does not wake a held mirror",
        (Edit(INTAKE, "_held = mirrors.c.state == State.HELD.value", "_held = mirrors.c.state == 'nothing'"),),
        (f"{HINTS}::test_a_hint_does_not_wake_a_held_mirror",),
    ),
    Mutant(
        "failed-stays",
        "1: a hint wakes a failed mirror, attempts anew",
        (
            Edit(
                INTAKE, "_held = mirrors.c.state == State.HELD.value", "_held = mirrors.c.state.in_(('held', 'failed'))"
            ),
        ),
    ),
    Mutant(
        "no-spacing",
        "1: writes of one mirror are spaced",
        (Edit(ANSWERING, "SPACING_S, SPACING_MOST_S, HOTTEST = 1.0,", "SPACING_S, SPACING_MOST_S, HOTTEST = 0.0,"),),
        (f"{RACES}::test_a_burst_makes_few_writes",),
    ),
    Mutant(
        "stale-get",
        "2: reads by search, never by GET",
        (Edit(SYNC, "read = self._medplum.read(claim.reference", "read = self._medplum.get(claim.reference"),),
    ),
    Mutant(
        "default-page",
        "2: a page is as large as what is asked for",
        (Edit(READS, 'query = {"_id": ",".join(ids), "_count": str(len(ids))}', 'query = {"_id": ",".join(ids)}'),),
        ("tests/unit/medplum/test_reads.py",),
    ),
    Mutant(
        "joins-late",
        "2: a read begins after it was asked for",
        (
            Edit(
                READS,
                "        self._waiting = [seat for seat in self._waiting if seat not in company]\n",
                "        self._waiting = []\n",
            ),
        ),
        ("tests/unit/medplum/test_reads.py",),
    ),
    Mutant(
        "partial-read-believed",
        "2: a read that lacks a notified member holds the route",
        (Edit(SYNC, "        if hidden is None:\n            return\n", "        return\n"),),
        (f"{READING}::test_a_read_that_lacks_a_member_pauses_the_route",),
    ),
    Mutant(
        "absent-at-once",
        "2: absent is looked at again before it is believed",
        (Edit(SYNC, "if claim.absent_since is None or claim.claimed_at", "if False and claim.claimed_at"),),
        (f"{DELETES}::test_absent_once_is_not_absent_twice",),
    ),
    Mutant(
        "forged-first",
        "2, 5: what only a delete hint names is read last",
        (
            Edit(
                SYNC,
                "return Priority.SECOND_LOOK if claim.never_seen or not claim.asked else Priority.LIVE",
                "return Priority.LIVE",
            ),
        ),
        (f"{DELETES}::test_forged_deletes_and_second_looks_come_after_live_reads",),
    ),
    Mutant(
        "budget-endless",
        "6: an attempt out of time announces nothing",
        (Edit("worker/calling.py", "        if left < LEAST_CALL_S:\n", "        if left < -1e9:\n"),),
        (f"{RACES}::test_a_spent_budget_announces_nothing",),
    ),
    Mutant(
        "two-holders",
        "6: a leased mirror is nobody else's",
        (Edit(STATEMENTS, "    or_(mirrors.c.lease_until.is_(None), mirrors.c.lease_until <= NOW),\n", ""),),
        (f"{CLAIM}::test_a_mirror_has_one_holder",),
    ),
    Mutant(
        "live-leases-freed",
        "6: leases are freed early only of a stale heartbeat",
        (Edit(BACKLOG, "instances.c.heartbeat_at >= tx.now - STALE_HEARTBEAT", "instances.c.heartbeat_at > tx.now"),),
        (f"{QUEUE}::test_a_stale_heartbeat_frees_leases_early",),
    ),
    Mutant(
        "pause-at-claim-only",
        "6: a pause is read at each announcement",
        (Edit(ANSWERING, "        if not held.allowed:\n", "        if False:\n"),),
        (f"{RACES}::test_a_pause_stops_the_next_announcement",),
    ),
    Mutant(
        "stop-ignored",
        "6: a worker that stops announces nothing new",
        (Edit("worker/calling.py", "        if self._stopping():\n", "        if False:\n"),),
        (f"{RACES}::test_a_worker_that_stops_claims_and_announces_nothing",),
    ),
    Mutant(
        "suspects-in-company",
        "6: a suspect runs alone",
        (Edit(CLAIMING, '"starts_at_most": _no_limit if alone else 0,', '"starts_at_most": _no_limit,'),),
        (f"{RACES}::test_what_kills_its_process_again_and_again_is_failed",),
    ),
    Mutant(
        "poison-forever",
        "6: consecutive starts without an end are counted",
        (Edit(SYNC, "        if claim.starts > POISON_STARTS:\n", "        if False:\n"),),
        (f"{RACES}::test_what_kills_its_process_again_and_again_is_failed",),
    ),
    Mutant(
        "types-in-line",
        "7: dispatch takes the types in turn",
        (
            Edit(
                BACKLOG,
                "        chosen += [queue[position] for queue in queues if position < len(queue)]\n",
                "        chosen += [each for queue in reversed(queues) for each in queue if not position]\n",
            ),
        ),
        (f"{QUEUE}::test_types_take_turns",),
    ),
    Mutant(
        "published-twice",
        "7: what is queued is not published again at once",
        (
            Edit(
                BACKLOG,
                "_unqueued = or_(mirrors.c.queued_at.is_(None), ",
                "_unqueued = or_(mirrors.c.reference != '', ",
            ),
        ),
        (f"{QUEUE}::test_what_is_due_is_picked_once",),
    ),
    Mutant(
        "closed-gate-published",
        "7: before a closed gate nothing is published",
        (Edit(BACKLOG, "routed_types(tx) - _before_a_closed_gate(tx)", "routed_types(tx)"),),
        (f"{QUEUE}::test_nothing_is_picked_before_a_closed_gate",),
    ),
    Mutant(
        "parent-unlocked-by-child",
        "8, 13: a child locks its parent before it looks",
        (Edit(ENDING, ".where(mirrors.c.reference == OF).with_for_update()", ".where(mirrors.c.reference == OF)"),),
        (f"{CHILDREN}::test_a_child_locks_its_parent_before_it_looks",),
    ),
    Mutant(
        "link-wakes-nobody",
        "8: a new link wakes those who wait for it",
        (
            Edit(
                LINKING,
                "write.parents.values(), PARENT)\n    tx.execute(WAKE_CHILDREN,",
                "write.parents.values(), PARENT)\n    tx.execute(WAKE_CHILDREN.where(mirrors.c.token < 0),",
            ),
        ),
        (MACHINE, f"{CHILDREN}::test_a_link_wakes_those_who_wait_for_it"),
    ),
    Mutant(
        "edge-triggered",
        "8: wake-ups are level-triggered as well",
        (Edit(BACKLOG, "        self._wake_waiting()\n", ""),),
        (f"{CHILDREN}::test_a_missed_wake_up_is_made_up_for",),
    ),
    Mutant(
        "slow-look-never",
        "8: a waiting mirror takes a slow look by itself",
        (Edit(ENDING, "look_at=tx.now + WAITING_LOOK, waiting_for=parent", "look_at=None, waiting_for=parent"),),
    ),
    Mutant(
        "circles-wait",
        "8: a circle fails",
        (
            Edit(
                ENDING,
                "circle = parent == claim.reference or _waits_for(tx, parent, claim.reference)",
                "circle = False",
            ),
        ),
        (f"{CHILDREN}::test_a_circle_is_told",),
    ),
    Mutant(
        "dependents-untold",
        "8: a changed or buried key makes dependents due",
        (Edit(LINKING, '    tx.execute(_ask_dependents, {"of": of, "now": tx.now})\n', ""),),
    ),
    Mutant(
        "old-key-sent",
        "8: a key that moved since it was looked up is not sent",
        (Edit(ANSWERING, "        if write.uses:\n", "        if False:\n"),),
        (MACHINE, f"{CHILDREN}::test_a_key_that_moved_before_the_announcement_is_not_sent"),
    ),
    Mutant(
        "moved-in-place",
        "8: a move to another parent is held where nothing is declared",
        (
            Edit(
                "worker/plan.py",
                'return Doubt.OTHER_PARENT if moved == "hold" and',
                'return Doubt.OTHER_PARENT if moved == "never" and',
            ),
        ),
        ("tests/integration/sync/test_moved.py::test_a_moved_record_is_held_where_nothing_is_declared",),
    ),
    Mutant(
        "edits-overwritten",
        "11: what was edited in the legacy system is held or kept",
        (
            Edit(
                "worker/sending.py",
                '        if not others:\n            return write\n        why = f"edited',
                '        if others is not None:\n            return write\n        why = f"edited',
            ),
        ),
        ("tests/integration/sync/test_conflicts.py::test_a_conflict_is_held_with_both_sides",),
    ),
    Mutant(
        "recovered-creates",
        "12: while recovering every create is looked up first",
        (
            Edit(
                "worker/sending.py",
                "        if not (self._claim.recovering or declared or forgotten):\n",
                "        if not (declared or forgotten):\n",
            ),
        ),
        (
            "tests/integration/sync/test_conflicts.py::test_a_record_that_is_there_is_linked_and_not_made_again",
            "tests/integration/sync/test_recovered.py::test_no_second_record_is_made_for_what_was_forgotten",
        ),
    ),
    Mutant(
        "deferred-begin",
        "13: SQLite takes its write lock at BEGIN",
        (
            Edit(
                DATABASE,
                'connection.exec_driver_sql("BEGIN IMMEDIATE")',
                'connection.exec_driver_sql("BEGIN DEFERRED")',
            ),
        ),
        ("tests/contract/ledger/test_database.py", "tests/contract/ledger/test_together.py"),
    ),
)
