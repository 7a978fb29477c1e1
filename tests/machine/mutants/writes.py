"""Rules of sections 3, 4, 5 and 9, taken away one by one: writing, settling, deletes, several records."""

from __future__ import annotations

from tests.machine.mutants.models import ANSWERING, ENDING, LINKING, PLAN, SENDING, SYNC, WRITES, WRITING
from tests.machine.mutants.mutant import FREEZING, FROZEN, MACHINE, REPLACING, TAKEN, Edit, Mutant

LOOKING, INTAKE = "worker/looking.py", "worker/ledger/intake.py"
RESULTS, SEALING = "worker/mapping/results.py", "worker/ledger/sealing.py"
TEMPLATE, OUTCOME = "worker/legacy/template.py", "worker/legacy/outcome.py"
UNKNOWN = "tests/integration/sync/test_unknown.py"
AGAIN = "tests/integration/sync/test_create_again.py"
DELETES = "tests/integration/sync/test_deletes.py"
SETTLING = "tests/contract/ledger/test_settling.py"
TOOLKIT = "tests/unit/mapping/test_toolkit.py"

WRITE_MUTANTS = (
    Mutant(
        "announcement-unfenced",
        "3a: only the holder of a running lease announces",
        (
            Edit(
                ANSWERING,
                '        mirrors.c.token == bindparam("with_token"),\n',
                "        bindparam('with_token') >= 0,\n",
            ),
            Edit(ANSWERING, '        mirrors.c.lease_owner == bindparam("by"),\n', "        bindparam('by') != '',\n"),
            Edit(ANSWERING, "        mirrors.c.lease_until > NOW,\n", ""),
        ),
        (MACHINE, f"{WRITES}::test_a_fenced_holder_announces_nothing"),
    ),
    Mutant(
        "body-not-kept",
        "3a: what is sent is kept sealed with its announcement",
        (Edit(ANSWERING, '"body": self._sealed_fields(claim.reference, write),', '"body": None,'),),
    ),
    Mutant(
        "late-delete-forgotten",
        "3f: a late answer of a delete buries the link",
        (Edit(LINKING, "        if not late or _nobody_wrote_since(tx, write):\n", "        if not late:\n"),),
        (f"{WRITES}::test_a_late_delete_buries_a_link_where_nobody_wrote_since",),
    ),
    Mutant(
        "late-answer-sleeps",
        "3f: a late answer makes the mirror due",
        (
            Edit(
                ANSWERING,
                "        if late:\n            _wake_for_late_answer(tx, write.reference)\n        elif",
                "        if",
            ),
        ),
        (FREEZING, FROZEN, f"{WRITES}::test_a_late_answer_wakes_a_mirror_that_sleeps"),
    ),
    Mutant(
        "given-up-for-good",
        "3f: what is sent after it was given up is in doubt again",
        (Edit(ANSWERING, "write.outcome == WriteOutcome.LAPSED\n", "write.outcome == 'never'\n"),),
        (FREEZING, f"{WRITES}::test_a_write_that_was_given_up_and_then_sent_without_an_answer_is_in_doubt_again"),
    ),
    Mutant(
        "answer-dies-with-settling",
        "3b: an answer is recorded as soon as it is known",
        (Edit(WRITING, "        self.record_last()\n        raise self._stop(", "        raise self._stop("),),
        (MACHINE, f"{UNKNOWN}::test_not_done_is_tried_again"),
    ),
    Mutant(
        "create-again-without-find",
        "3d: a create in doubt is looked up before another is sent",
        (
            Edit(
                SENDING,
                "        if creates:\n            hit = self._looker.unanswered",
                "        if False:\n            hit = self._looker.unanswered",
            ),
        ),
    ),
    Mutant(
        "differing-record-linked",
        "3d: a record that differs from what was sent is held",
        (
            Edit(
                LOOKING,
                '        if differing or len(agreeing) > 1:\n            told = f"differ',
                '        if len(agreeing) > 1:\n            told = f"differ',
            ),
        ),
        (f"{UNKNOWN}::test_a_record_that_differs_is_held_with_the_fields_names",),
    ),
    Mutant(
        "owned-record-linked",
        "3d: a record that another resource owns is not linked",
        (
            Edit(LOOKING, "for key, hit in hits.items() if key not in owned}", "for key, hit in hits.items()}"),
            Edit(LINKING, "if key_is_taken or not _put_link", "if not _put_link"),
        ),
        (
            f"{UNKNOWN}::test_a_record_of_another_resource_is_never_linked",
            f"{WRITES}::test_a_found_record_of_another_is_not_adopted",
        ),
    ),
    Mutant(
        "no-second-look",
        "3d: after a repeated create a second record is looked for",
        (Edit(SENDING, "        if step.look:\n", "        if False:\n"),),
        (f"{UNKNOWN}::test_a_record_that_lands_late_after_all_is_held",),
    ),
    Mutant(
        "second-key-taken",
        "3e: a second key for one slot holds the mirror",
        (
            Edit(
                LINKING,
                "    if second and not _takes_its_place(tx, write, answer, link, late=late):\n",
                "    if False:\n",
            ),
        ),
        (MACHINE, FREEZING, f"{WRITES}::test_a_second_key_for_one_slot_holds"),
    ),
    Mutant(
        "digest-forever",
        "3g: only equal content skips a write",
        (Edit(PLAN, "link.digest is not None and is_written(link.digest, record)", "link.digest is not None"),),
    ),
    Mutant(
        "own-author-skips",
        "3g: our own author chooses the word and skips no write",
        (
            Edit(
                SYNC,
                "        keys = self._keys(steps)\n",
                "        if settlement.author == self._medplum.own_author:\n"
                "            return self._ends.finish(claim, settlement.said(Disposition.ECHO))\n"
                "        keys = self._keys(steps)\n",
            ),
        ),
    ),
    Mutant(
        "replay-keeps-digest",
        "3g: a replay voids the digests first",
        (
            Edit(
                "worker/ledger/operate.py",
                ".values(digest=None, epoch=links.c.epoch + 1))",
                ".values(epoch=links.c.epoch + 1))",
            ),
        ),
        ("tests/contract/ledger/test_operate.py::test_a_replay_marks_due_and_voids_the_digest",),
    ),
    Mutant(
        "digest-plain",
        "3h: the digest is an HMAC under a key of its own",
        (Edit(SEALING, "hmac.digest(self._digest_keys[name], data, 'sha256')", "hmac.digest(b'', data, 'sha256')"),),
        ("tests/unit/test_sealing.py",),
    ),
    Mutant(
        "digest-of-signatures",
        "3h: of a presigned URL only the path counts",
        (Edit(RESULTS, "return presigned[0] if presigned else value", "return value"),),
        (TOOLKIT,),
    ),
    Mutant(
        "identity-unchecked",
        "3i: the record under our key has to be ours",
        (
            Edit(
                LOOKING,
                '        if others:\n            raise Hold("identity"',
                '        if False:\n            raise Hold("identity"',
            ),
        ),
        (f"{DELETES}::test_a_record_that_says_it_is_anothers_is_not_touched",),
    ),
    Mutant(
        "key-unencoded",
        "3j: each brace is encoded for its place",
        (Edit(TEMPLATE, 'lookup(brace[1])), safe="")', 'lookup(brace[1])), safe="/")'),),
        ("tests/unit/legacy/test_collection.py::test_a_key_stays_one_segment",),
    ),
    Mutant(
        "dots-in-path",
        "3j: an empty key, . or .. fails before the call",
        (Edit(TEMPLATE, 'in {"", ".", ".."} for segment', 'in {"\\0"} for segment'),),
        ("tests/unit/legacy/test_collection.py::test_a_key_that_would_change_the_path_is_refused",),
    ),
    Mutant(
        "deletes-unbudgeted",
        "3k: deletes have a budget by route and hour",
        (
            Edit(
                ANSWERING,
                "        if write.operation is Operation.DELETE and not claim.released:\n",
                "        if False:\n",
            ),
        ),
        (f"{WRITES}::test_deletes_have_a_budget_by_the_hour",),
    ),
    Mutant(
        "500-is-not-done",
        "3l: a create answered 500 is unknown",
        (Edit(OUTCOME, "_NOT_DONE = frozenset({401,", "_NOT_DONE = frozenset({500, 401,"),),
    ),
    Mutant(
        "timeout-is-not-done",
        "3l: no answer after the bytes went out is unknown",
        (
            Edit(
                "worker/legacy/api.py",
                "outcome = Outcome.UNKNOWN if sent else Outcome.NOT_DONE",
                "outcome = Outcome.NOT_DONE",
            ),
        ),
    ),
    Mutant(
        "applied-unread",
        "4: a version that nobody told of gets its row when read",
        (Edit(ENDING, "    if row is None and _is_told(claim, settlement):\n", "    if False:\n"),),
        (MACHINE, f"{SETTLING}::test_a_version_that_nobody_told_of_gets_a_row"),
    ),
    Mutant(
        "unfenced-settling",
        "4: only the attempt that holds the mirror settles it",
        (
            Edit(
                ENDING,
                'mirrors.c.token == bindparam("with_token"), mirrors.c.lease_owner == bindparam("by")',
                'bindparam("with_token") >= 0, bindparam("by") != ""',
            ),
        ),
        (MACHINE, "tests/contract/ledger/test_claim.py::test_a_fenced_attempt_changes_neither_mirror_nor_changes"),
    ),
    Mutant(
        "uncounted",
        "4: accepted is counted where the row is made",
        (Edit(ENDING, '        add_up(tx, "accepted", {(Source.READ.value, claim.resource_type): 1})\n', ""),),
    ),
    Mutant(
        "phantom-at-once",
        "4: a delete hint is a phantom only after 60 s",
        (Edit(ENDING, "PHANTOM_AFTER = timedelta(seconds=60)", "PHANTOM_AFTER = timedelta(0)"),),
        (f"{SETTLING}::test_a_read_that_started_too_early_makes_no_phantom",),
    ),
    Mutant(
        "phantom-never-looks",
        "4: a young delete hint is looked at again",
        (Edit(ENDING, "    look_at = received + PHANTOM_AFTER\n", "    look_at = received + timedelta(days=9)\n"),),
    ),
    Mutant(
        "two-delete-hints",
        "5: there is one open delete hint for a resource",
        (
            Edit(
                INTAKE,
                "        known |= {(each, None): False for each in",
                "        _ = {(each, None): False for each in",
            ),
        ),
        (MACHINE, "tests/contract/ledger/test_intake.py::test_there_is_one_open_delete_hint"),
    ),
    Mutant(
        "no-tombstone",
        "5: a deleted record leaves a tombstone",
        (Edit(LINKING, '{"state": LinkState.TOMBSTONE, "look_at": None}', '{"look_at": None}'),),
    ),
    Mutant(
        "forgotten-unlooked",
        "5, 8: what a person says is gone is looked for before another is made",
        (
            Edit(
                SENDING,
                "        if not (self._claim.recovering or declared or forgotten):\n",
                "        if not (self._claim.recovering or declared):\n",
            ),
        ),
        (f"{AGAIN}::test_what_is_there_after_all_is_found_and_not_made_twice",),
    ),
    Mutant(
        "forgotten-is-owned",
        "5, 8: the record that was given up is found as nobody else's",
        (Edit("worker/looking.py", "            owned.discard(first(own.keys))\n", "            pass\n"),),
        (f"{AGAIN}::test_what_is_there_after_all_is_found_and_not_made_twice",),
    ),
    Mutant(
        "forgotten-within-the-bound",
        "3c: nothing is said to be gone while a write may still land",
        (
            Edit(
                "worker/ledger/forgetting.py",
                "    if bound is not None and bound > tx.now:\n",
                "    if bound is None:\n",
            ),
        ),
        ("tests/contract/ledger/test_forgetting.py::test_not_while_a_write_may_still_land",),
    ),
    Mutant(
        "absent-deletes",
        "2, 5: absent leads to no delete without the route's words",
        (Edit(SYNC, '                case "absent":\n', '                case "absent" | "hold":\n'),),
        (f"{DELETES}::test_what_is_absent_is_held_and_never_deleted",),
    ),
    Mutant(
        "half-replaced-forgotten",
        "9: the half-way point of a replace is a state of the link",
        (
            Edit(
                LINKING,
                'half = {"state": LinkState.HALF_REPLACED, "key": None, "baseline": None}',
                'half = {"key": None}',
            ),
        ),
        (REPLACING, "tests/integration/sync/test_replace.py::test_the_half_way_point_is_a_state_of_the_link"),
    ),
    Mutant(
        "old-record-stays",
        "9: the record whose place is taken is deleted, though an attempt died",
        (
            Edit(
                SENDING, "        if step.link is not None and step.link.old_keys is not None:\n", "        if False:\n"
            ),
        ),
        (REPLACING,),
    ),
    Mutant(
        "undelete-forgotten",
        "5: what an undelete in doubt may have brought back is deleted again",
        (Edit(PLAN, "undeleting = link is not None and _undeleting(link, unresolved)", "undeleting = False"),),
        (REPLACING,),
    ),
    Mutant(
        "met-nothing-settles",
        "5: an undelete that meets nothing says nothing of older writes",
        (
            Edit(
                ANSWERING,
                "        elif write.older and _settles_older(write, answer):\n",
                "        elif write.older:\n",
            ),
        ),
        (REPLACING, f"{WRITES}::test_only_a_delete_that_meets_nothing_says_what_became_of_older_writes"),
    ),
    Mutant(
        "own-delete-forgotten",
        "5: what our own delete took is no reason to hold",
        (
            Edit(
                SENDING,
                "return self._ledger.may_have_the_last_word(self._claim.reference, step.slot, operation)",
                "return False",
            ),
        ),
        (REPLACING, FREEZING, TAKEN),
    ),
    Mutant(
        "replace-in-doubt-repeated",
        "9: the new record that was made without an answer is found",
        (
            Edit(
                SENDING,
                "        hit = self._looker.unanswered(record.collection, creates, link) if creates else None\n",
                "        hit = None\n",
            ),
        ),
        (REPLACING,),
    ),
    Mutant(
        "slots-shared",
        "9: each slot has a link of its own",
        (
            Edit(
                PLAN,
                "        if record is None:\n            steps.append(_unwanted",
                '        if record is None and slot != "work":\n            steps.append(_unwanted',
            ),
        ),
        (MACHINE,),
    ),
)
