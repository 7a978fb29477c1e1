"""Stories that the machine found or that the model tells, each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.machine.crew import Worker
from tests.machine.legacy_model import Fate
from tests.machine.medplum_model import Content
from tests.machine.world import C1, D1, P1, P2, REPLACING, Bench, World, bench


@pytest.fixture(scope="module")
def a_bench() -> Iterator[Bench]:
    with bench() as made:
        yield made


@contextmanager
def checked(world: World) -> Iterator[World]:
    """Check at the end what may never be, and let no thread stay behind, however the story ends."""
    try:
        yield world
        world.check()
    finally:
        world.ends_all()


@pytest.fixture
def world(a_bench: Bench) -> Iterator[World]:
    with checked(World(a_bench)) as world:
        yield world


@pytest.fixture
def replacing(a_bench: Bench) -> Iterator[World]:
    """Give a world whose clinic cannot change every record, and brings deleted ones back."""
    with checked(World(a_bench, REPLACING)) as world:
        yield world


@pytest.fixture
def frozen(a_bench: Bench) -> Iterator[World]:
    """Give a world in which a process can freeze between its last check and the socket."""
    with checked(World(a_bench, freezes=True)) as world:
        yield world


def changed(world: World, of: str, content: Content) -> None:
    world.saves(of, content)
    world.delivers(-1)


def tried(world: World, of: str) -> None:
    """Have one attempt made, from its begin to its end."""
    worker = world.begins(of)
    assert worker is not None
    world.finishes(worker)


def written(world: World, of: str, content: Content) -> None:
    """Have a version saved, told and tried."""
    changed(world, of, content)
    tried(world, of)


def standing(world: World, of: str, where: str) -> Worker:
    """Have an attempt made that stands still at a place."""
    worker = world.begins(of)
    assert worker is not None
    world.goes_on_to(worker, where)
    return worker


def outlived(world: World) -> None:
    """Let every lease and every bound pass while whoever stands still says nothing."""
    world.waits(61, beating=False)
    world.ledger.free_leases()
    world.waits(90)


def settled(world: World) -> None:
    """Let all come to rest, and check that both sides agree or a person is told why not."""
    world.rests()
    world.converged()


def frozen_write(world: World, word: str) -> None:
    """Have P1 linked as A, and leave a write of another word standing between check and socket until it is over."""
    written(world, P1, Content("A"))
    world.waits(60)
    changed(world, P1, Content(word))
    worker = standing(world, P1, "frozen before its bytes leave")
    outlived(world)
    written(world, P1, Content("C"))
    assert said(world) == "C"
    world.steps(worker)
    assert said(world) == word  # it went back: the one thing that the protocol cannot keep a frozen process from


def said(world: World) -> str:
    [record] = world.legacy.living(P1)[""]
    return str(record.fields["word"])


def test_a_write_that_froze_on_its_way_is_mended_by_its_own_answer(frozen: World) -> None:
    """A process that freezes after its last check and lives on tells of its write, and the newer state is sent (M8)."""
    frozen_write(frozen, "B")
    frozen.finishes(frozen.workers[0])
    settled(frozen)
    assert said(frozen) == "C"


def test_a_write_that_froze_on_its_way_and_was_killed_goes_unseen_until_somebody_compares(frozen: World) -> None:
    """The hole that the protocol admits (M8c): nobody hears of the old write. To write the record anew mends it."""
    frozen_write(frozen, "B")
    frozen.kills_worker(frozen.workers[0])
    frozen.rests()
    assert said(frozen) == "B"
    with pytest.raises(AssertionError, match="legacy says"):
        frozen.converged()
    frozen.replays(P1)
    settled(frozen)


def test_a_delete_that_froze_on_its_way_and_takes_a_newer_record_is_made_good(frozen: World) -> None:
    """The machine found: it landed after an update, and the resource was held as gone (3f, 5)."""
    written(frozen, P1, Content("A"))
    frozen.waits(60)
    changed(frozen, P1, Content("A", active=False))
    worker = standing(frozen, P1, "frozen before its bytes leave")
    outlived(frozen)
    written(frozen, P1, Content("B"))
    frozen.finishes(worker)
    settled(frozen)
    assert (frozen.ledger.failed(), said(frozen)) == ([], "B")


def test_a_create_that_froze_on_its_way_and_has_no_answer_is_in_doubt_again(frozen: World) -> None:
    """The machine found: it was given up for what came after it, landed, and nobody looked for its record (3f)."""
    changed(frozen, P1, Content("A"))
    worker = standing(frozen, P1, "frozen before its bytes leave")
    outlived(frozen)
    written(frozen, P1, Content("A", active=False))
    frozen.fated(Fate.SILENT)
    frozen.finishes(worker)
    settled(frozen)
    assert frozen.legacy.living(P1) == {}


def test_every_slot_is_written_though_one_answer_is_lost(world: World) -> None:
    """Of two records of one resource the first one's answer is lost: both are there in the end, once."""
    world.fated(Fate.SILENT)
    changed(world, D1, Content("A", uses=("home", "work")))
    settled(world)
    assert {slot: len(records) for slot, records in world.legacy.living(D1).items()} == {"home": 1, "work": 1}


def test_a_write_that_stood_still_after_its_announcement_is_not_sent(world: World) -> None:
    """Announced and overtaken by a newer state, a write is withdrawn by its sender's own look at the time (M8)."""
    written(world, P1, Content("A"))
    world.waits(60)
    changed(world, P1, Content("B"))
    worker = standing(world, P1, "announced, and not yet sent")
    world.waits(61, beating=False)
    world.waits(90)
    written(world, P1, Content("C"))
    world.finishes(worker)
    world.check()
    assert said(world) == "C"


