"""Waiting for another resource's link, and being woken by it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import pytest
from sqlalchemy import text, true

from tests.contract.ledger.interleaving import COMMIT, Play, Step
from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, START, Story, done, read
from tests.contract.ledger.waiting import wait_until
from worker.ledger import Ledger, answering, ending
from worker.ledger.linking import KeyMoved
from worker.ledger.values import Claim, Disposition, Keys, Operation, Refusal, Wait

# SQLite has one writer at a time, and no row locks to get wrong
on_postgres = pytest.mark.parametrize("url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True)


def waits(story: Story, child: str = CONDITION, parent: str = PATIENT) -> Wait:
    story.hears("c1", of=child)
    return story.ledger.wait(story.claims(child), parent, f"needs {parent}")


def test_a_child_waits_for_a_named_parent(story: Story) -> None:
    """A child without its parent's link is waiting, names the parent, and blocks nobody."""
    assert waits(story) is Wait.WAITS
    mirror = story.mirror(CONDITION)
    assert (mirror["state"], mirror["waiting_for"]) == ("waiting", PATIENT)
    assert story.refused(CONDITION) is Refusal.NOT_YET


def test_waiting_makes_the_parent_due(story: Story) -> None:
    """A parent that nobody ever told of is made due, so that it is read."""
    waits(story)
    assert story.mirror(PATIENT)["state"] == "due"
    claim = story.claims(PATIENT)
    assert not claim.sent_by_medplum


def test_a_link_wakes_those_who_wait_for_it(story: Story) -> None:
    """The parent's link, as soon as it is recorded, makes its children due and nobody else."""
    waits(story)
    waits(story, "Condition/c2")
    waits(story, "Condition/c3", OTHER)
    claim = story.claims(PATIENT)
    story.ledger.record(story.announces(claim).id, done())
    assert [story.mirror(f"Condition/c{n}")["state"] for n in (1, 2, 3)] == ["due", "due", "waiting"]
    assert story.claims(CONDITION).attempts == 0


def test_a_link_that_came_meanwhile_is_seen(story: Story) -> None:
    """A child that wants to wait for a link that is there by now is due at once."""
    story.hears("c1", of=CONDITION)
    child = story.claims(CONDITION)
    story.applies("v1")
    assert story.ledger.wait(child, PATIENT, "") is Wait.CAME
    assert story.mirror(CONDITION)["state"] == "due"
    story.claims(CONDITION)


def test_a_late_link_wakes_too(story: Story) -> None:
    """A parent whose create was answered late wakes its children all the same."""
    waits(story)
    claim = story.claims(PATIENT, by="one")
    write = story.announces(claim)
    story.clock.forward(200)
    story.claims(PATIENT, by="two", alone=True)
    story.ledger.record(write.id, done())
    assert story.mirror(CONDITION)["state"] == "due"


def test_a_parent_settled_without_a_record_is_told(story: Story) -> None:
    """A parent that was skipped or deleted will give no link: waiting for it is refused."""
    story.hears("v1")
    story.settles(story.claims(), "v1", Disposition.SKIPPED)
    assert waits(story) is Wait.NO_RECORD


@pytest.mark.parametrize("end", ["failed", "held"])
def test_children_wait_for_a_parent_that_needs_a_person(story: Story, end: str) -> None:
    """While a parent is failed or held its children wait, and the parent stays as it is."""
    story.hears("v1")
    if end == "failed":
        story.ledger.fail(story.claims(), reason="refused", detail="")
    else:
        story.ledger.hold(story.claims(), reason="conflict", detail="")
    assert waits(story) is Wait.WAITS
    assert story.mirror(PATIENT)["state"] == end


def test_a_new_link_wakes_children_that_failed_for_want_of_it(story: Story) -> None:
    """A child that failed because its parent had no record is due when the parent gets one after all."""
    story.hears("c1", of=CONDITION)
    story.ledger.fail(
        story.claims(CONDITION),
        reason="parent",
        detail="",
        settlement=read("c1", Disposition.FAILED, at=START),
        waiting_for=PATIENT,
    )
    story.applies("v1")
    assert story.mirror(CONDITION)["state"] == "due"


def test_a_circle_is_told(story: Story) -> None:
    """Resources that wait for each other, at whatever distance, are not left waiting."""
    assert waits(story, "Patient/a", "Patient/b") is Wait.WAITS
    assert waits(story, "Patient/b", "Patient/c") is Wait.WAITS
    assert waits(story, "Patient/c", "Patient/a") is Wait.NO_RECORD


