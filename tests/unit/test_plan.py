"""What has to be done for one resource, from what is wanted and what is known: every case of `worker.plan`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.ledger.values import Link, LinkState, OpenWrite, Operation
from worker.legacy import LegacyApi, Unsupported
from worker.mapping.results import MappedRecord
from worker.plan import Doubt, Step, plan

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
API = LegacyApi("clinic", base_url="http://127.0.0.1:9", auth=None, zone="UTC")
PEOPLE, VISITS = (
    API.collection(
        name,
        keys=("id",),
        create=f"POST /{name}",
        update=f"PUT /{name}/{{id}}",
        delete=f"DELETE /{name}/{{id}}",
        find=Unsupported("no lookup"),
    )
    for name in ("people", "visits")
)


def record(slot: str = "", *, to: Any = PEOPLE, parents: dict[str, str] | None = None) -> MappedRecord:
    return MappedRecord(slot, to, {"name": slot}, parents or {})


def link(slot: str = "", **changed: Any) -> Link:
    known: dict[str, Any] = {
        "id": 1,
        "reference": "Patient/p1",
        "slot": slot,
        "collection": "people",
        "keys": {"id": 17},
        "state": LinkState.LINKED,
        "digest": f"written:{slot}",
        "epoch": 0,
        "parents": {},
        "look_at": None,
    }
    return Link(**(known | changed))


def unresolved(operation: Operation, slot: str = "") -> OpenWrite:
    return OpenWrite(9, slot, "people", operation, NOW - timedelta(seconds=1), {"name": ""}, {})


def planned(
    records: list[MappedRecord], links: list[Link] | None = None, writes: list[OpenWrite] | None = None
) -> tuple[Step, ...]:
    return plan(records, links or [], writes or [], now=NOW, is_written=lambda d, r: d == f"written:{r.slot}")


def operation(*given: Any) -> Operation | None:
    [step] = planned(*given)
    return step.operation


def test_nothing_wanted_and_nothing_known_is_nothing_to_do() -> None:
    """A resource without records in the legacy system, wanted or known, takes no step."""
    assert planned([]) == ()


def test_a_wanted_record_without_a_link_is_created() -> None:
    """No link, no doubt: create."""
    [step] = planned([record()])
    assert (step.operation, step.link, step.unresolved) == (Operation.CREATE, None, ())


def test_a_linked_record_with_other_content_is_updated() -> None:
    """The digest is that of other content: update, under the link's keys."""
    [step] = planned([record()], [link(digest="other")])
    assert step.operation is Operation.UPDATE
    assert step.link is not None
    assert step.link.keys == {"id": 17}


@pytest.mark.parametrize(
    ("digest", "writes", "expected"),
    [
        ("written:", [], None),
        (None, [], Operation.UPDATE),
        ("written:", [unresolved(Operation.UPDATE)], Operation.UPDATE),
        ("written:", [unresolved(Operation.DELETE)], Operation.UPDATE),
    ],
    ids=["equal", "void", "an update in doubt", "a delete in doubt"],
)
def test_only_a_digest_beyond_doubt_skips_a_write(
    digest: str | None, writes: list[OpenWrite], expected: Operation | None
) -> None:
    """Equal content skips the write where the digest is there and nothing is unresolved, and nowhere else (3g)."""
    assert operation([record()], [link(digest=digest)], writes) is expected


@pytest.mark.parametrize("state", [LinkState.TOMBSTONE, LinkState.HALF_REPLACED])
def test_a_record_that_is_not_there_is_created_anew(state: LinkState) -> None:
    """A link whose record is deleted does not stand in the way of a new one, whatever its digest."""
    assert operation([record()], [link(state=state)]) is Operation.CREATE


def test_a_record_that_was_left_behind_is_updated_when_it_is_wanted_again() -> None:
    """What could not be deleted is still there, and still ours."""
    assert operation([record()], [link(state=LinkState.LEFT_BEHIND, digest=None)]) is Operation.UPDATE


def test_an_unwanted_record_is_deleted() -> None:
    """A link that nothing is wanted for: delete."""
    assert operation([], [link()]) is Operation.DELETE


def test_what_is_gone_is_not_deleted_again() -> None:
    """A tombstone needs no delete."""
    assert planned([], [link(state=LinkState.TOMBSTONE)]) == ()


def test_what_was_left_behind_is_deleted_when_it_can_be() -> None:
    """A record that the API could not change is still there: when its resource goes, it has to go as well."""
    assert operation([], [link(state=LinkState.LEFT_BEHIND)]) is Operation.DELETE


@pytest.mark.parametrize("links", [[], [link(state=LinkState.TOMBSTONE)]], ids=["no link", "a tombstone"])
def test_a_create_in_doubt_of_an_unwanted_record_is_looked_up_and_never_by_old_keys(links: list[Link]) -> None:
    """What an unanswered create may have made has to go; the keys of a record long deleted are not its keys."""
    [step] = planned([], links, [unresolved(Operation.CREATE)])
    assert (step.operation, step.link) == (Operation.DELETE, None)
    assert len(step.unresolved) == 1


def test_an_unanswered_create_goes_with_the_step_of_its_slot() -> None:
    """The step that creates knows what has to be looked up first, and only that of its own slot."""
    first, second = planned([record("a"), record("b")], [], [unresolved(Operation.CREATE, "b")])
    assert (first.unresolved, len(second.unresolved)) == ((), 1)