def test_a_create_in_doubt_is_looked_up_where_it_was_sent(world: World) -> None:
    """The machine found: where the patient gets another record meanwhile, the first problem is forgotten (3d)."""
    for of, content in ((P1, Content("A")), (C1, Content("A"))):
        changed(world, of, content)
        if of == C1:
            world.fated(Fate.SILENT)
        tried(world, of)
    world.waits(5)
    world.deletes(P1)
    world.delivers()
    tried(world, P1)
    changed(world, P1, Content("A"))
    settled(world)  # a person has to choose, and is told why
    problems = [record for record in world.legacy.records.values() if record.kind == "problems" and record.alive]
    assert len(problems) == 1


def test_a_delete_without_an_answer_is_remembered_until_it_is_answered(world: World) -> None:
    """The machine found: sent again for its answer, the delete failed, and the record was held as gone (5)."""
    written(world, P1, Content("A"))
    world.waits(60)
    changed(world, P1, Content("A", active=False))
    world.fated(Fate.SILENT)
    tried(world, P1)
    world.waits(90)
    changed(world, P1, Content("A"))
    world.fated(Fate.ACTS)  # the update, which is told that there is no such record
    world.fated(Fate.UNREACHED)
    tried(world, P1)
    settled(world)
    assert world.ledger.failed() == []


def brought_back_in_silence(world: World) -> None:
    """Have P1 made, deleted and brought back, the last without an answer, and its bound pass."""
    for active in (True, False):
        written(world, P1, Content("A", active=active))
        world.waits(60)
    changed(world, P1, Content("B"))
    world.fated(Fate.SILENT)
    tried(world, P1)
    world.waits(90)


def test_an_undelete_that_landed_without_an_answer_is_not_taken_for_a_record_that_is_gone(replacing: World) -> None:
    """The machine found: sent again, there is nothing to bring back; the record is there, and is updated (5)."""
    brought_back_in_silence(replacing)
    replacing.fated(Fate.ACTS)  # the second undelete, which is told that nothing is deleted
    replacing.fated(Fate.UNREACHED)
    tried(replacing, P1)
    settled(replacing)
    assert (replacing.ledger.failed(), said(replacing)) == ([], "B")


def test_what_an_undelete_may_have_brought_back_is_deleted_though_another_undelete_met_nothing(
    replacing: World,
) -> None:
    """The machine found: the second undelete's answer had settled the first, and the record stayed (3, 5)."""
    brought_back_in_silence(replacing)
    replacing.fated(Fate.ACTS)  # the second undelete, which is told that nothing is deleted
    replacing.fated(Fate.UNREACHED)
    tried(replacing, P1)
    changed(replacing, P1, Content("B", active=False))
    settled(replacing)
    assert replacing.legacy.living(P1) == {}


def test_an_undelete_that_tells_of_itself_after_a_delete_is_not_taken_for_a_record_that_is_gone(
    replacing: World,
) -> None:
    """The machine found: its late answer links the record again, which our own delete has taken since (3f, 5)."""
    for active in (True, False):
        written(replacing, P1, Content("A", active=active))
        replacing.waits(60)
    changed(replacing, P1, Content("B"))
    frozen = standing(replacing, P1, "before finish")
    replacing.waits(61, beating=False)
    replacing.waits(90)
    written(replacing, P1, Content("B", active=False))
    replacing.finishes(frozen)
    changed(replacing, P1, Content("C"))
    settled(replacing)
    assert replacing.ledger.failed() == []


def moved_in_doubt(world: World, *, until: str) -> Worker:
    """Have a problem's create under P1 stand still at a place, and the problem be P2's and written there meanwhile."""
    for of, content in ((P1, Content("A")), (P2, Content("A"))):
        written(world, of, content)
    changed(world, C1, Content("A"))
    worker = standing(world, C1, until)
    outlived(world)
    written(world, C1, Content("A", of=P2))
    return worker


def test_a_create_in_doubt_under_another_parent_is_looked_for_there_a_second_time(world: World) -> None:
    """The machine found: whose first create never came anywhere was held, for its first parent's key was not known."""
    world.kills_worker(moved_in_doubt(world, until="announced, and not yet sent"))
    settled(world)
    assert world.ledger.failed() == []


def test_a_second_record_under_another_parent_is_found(frozen: World) -> None:
    """A create that lands under the first parent when the record stands under the second is not overlooked (3d)."""
    worker = moved_in_doubt(frozen, until="frozen before its bytes leave")
    frozen.steps(worker)
    frozen.kills_worker(worker)
    frozen.rests()
    assert [(entry["reference"], entry["reason"]) for entry in frozen.ledger.failed()] == [(C1, "second record")]


def test_a_delete_that_was_answered_late_is_no_reason_to_hold(world: World) -> None:
    """The machine found: the record is wanted again, and whoever took over updated what was gone (3f, 5)."""
    written(world, P1, Content("A"))
    world.waits(60)
    changed(world, P1, Content("A", active=False))
    frozen = standing(world, P1, "before finish")
    world.waits(61, beating=False)
    written(world, P1, Content("A"))
    world.finishes(frozen)
    settled(world)
    assert world.ledger.failed() == []


def test_a_version_that_comes_during_an_attempt_is_synced_after_it(world: World) -> None:
    """Told between the read and the settlement, a version leaves the mirror due (M1)."""
    changed(world, P1, Content("A"))
    worker = standing(world, P1, "after a read")
    changed(world, P1, Content("B"))
    world.finishes(worker)
    settled(world)
    assert said(world) == "B"