def test_a_resource_does_not_wait_for_itself(story: Story) -> None:
    """The smallest circle is one resource."""
    assert waits(story, PATIENT, PATIENT) is Wait.NO_RECORD


def test_a_missed_wake_up_is_made_up_for(story: Story) -> None:
    """Dispatch wakes a waiting mirror whose link is there, though nobody told it."""
    story.applies("v1")
    story.hears("c1", of=CONDITION)
    claim = story.claims(CONDITION)
    story.ledger.hold(claim, reason="x", detail="")
    story.sql(
        "UPDATE mirrors SET state = 'waiting', waiting_for = :parent WHERE reference = :child",
        parent=PATIENT,
        child=CONDITION,
    )
    assert CONDITION in story.ledger.due(limit=10, queue_empty=True)
    assert story.mirror(CONDITION)["state"] == "due"


def test_a_waiting_mirror_looks_by_itself(story: Story) -> None:
    """Should every wake-up be missed, a waiting mirror is tried again after its own slow look."""
    waits(story)
    story.clock.forward(299)
    assert story.refused(CONDITION) is Refusal.NOT_YET
    story.clock.forward(1)
    story.claims(CONDITION)


def test_a_tombstoned_parent_makes_its_children_due(story: Story) -> None:
    """When a parent's record is deleted, those who stand under it are looked at."""
    story.applies("v1")
    story.hears("c1", of=CONDITION)
    claim = story.claims(CONDITION)
    write = story.announces(claim, parents={"patient": PATIENT})
    story.settles(claim, "c1", Disposition.APPLIED, last=(write, done(40)))
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    story.ledger.record(story.announces(claim, Operation.DELETE).id, done(None))
    assert story.mirror(CONDITION)["state"] == "due"


KEY_17: Keys = {"number": 17, "uuid": "u17"}


def refers(story: Story, child: str = CONDITION, to: str = PATIENT) -> None:
    """Write a child's record with the key of another record in one of its fields."""
    story.hears("c1", of=child)
    claim = story.claims(child)
    write = story.announces(claim, uses={to: KEY_17})
    story.settles(claim, "c1", Disposition.APPLIED, last=(write, done(40, digest="k1:c")))


def buries(story: Story) -> None:
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None)), deleted=True)


def restores(story: Story, key: int) -> None:
    story.clock.forward(60)
    story.hears("v9")
    claim = story.claims()
    write = story.announces(claim, version="v9")
    story.settles(claim, "v9", Disposition.APPLIED, last=(write, done(key)))


def test_a_record_that_holds_a_buried_one_s_key_is_looked_at(story: Story) -> None:
    """A delete makes those due whose fields hold the key; it is still the record's key, so nothing is written anew."""
    story.applies("v1")
    refers(story)
    buries(story)
    assert story.mirror(CONDITION)["state"] == "due"
    [link] = story.claims(CONDITION).links
    assert link.digest == "k1:c"


def test_a_record_that_holds_another_key_by_now_is_written_anew(story: Story) -> None:
    """Deleted and restored, a record has another key: the digest by reference would never tell, so it is void."""
    story.applies("v1")
    refers(story)
    buries(story)
    story.settles(story.claims(CONDITION), "c1")
    restores(story, key=18)
    assert story.mirror(CONDITION)["state"] == "due"
    [link] = story.claims(CONDITION).links
    assert link.digest is None


def test_the_same_key_again_writes_nothing_anew(story: Story) -> None:
    """A record that is restored under its old key leaves those who hold it as they are."""
    story.applies("v1")
    refers(story)
    buries(story)
    story.settles(story.claims(CONDITION), "c1")
    restores(story, key=17)
    assert story.mirror(CONDITION)["state"] == "current"


