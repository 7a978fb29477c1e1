"""M1 to M9: the mutants of the explicit-state model that the protocol was checked with, in the words of the code.

M8c, a freeze on the way to the socket and then a kill, has no mutant: the protocol admits that hole, and reconciliation
finds it. `test_found` shows what it looks like.
"""

from __future__ import annotations

from tests.machine.mutants.mutant import FREEZING, FROZEN, Edit, Mutant

ANSWERING, CLAIMING = "worker/ledger/answering.py", "worker/ledger/claiming.py"
ENDING, LINKING = "worker/ledger/ending.py", "worker/ledger/linking.py"
PLAN, SENDING, SYNC, WRITING = "worker/plan.py", "worker/sending.py", "worker/sync.py", "worker/writing.py"
RACES, WRITES = "tests/integration/sync/test_races.py", "tests/contract/ledger/test_writing.py"

FORGET_HINTS = Edit(
    ENDING, '_unhinted = mirrors.c.hints == bindparam("hints_claimed")', '_unhinted = bindparam("hints_claimed") >= 0'
)
SUPERSEDE_ALL = Edit(
    ENDING,
    'UNSETTLED, changes.c.hint <= bindparam("hints_claimed"))',
    'UNSETTLED, bindparam("hints_claimed") >= 0)',
)
KEEP_DIGEST = (
    Edit(ANSWERING, "_void = update(links)", "_void = update(links).where(links.c.id < 0)"),
    Edit(PLAN, "written = not moves and not doubtful and", "written = not moves and"),
)
NO_BOUND = (
    Edit(
        ANSWERING,
        "held.open_until is not None and held.open_until > tx.now",
        "held.open_until is None and held.heat < 0",
    ),
    Edit(
        WRITING, 'Again("unknown outcome", answered.detail, until=announced.bound)', 'Again("unknown", answered.detail)'
    ),
)
WAIT_FOR_NOTHING = Edit(SYNC, "        _let_old_writes_land(claim)\n", "")
WAIT_FOR_CREATES = Edit(
    SYNC,
    "max((write.bound for write in claim.unresolved), default=None)",
    "max((write.bound for write in claim.unresolved if write.operation == 'create'), default=None)",
)
ONLY_SEEN_TIMEOUTS = (
    Edit(
        CLAIMING,
        "select(announced).where(announced.c.reference == OF, announced.c.outcome.is_(None)).order_by",
        "select(announced).where(announced.c.reference == OF, announced.c.outcome.is_(None), "
        "announced.c.answered_at.is_not(None)).order_by",
    ),
    NO_BOUND[0],
)
DROP_LATE = Edit(
    ANSWERING,
    "        in_doubt_again = answer.outcome is None",
    "        if late:\n            return mine\n        in_doubt_again = answer.outcome is None",
)
NO_SEND_CHECK = Edit(
    WRITING, "if self._monotonic() - began > self._send_within_s:", "if self._monotonic() - began > 1e9:"
)
NO_EPOCH = (
    Edit(LINKING, '"epoch": link.epoch + (1 if late else 0)}', '"epoch": link.epoch}'),
    Edit(LINKING, '"epoch": epoch + (1 if late else 0),', '"epoch": epoch,'),
    Edit(LINKING, "trusted = not late and link.epoch == write.link_epoch", "trusted = link.epoch == write.link_epoch"),
)

MODEL_MUTANTS = (
    Mutant("M1", "1: a hint during an attempt leaves the mirror due", (FORGET_HINTS,)),
    Mutant("M2", "4: settling covers what was accepted before the claim", (SUPERSEDE_ALL,)),
    Mutant("M3", "3a, 3d: while a write is in doubt no digest is believed", KEEP_DIGEST),
    Mutant("M4", "3c: an update in doubt is not sent again before its bound", (*NO_BOUND, WAIT_FOR_CREATES)),
    Mutant("M5", "3c: a create in doubt is not looked up before its bound", (*NO_BOUND, WAIT_FOR_NOTHING)),
    Mutant("M6", "3a: what was announced is in doubt, seen to time out or not", ONLY_SEEN_TIMEOUTS),
    Mutant(
        "M7",
        "3b: a fenced holder's answer is recorded",
        (DROP_LATE,),
        (FREEZING, FROZEN, f"{RACES}::test_a_late_answer_is_adopted"),
    ),
    Mutant("M8", "3a: the sender looks at send-by before it sends", (NO_SEND_CHECK,)),
    Mutant(
        "M8b",
        "3f: a late answer leaves the digest void",
        NO_EPOCH,
        (FREEZING, FROZEN, f"{WRITES}::test_a_settle_with_an_old_epoch_leaves_the_digest_void"),
    ),
    Mutant(
        "M9",
        "3: M3, M5, M6 and M7 at once",
        (*KEEP_DIGEST, *NO_BOUND, WAIT_FOR_NOTHING, ONLY_SEEN_TIMEOUTS[0], DROP_LATE),
    ),
)