@pytest.mark.parametrize(
    ("look_at", "look"), [(None, False), (NOW, True), (NOW + timedelta(seconds=1), False)], ids=["none", "now", "later"]
)
def test_a_second_look_is_taken_when_it_is_due(look_at: datetime | None, look: bool) -> None:
    """A link that wants a second look gets it at its time, also where nothing has to be written."""
    [step] = planned([record()], [link(look_at=look_at)])
    assert (step.operation, step.look) == (None, look)


def test_a_create_in_doubt_beside_a_link_is_looked_for() -> None:
    """A linked record and an unanswered create of the same slot may be two records: look before writing."""
    [step] = planned([record()], [link()], [unresolved(Operation.CREATE)])
    assert (step.operation, step.look) == (Operation.UPDATE, True)


def test_another_collection_is_doubt() -> None:
    """A record is not moved to another kind of record by itself."""
    [step] = planned([record(to=VISITS)], [link()])
    assert (step.operation, step.doubt) == (None, Doubt.OTHER_COLLECTION)


@pytest.mark.parametrize("digest", ["other", "written:"])
def test_another_parent_is_doubt(digest: str) -> None:
    """A record is not moved from one patient to another by itself, whatever the digest says."""
    [step] = planned(
        [record(parents={"patient": "Patient/p2"})], [link(digest=digest, parents={"patient": "Patient/p1"})]
    )
    assert (step.operation, step.doubt) == (None, Doubt.OTHER_PARENT)


def test_deletes_come_last_and_slots_in_order() -> None:
    """Nothing goes before what takes its place is there."""
    steps = planned([record("c"), record("b")], [link("a"), link("b", digest=None)])
    assert [(step.operation, step.slot) for step in steps] == [
        (Operation.UPDATE, "b"),
        (Operation.CREATE, "c"),
        (Operation.DELETE, "a"),
    ]


def test_each_slot_stands_for_itself() -> None:
    """One record of a resource is written and the other left as it is."""
    steps = planned([record("a"), record("b")], [link("a"), link("b", digest="other")])
    assert [step.operation for step in steps] == [None, Operation.UPDATE]


def test_a_link_without_a_slot_keeps_the_only_record() -> None:
    """A mapping that begins to name its slot does not make a second record of the same resource (9)."""
    [step] = planned([record("home")], [link(digest=None)])
    assert (step.operation, step.slot) == (Operation.UPDATE, "")
    assert step.record is not None
    assert step.record.slot == ""


def test_a_link_without_a_slot_is_nobodys_among_several() -> None:
    """Where a mapping makes several records now, the old one without a slot is none of them."""
    steps = planned([record("home"), record("work")], [link()])
    assert [(step.operation, step.slot) for step in steps] == [
        (Operation.CREATE, "home"),
        (Operation.CREATE, "work"),
        (Operation.DELETE, ""),
    ]


def test_a_moved_record_is_an_update_that_moves() -> None:
    """Where the route says so another parent is no doubt, whatever the digest says (8)."""
    wanted, known = record(parents={"patient": "Patient/p2"}), link(parents={"patient": "Patient/p1"})
    [step] = plan([wanted], [known], [], now=NOW, is_written=lambda d, r: True, moved="replace")
    assert (step.operation, step.moves, step.doubt) == (Operation.UPDATE, True, None)


@pytest.mark.parametrize(
    ("restored", "expected"),
    [
        ("create", (Operation.CREATE, False, None)),
        ("undelete", (Operation.UPDATE, True, None)),
        ("hold", (None, False, Doubt.RESTORED)),
    ],
)
def test_what_lives_again_goes_as_the_route_says(restored: Any, expected: Any) -> None:
    """A tombstone whose record is wanted: a new record, the old one back, or a person (5)."""
    known = link(state=LinkState.TOMBSTONE)
    [step] = plan([record()], [known], [], now=NOW, is_written=lambda d, r: True, restored=restored)
    assert (step.operation, step.undelete, step.doubt) == expected


@pytest.mark.parametrize("restored", ["create", "undelete", "hold"])
def test_a_create_in_doubt_beside_a_tombstone_is_looked_up_under_every_policy(restored: Any) -> None:
    """What an unanswered create may have made comes before any policy (3d, 5)."""
    known, writes = link(state=LinkState.TOMBSTONE), [unresolved(Operation.CREATE)]
    [step] = plan([record()], [known], writes, now=NOW, is_written=lambda d, r: True, restored=restored)
    assert (step.operation, step.undelete) == (Operation.CREATE, False)


def test_an_undelete_in_doubt_is_deleted_by_its_keys() -> None:
    """A record that may be back is deleted under the keys of its link where nothing is wanted (5)."""
    [step] = planned([], [link(state=LinkState.TOMBSTONE)], [unresolved(Operation.UPDATE)])
    assert step.operation is Operation.DELETE
    assert step.link is not None


def test_a_half_replaced_record_that_is_not_wanted_is_buried() -> None:
    """Its record is gone: nothing is deleted, and its link is looked at (9)."""
    [step] = planned([], [link(state=LinkState.HALF_REPLACED)])
    assert step.operation is None
    assert step.link is not None


def test_a_delete_in_doubt_of_an_old_record_says_nothing_of_the_new_one() -> None:
    """Made first: the link's digest is the new record's, and the old one's delete does not put it in doubt (9)."""
    known = link(old_keys={"id": 16})
    assert operation([record()], [known], [unresolved(Operation.REPLACE)]) is None
    assert operation([record()], [link()], [unresolved(Operation.REPLACE)]) is Operation.UPDATE