def test_a_key_that_moved_before_the_announcement_is_not_sent(story: Story) -> None:
    """The key that an attempt looked up is another by the time it would send it: nothing is announced."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("c1", of=CONDITION)
    child = story.claims(CONDITION, lease_s=600)
    buries(story)
    with pytest.raises(KeyMoved, match=PATIENT):
        story.announces(child, uses={PATIENT: KEY_17})
    restores(story, key=18)
    with pytest.raises(KeyMoved, match=PATIENT):
        story.announces(child, uses={PATIENT: KEY_17})
    assert story.outcomes(CONDITION) == []
    story.announces(child, uses={PATIENT: {"number": 18, "uuid": "u18"}})


def test_a_key_that_moves_while_it_is_sent_is_sent_again(story: Story) -> None:
    """The key changes between announcement and answer: the answer's digest is not believed."""
    story.applies("v1")
    refers(story)
    story.clock.forward(60)
    story.hears("c2", of=CONDITION)
    child = story.claims(CONDITION, lease_s=600)
    write = story.announces(child, Operation.UPDATE, uses={PATIENT: KEY_17}, version="c2")
    buries(story)
    restores(story, key=18)
    story.settles(child, "c2", Disposition.APPLIED, last=(write, done(None, digest="k1:c2")))
    assert story.mirror(CONDITION)["state"] == "due"
    [link] = story.claims(CONDITION).links
    assert link.digest is None


def test_a_key_that_moves_while_a_record_is_created_is_sent_again(story: Story) -> None:
    """A create under way has no link whose digest could be void: its answer's digest is not believed all the same."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("c1", of=CONDITION)
    child = story.claims(CONDITION, lease_s=600)
    write = story.announces(child, uses={PATIENT: KEY_17})
    buries(story)
    restores(story, key=18)
    story.settles(child, "c1", Disposition.APPLIED, last=(write, done(40, digest="k1:c")))
    assert story.mirror(CONDITION)["state"] == "due"
    [link] = story.claims(CONDITION).links
    assert link.digest is None


@on_postgres
def test_an_announcement_waits_for_a_key_that_is_being_changed(story: Story) -> None:
    """Who changes a record's key holds its mirror: an announcement that holds the key waits, and sees the new one."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("c1", of=CONDITION)
    child = story.claims(CONDITION)
    with ThreadPoolExecutor(1) as pool:
        with locked(story.ledger, PATIENT):
            announcing = pool.submit(story.announces, child, uses={PATIENT: KEY_17})
            wait_until(lambda: waiting_for_locks(story.ledger) == 1)
            story.sql("""UPDATE links SET record_keys = '{"number": 18}' WHERE reference = :of""", of=PATIENT)
        with pytest.raises(KeyMoved):
            announcing.result(timeout=20)


@contextmanager
def locked(ledger: Ledger, reference: str) -> Iterator[None]:
    """Hold a mirror's row in a transaction of one's own."""
    with ledger.database.engine.begin() as connection:
        statement = text("SELECT 1 FROM mirrors WHERE reference = :reference FOR UPDATE")
        connection.execute(statement, {"reference": reference})
        yield


def waiting_for_locks(ledger: Ledger) -> int:
    with ledger.database.engine.begin() as connection:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        count: int = connection.execute(text(statement)).scalar_one()
        return count


@on_postgres
def test_a_child_locks_its_parent_before_it_looks(story: Story) -> None:
    """While somebody holds the parent's mirror a child does not decide; the link made meanwhile is then seen."""
    story.hears("v1")
    story.hears("c1", of=CONDITION)
    child = story.claims(CONDITION)
    with ThreadPoolExecutor(1) as pool:
        with locked(story.ledger, PATIENT):
            waiting = pool.submit(story.ledger.wait, child, PATIENT, "")
            wait_until(lambda: waiting_for_locks(story.ledger) == 1)
            story.sql(
                "INSERT INTO links (reference, resource_type, slot, collection, key, record_keys, parents, state, "
                "created_at, updated_at) "
                "VALUES (:r, 'Patient', '', 'patients', '1', '{}', '{}', 'linked', now(), now())",
                r=PATIENT,
            )
        assert waiting.result(timeout=20) is Wait.CAME


@on_postgres
def test_a_parent_locks_its_own_mirror_before_it_wakes(story: Story) -> None:
    """While a child decides under the parent's lock, the parent's link is not yet made; then the child is woken."""
    story.hears("v1")
    waits(story)
    write = story.announces(story.claims(PATIENT))
    with ThreadPoolExecutor(1) as pool:
        with locked(story.ledger, PATIENT):
            recording = pool.submit(story.ledger.record, write.id, done())
            wait_until(lambda: waiting_for_locks(story.ledger) == 1)
            assert story.shown(PATIENT)["links"] == []
        assert recording.result(timeout=20) is True
    assert story.mirror(CONDITION)["state"] == "due"


def test_no_child_sleeps_for_ever(story: Story) -> None:
    """Child and parent at the same moment, many times over: afterwards no child waits for a link that is there."""
    pairs = [(f"Patient/r{n}", f"Condition/r{n}") for n in range(25)]
    for parent, child in pairs:
        story.hears("v1", of=parent)
        story.hears("c1", of=child)
    claims: list[tuple[int, Claim, str]] = []
    for number, (parent, child) in enumerate(pairs):
        write = story.announces(story.claims(parent))
        claims.append((write.id, story.claims(child), parent))
        assert number < 25
    with ThreadPoolExecutor(2) as pool:
        for number, (write_id, child_claim, parent) in enumerate(claims):
            together = threading.Barrier(2)

            def record(write_id: int = write_id, key: int = number, both: threading.Barrier = together) -> None:
                both.wait(10)
                story.ledger.record(write_id, done(key))

            def wait(claim: Claim = child_claim, of: str = parent, both: threading.Barrier = together) -> None:
                both.wait(10)
                story.ledger.wait(claim, of, "")

            for future in (pool.submit(record), pool.submit(wait)):
                future.result(timeout=20)
    assert [child for _, child in pairs if story.mirror(child)["state"] != "due"] == []


STEPS = {
    "child": {"look": "SELECT links.id FROM links", "wait": "UPDATE mirrors SET state="},
    "parent": {"link": "INSERT INTO links", "wake": "UPDATE mirrors SET state="},
}
CHILD = [("child", step) for step in ("look", "wait", COMMIT)]
PARENT = [("parent", step) for step in ("link", "wake", COMMIT)]
SERIAL = {(*CHILD, *PARENT), (*PARENT, *CHILD)}


def orders() -> Iterator[tuple[Step, ...]]:
    """Give all twenty ways in which the steps of the two can fall."""
    for places in combinations(range(6), 3):
        child, parent = iter(CHILD), iter(PARENT)
        yield tuple(next(child if place in places else parent) for place in range(6))


ORDERS = tuple(orders())


def plays(story: Story, orders: Sequence[tuple[Step, ...]]) -> tuple[list[tuple[Step, ...]], list[tuple[Step, ...]]]:
    """Have a child begin to wait while its parent's link is made, in each order; those taken, and those that slept."""
    taken, slept = [], []
    for number, order in enumerate(orders):
        parent, child = f"Patient/i{number}", f"Condition/i{number}"
        story.hears("v1", of=parent)
        story.hears("c1", of=child)
        write_id = story.announces(story.claims(parent)).id
        claim = story.claims(child)
        verbs: dict[str, Callable[[], object]] = {
            "child": partial(story.ledger.wait, claim, parent, ""),
            "parent": partial(story.ledger.record, write_id, done(number)),
        }
        taken.append(tuple(Play(story.ledger, STEPS).play(order, verbs)))
        assert [link["state"] for link in story.shown(parent)["links"]] == ["linked"]
        if story.mirror(child)["state"] == "waiting":
            slept.append(order)
    return taken, slept


def sleeps(order: tuple[Step, ...]) -> bool:
    """Say whether the model loses the wake-up: neither sees what the other has not committed."""
    at = {step: place for place, step in enumerate(order)}
    unseen_link = at["child", "look"] < at["parent", COMMIT]
    unseen_child = at["parent", "wake"] < at["child", COMMIT]
    return unseen_link and unseen_child


@on_postgres
def test_in_no_order_of_statements_a_wake_up_is_lost(story: Story) -> None:
    """All twenty interleavings of a child that begins to wait and its parent's link: under the lock they are serial."""
    taken, slept = plays(story, ORDERS)
    assert slept == []
    assert set(taken) == SERIAL


@on_postgres
@pytest.mark.parametrize("side", ["child", "parent"])
def test_without_the_lock_of_either_wake_ups_are_lost(story: Story, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """The same twenty where one of the two takes no lock: those that the model names sleep, and no others do."""
    room, name = (ending, "_mirror_locked") if side == "child" else (answering, "_write")
    unlocked = getattr(room, name).where(true())
    unlocked._for_update_arg = None
    monkeypatch.setattr(room, name, unlocked)
    taken, slept = plays(story, ORDERS)
    assert tuple(taken) == ORDERS
    assert slept == [order for order in ORDERS if sleeps(order)]
    assert len(slept) == 15
