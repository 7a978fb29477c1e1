"""Announce, send, record: what the announcement guards, and what every late or lost answer leads to."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.contract.ledger.story import (
    BOUND_S,
    LANDS_S,
    LEASE_S,
    OTHER,
    PATIENT,
    ROUTES,
    START,
    WITHIN_S,
    Clock,
    Story,
    done,
    found,
    outcome,
    unknown,
)
from worker.errors import DeleteBudgetSpent, LeaseLost, LedgerError, Paused
from worker.ledger import Ledger, Selection
from worker.ledger.values import Answer, Claim, Disposition, Hint, LinkState, Operation, Refusal, WriteOutcome


def overtaken(story: Story, operation: Operation = Operation.CREATE) -> tuple[int, Claim]:
    """Let worker one announce and fall silent, and worker two take over; give the write and the new claim."""
    claim = story.claims(by="one")
    write = story.announces(claim, operation)
    story.clock.forward(BOUND_S)
    return write.id, story.claims(by="two", alone=True)


def test_an_announcement_stands_before_the_bytes_leave(story: Story) -> None:
    """The announced write is an open row with the bound after which it can act no more."""
    story.hears("v1")
    write = story.announces(story.claims())
    [row] = story.shown()["writes"]
    assert row["outcome"] is None
    assert row["id"] == write.id
    assert write.bound == START + timedelta(seconds=BOUND_S)
    assert story.sql("SELECT deadline_seconds, lands_within_seconds FROM writes") == [(20.0, 60.0)]
    assert row["send_by"].startswith((START + timedelta(seconds=WITHIN_S)).isoformat()[:19])


def test_the_next_claim_knows_what_was_announced(story: Story) -> None:
    """After a crash the next attempt sees the write without an outcome, opened, with its bound: mutant M6."""
    story.hears("v1")
    claim = story.claims()
    fields = {"name": "Zoë", "number": 5, "gone": None, "list": [True]}
    write = story.announces(claim, fields=fields, parents={"doctor": "Practitioner/1"})
    story.clock.forward(LEASE_S)
    [seen] = story.claims(by="two", alone=True).unresolved
    assert (seen.id, seen.bound, seen.operation, seen.slot) == (write.id, write.bound, Operation.CREATE, "")
    assert seen.fields == fields
    assert seen.parents == {"doctor": "Practitioner/1"}


def test_an_announcement_voids_the_digest(story: Story) -> None:
    """From the announcement on nobody claims to know what the legacy record holds: mutant M3."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    assert [link.digest for link in claim.links] == ["k1:d"]
    story.announces(claim, Operation.UPDATE, version="v2")
    story.clock.forward(LEASE_S)
    assert [link.digest for link in story.claims(alone=True).links] == [None]


def test_an_announcement_voids_its_own_slot_alone(story: Story) -> None:
    """Writing one record of a resource says nothing of its others."""
    story.hears("v1")
    claim = story.claims()
    for number, slot in enumerate("ab"):
        story.ledger.record(story.announces(claim, slot=slot).id, done(number))
    story.announces(claim, Operation.UPDATE, slot="a")
    story.ledger.release(claim, reason="unknown", detail="")
    assert {link.slot: link.digest for link in story.claims().links} == {"a": None, "b": "k1:d"}


def test_a_fenced_holder_announces_nothing(story: Story) -> None:
    """Once another attempt holds the mirror, the old one may send nothing, and no row and no void digest is left."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    first = story.claims(by="one")
    story.clock.forward(LEASE_S)
    second = story.claims(by="two", alone=True)
    with pytest.raises(LeaseLost):
        story.announces(first, Operation.UPDATE)
    assert len(story.outcomes()) == 1
    story.ledger.release(second, reason="not done", detail="")
    assert [link.digest for link in story.claims().links] == ["k1:d"]


def test_an_older_attempt_of_the_same_process_announces_nothing(story: Story) -> None:
    """The token fences, not the process: a thread whose own process took the mirror again is too late as well."""
    story.hears("v1")
    first = story.claims(by="one")
    story.clock.forward(LEASE_S)
    second = story.claims(by="one", alone=True)
    with pytest.raises(LeaseLost):
        story.announces(first)
    assert not story.settles(first, "v1")
    assert story.settles(second, "v1")


@pytest.mark.parametrize("scopes", [["Patient"], []])
def test_a_paused_holder_announces_nothing(story: Story, scopes: list[str]) -> None:
    """A pause during an attempt stops its next write, and leaves the digest as it was."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    story.ledger.pause(scopes, who="ana", why="stop")
    with pytest.raises(Paused):
        story.announces(claim, Operation.UPDATE)
    assert len(story.outcomes()) == 1
    assert [link["state"] for link in story.shown()["links"]] == ["linked"]
    assert story.sql("SELECT digest FROM links") == [("k1:d",)]


def test_nothing_is_announced_while_a_write_may_still_land(story: Story) -> None:
    """Before the bound of a write without an outcome the same mirror announces nothing more: mutants M4 and M5."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.record(story.announces(claim).id, unknown())
    with pytest.raises(LedgerError, match=PATIENT):
        story.announces(claim)
    assert len(story.outcomes()) == 1


def test_an_answer_makes_the_link_in_one_step(story: Story) -> None:
    """Recording a create's answer closes the write and links the record, before the attempt ends."""
    story.hears("v1")
    claim = story.claims()
    assert story.ledger.record(story.announces(claim).id, done()) is True
    [link] = story.shown()["links"]
    assert (link["keys"], link["state"], link["slot"]) == ({"number": 17, "uuid": "u17"}, "linked", "")
    assert story.outcomes() == ["done"]
    assert story.mirror()["lease_owner"] == "one"


def test_answers_keep_their_json_types(story: Story) -> None:
    """A number comes back as a number and a text of digits as a text."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.record(story.announces(claim).id, Answer(WriteOutcome.DONE, keys={"number": 17, "code": "0017"}))
    story.ledger.release(claim, reason="again", detail="")
    assert story.claims().links[0].keys == {"number": 17, "code": "0017"}


def test_a_current_attempts_digest_is_trusted(story: Story) -> None:
    """Only the answer to the holder's own write, undisturbed, says what the record holds."""
    story.applies("v1", digest="k1:first")
    story.applies("v2", digest="k1:second")
    story.clock.forward(60)
    story.hears("v3")
    assert [link.digest for link in story.claims().links] == ["k1:second"]


@pytest.mark.parametrize(
    "what",
    [WriteOutcome.NOT_DONE, WriteOutcome.WITHDRAWN, WriteOutcome.REFUSED, WriteOutcome.EXISTS, WriteOutcome.CONFLICT],
)
def test_a_write_that_did_not_act_links_nothing(story: Story, what: WriteOutcome) -> None:
    """An answer that says no closes the write, makes no link, and leaves nothing unresolved."""
    story.hears("v1")
    claim = story.claims()
    assert story.ledger.record(story.announces(claim).id, outcome(what)) is True
    story.ledger.release(claim, reason="not done", detail="")
    claim = story.claims()
    assert claim.unresolved == ()
    assert claim.links == ()
    assert story.outcomes() == [what.value]


def test_an_unknown_outcome_stays_unresolved(story: Story) -> None:
    """A time-out is noted on the row and leaves it without an outcome."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown", detail="", until=write.bound)
    assert story.ledger.status()["unresolved_writes"] == 1
    story.clock.forward(BOUND_S)
    assert [seen.id for seen in story.claims().unresolved] == [write.id]


def test_a_late_create_is_adopted(story: Story) -> None:
    """The answer of a fenced attempt is recorded: its record becomes the link, unproven, and the mirror is due: M7."""
    story.hears("v1")
    write, second = overtaken(story)
    assert story.ledger.record(write, done(17)) is False
    assert story.settles(second, "v1", Disposition.UNCHANGED)
    assert story.mirror()["state"] == "due"
    story.clock.forward(60)
    claim = story.claims()
    [link] = claim.links
    assert (link.keys["number"], link.digest, link.epoch) == (17, None, 1)
    assert claim.unresolved == ()
    assert story.sql("SELECT late FROM writes")[0][0]


def test_a_late_answer_wakes_a_mirror_that_sleeps(story: Story) -> None:
    """When the late answer comes after the successor has settled, the mirror is due again."""
    story.hears("v1")
    write, second = overtaken(story)
    story.settles(second, "v1", Disposition.SKIPPED)
    assert story.mirror()["state"] == "current"
    story.ledger.record(write, done())
    assert story.mirror()["state"] == "due"
    assert len(story.claims().links) == 1


def test_a_late_update_voids_the_digest(story: Story) -> None:
    """A fenced update may have landed after the successor's: what the record holds is not known any more: M8b."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    write, second = overtaken(story, Operation.UPDATE)
    newer = story.announces(second, Operation.UPDATE, version="v2")
    assert story.ledger.record(newer.id, done(None, "k1:new"))
    story.ledger.record(write, done(None, "k1:old"))
    story.settles(second, "v2", Disposition.APPLIED)
    assert story.mirror()["state"] == "due"
    story.clock.forward(60)
    [link] = story.claims().links
    assert (link.digest, link.epoch) == (None, 1)


def test_a_settle_with_an_old_epoch_leaves_the_digest_void(story: Story) -> None:
    """A late answer between the announcement and the answer of its successor makes that answer's digest void."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    write, second = overtaken(story, Operation.UPDATE)
    newer = story.announces(second, Operation.UPDATE, version="v2")
    story.ledger.record(write, done(None, "k1:old"))
    assert story.settles(second, "v2", Disposition.APPLIED, last=(newer, done(None, "k1:new")))
    story.clock.forward(60)
    [link] = story.claims().links
    assert link.digest is None


def test_a_late_answer_does_not_wake_a_held_mirror(story: Story) -> None:
    """A held mirror stays held; the link of the late answer is there for the person who decides."""
    story.hears("v1")
    write, second = overtaken(story)
    story.ledger.hold(second, reason="conflict", detail="")
    story.ledger.record(write, done())
    assert story.mirror()["state"] == "held"
    assert len(story.shown()["links"]) == 1


def test_a_second_key_for_one_slot_holds(story: Story) -> None:
    """Two creates that both made a record hold the mirror; both keys can be seen, and the first link stays."""
    story.hears("v1")
    write, second = overtaken(story)
    newer = story.announces(second)
    assert story.settles(second, "v1", Disposition.APPLIED, last=(newer, done(18)))
    assert story.ledger.record(write, done(17)) is False
    assert story.mirror()["state"] == "held"
    assert story.mirror()["reason"] == "second record"
    [link] = story.shown()["links"]
    assert link["keys"]["number"] == 18
    assert [row[0] for row in story.sql("SELECT key FROM writes ORDER BY id")] == ["17", "18"]


def test_a_second_key_recorded_by_the_holder_holds_too(story: Story) -> None:
    """Whoever records the second key, the mirror is held, and the attempt's settle is refused."""
    story.hears("v1")
    write, second = overtaken(story)
    newer = story.announces(second)
    story.ledger.record(write, done(17))
    assert story.settles(second, "v1", Disposition.APPLIED, last=(newer, done(18))) is False
    assert story.mirror()["state"] == "held"
    assert story.changes() == {"v1": None}
    assert story.refused() is Refusal.HELD


def test_a_key_of_another_resource_holds(story: Story) -> None:
    """A legacy key belongs to one resource: an answer with another's key holds the mirror, and its owner keeps it."""
    story.applies("v1", key=17, of=OTHER)
    story.hears("v1")
    claim = story.claims()
    assert story.settles(claim, "v1", Disposition.APPLIED, last=(story.announces(claim), done(17))) is False
    assert (story.mirror()["state"], story.mirror()["reason"]) == ("held", "owned key")
    assert story.shown()["links"] == []
    assert len(story.shown(OTHER)["links"]) == 1
    assert story.mirror(OTHER)["state"] == "current"


def test_a_restored_resource_cannot_take_anothers_key(story: Story) -> None:
    """A tombstone is not turned into a second link to another resource's record."""
    buries(story)
    story.applies("v1", key=18, of=OTHER)
    story.hears("v2")
    claim = story.claims()
    assert story.ledger.record(story.announces(claim, version="v2").id, done(18)) is False
    assert (story.mirror()["state"], story.mirror()["reason"]) == ("held", "owned key")
    assert [link["state"] for link in story.shown()["links"]] == ["tombstone"]


def test_a_key_of_another_slot_of_the_same_resource_holds(story: Story) -> None:
    """Two slots of one resource never share a record."""
    story.hears("v1")
    claim = story.claims()
    assert story.ledger.record(story.announces(claim, slot="a").id, done(17)) is True
    assert story.ledger.record(story.announces(claim, slot="b").id, done(17)) is False
    assert story.mirror()["state"] == "held"
    assert [link["slot"] for link in story.shown()["links"]] == ["a"]


def test_a_found_record_is_adopted(story: Story) -> None:
    """After the bound a find's only hit becomes the link of the write that had no answer; its digest is not known."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown", detail="", until=write.bound)
    story.clock.forward(BOUND_S)
    claim = story.claims()
    assert story.ledger.record(claim.unresolved[0].id, found(17)) is True
    assert story.settles(claim, "v1", Disposition.APPLIED)
    assert story.mirror()["state"] == "current"
    assert story.outcomes() == ["found"]
    assert story.ledger.status()["unresolved_writes"] == 0
    story.hears("v2")
    [link] = story.claims().links
    assert (link.keys["number"], link.digest) == (17, None)


def test_a_found_record_of_another_is_not_adopted(story: Story) -> None:
    """A hit that another resource owns is not linked, and the mirror is held."""
    story.applies("v1", key=17, of=OTHER)
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown", detail="", until=write.bound)
    story.clock.forward(BOUND_S)
    claim = story.claims()
    assert story.ledger.record(claim.unresolved[0].id, found(17)) is False
    assert story.mirror()["state"] == "held"
    assert story.shown()["links"] == []


def test_owners_are_told_by_key(story: Story) -> None:
    """A find can ask which resources own its hits."""
    story.applies("v1", key=17, of=OTHER)
    assert story.ledger.owners("patients", ["17", "18"]) == {"17": OTHER}
    assert story.ledger.owners("doctors", ["17"]) == {}


def test_a_write_lapses_when_a_later_one_has_the_last_word(story: Story) -> None:
    """An unanswered write whose bound had passed is closed by the answer to its successor in the same slot."""
    story.hears("v1")
    _, second = overtaken(story)
    newer = story.announces(second)
    story.settles(second, "v1", Disposition.APPLIED, last=(newer, done()))
    assert story.outcomes() == ["lapsed", "done"]


def test_a_write_lapses_only_after_its_bound(story: Story) -> None:
    """An unanswered write that may still land is not closed by hand before its bound."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.lapse(claim, [write.id])
    assert story.outcomes() == [None]
    story.clock.forward(BOUND_S)
    story.ledger.lapse(claim, [write.id])
    assert story.outcomes() == ["lapsed"]


def test_an_unknown_answer_does_not_reopen_a_closed_write(story: Story) -> None:
    """A worker that wakes up late with a time-out does not undo what find has shown meanwhile."""
    story.hears("v1")
    write, second = overtaken(story)
    story.ledger.record(second.unresolved[0].id, found(17))
    story.settles(second, "v1", Disposition.APPLIED)
    story.ledger.record(write, unknown())
    assert story.outcomes() == ["found"]
    assert story.ledger.status()["unresolved_writes"] == 0


def test_a_late_answer_after_a_lapse_still_counts(story: Story) -> None:
    """An answer that comes after its write was closed is recorded, with the record that it names."""
    story.hears("v1")
    write, second = overtaken(story)
    story.ledger.lapse(second, [write])
    story.settles(second, "v1", Disposition.SKIPPED)
    story.ledger.record(write, done(17))
    assert story.outcomes() == ["done"]
    assert story.mirror()["state"] == "due"
    assert len(story.claims().links) == 1


def buries(story: Story) -> None:
    """Create a record with a parent, and delete it again."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim, parents={"doctor": "Practitioner/1"})
    story.settles(claim, "v1", Disposition.APPLIED, last=(write, done()))
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE, version="v1")
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None)), deleted=True)
    story.clock.forward(60)


def test_a_deleted_record_leaves_a_tombstone(story: Story) -> None:
    """After a delete the link keeps its keys and parents, as a tombstone without a digest."""
    buries(story)
    story.hears("v2")
    [link] = story.claims().links
    assert link.state is LinkState.TOMBSTONE
    assert (link.keys["number"], link.parents, link.digest) == (17, {"doctor": "Practitioner/1"}, None)


def test_a_restored_resource_takes_a_new_record(story: Story) -> None:
    """A create after a tombstone links the new record in the place of the old one."""
    buries(story)
    story.hears("v2")
    claim = story.claims()
    assert story.settles(claim, "v2", Disposition.APPLIED, last=(story.announces(claim, version="v2"), done(99)))
    [link] = story.shown()["links"]
    assert (link["state"], link["keys"]["number"]) == ("linked", 99)


def test_a_record_that_is_gone_already_counts_as_deleted(story: Story) -> None:
    """404 on a delete is as good as done."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, outcome(WriteOutcome.GONE)), deleted=True)
    assert [link["state"] for link in story.shown()["links"]] == ["tombstone"]


def test_a_refused_delete_leaves_the_link(story: Story) -> None:
    """A delete that did not happen leaves the link as it was, without a digest."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    story.ledger.record(story.announces(claim, Operation.DELETE).id, outcome(WriteOutcome.REFUSED))
    story.ledger.fail(claim, reason="refused", detail="")
    assert [link["state"] for link in story.shown()["links"]] == ["linked"]


@pytest.mark.parametrize("since", ["nobody", "another"])
def test_a_late_delete_buries_a_link_where_nobody_wrote_since(story: Story, since: str) -> None:
    """A fenced delete that was answered is done; who has written since finds out what lives (protocol 3f)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    write, second = overtaken(story, Operation.DELETE)
    if since == "another":
        story.announces(second, Operation.UPDATE, version="v1")
        story.ledger.release(second, reason="unknown outcome", detail="")
    else:
        story.settles(second, "v1", Disposition.UNCHANGED)
    story.ledger.record(write, done(None))
    assert story.mirror()["state"] == "due"
    story.clock.forward(BOUND_S)
    [link] = story.claims().links
    state = LinkState.TOMBSTONE if since == "nobody" else LinkState.LINKED
    assert (link.state, link.digest, link.epoch) == (state, None, 1)


def deletes(story: Story, number: int, what: WriteOutcome = WriteOutcome.DONE) -> None:
    reference = f"Patient/d{number}"
    story.ledger.accept([Hint(reference, "v1"), Hint(reference, None)])
    claim = story.claims(reference)
    story.ledger.record(story.announces(claim, Operation.DELETE).id, outcome(what))


def test_deletes_have_a_budget_by_the_hour(story: Story) -> None:
    """The twenty-first delete of a small type within an hour needs a person; an hour later it does not."""
    for number in range(20):
        deletes(story, number)
    with pytest.raises(DeleteBudgetSpent, match="Patient"):
        deletes(story, 20)
    assert story.outcomes("Patient/d20") == []
    story.clock.forward(3600)
    deletes(story, 21)


def test_the_budget_grows_with_the_links(story: Story) -> None:
    """A type with many links may delete one in a hundred."""
    rows = ", ".join(
        f"('Patient/x{n}', 'Patient', '', 'patients', 'x{n}', '{{}}', '{{}}', 'linked', '2026-01-01', '2026-01-01')"
        for n in range(2500)
    )
    names = "reference, resource_type, slot, collection, key, record_keys, parents, state, created_at, updated_at"
    story.sql(f"INSERT INTO links ({names}) VALUES {rows.replace(':', chr(92) + ':')}")  # noqa: S608
    for number in range(25):
        deletes(story, number)
    with pytest.raises(DeleteBudgetSpent):
        deletes(story, 25)


def test_creates_and_other_types_spend_no_deletes(story: Story) -> None:
    """Only deletes of the same type count."""
    for number in range(20):
        deletes(story, number)
    story.hears("v1")
    story.announces(story.claims())
    story.hears("v1", of="Condition/c1")
    story.announces(story.claims("Condition/c1"), Operation.DELETE)


def test_a_person_lets_a_delete_pass(story: Story) -> None:
    """A replayed mirror may delete beyond the budget, once."""
    for number in range(20):
        deletes(story, number)
    with pytest.raises(DeleteBudgetSpent):
        deletes(story, 20)
    story.clock.forward(LEASE_S)
    story.ledger.replay(Selection(references=("Patient/d20",)), who="ana", why="seen")
    claim = story.claims("Patient/d20")
    assert claim.released
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None)), deleted=True)
    story.clock.forward(60)
    story.hears("v9", of="Patient/d20")
    assert not story.claims("Patient/d20").released


@pytest.mark.parametrize("what", [WriteOutcome.NOT_DONE, WriteOutcome.WITHDRAWN])
def test_a_delete_that_did_not_happen_spends_nothing(story: Story, what: WriteOutcome) -> None:
    """A clinic that is down for a while, with one delete tried again and again, does not use up the budget."""
    for number in range(25):
        deletes(story, number, what)


def test_fields_and_words_are_sealed(story: Story) -> None:
    """The fields of a write and the API's own words stand in the ledger only sealed."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim, fields={"name": "Canary"})
    story.ledger.record(write.id, Answer(WriteOutcome.REFUSED, 422, "name", words=b"Canary is no name"))
    [(body, answer)] = story.sql("SELECT body, answer FROM writes")
    assert b"Canary" not in bytes(body)
    assert b"Canary" not in bytes(answer)
    opened = story.ledger.sealer.open(bytes(answer), table="writes", reference=PATIENT, version="v1", column="answer")
    assert opened == b"Canary is no name"


def test_a_before_image_is_kept_sealed(story: Story) -> None:
    """What a write replaced by policy is kept on the link, sealed."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    story.announces(claim, Operation.UPDATE, version="v2", before_image=b"Canary before")
    [(image,)] = story.sql("SELECT before_image FROM links")
    assert image is not None
    assert b"Canary" not in bytes(image)
    place = {"table": "links", "reference": PATIENT, "version": "", "column": "before_image"}
    assert story.ledger.sealer.open(bytes(image), **place) == b"Canary before"


def test_a_record_made_in_doubt_is_looked_at_once_more(story: Story) -> None:
    """A create after an empty find is looked at after its own bound, once, and not again and again."""
    story.hears("v1")
    _, second = overtaken(story)
    write = story.announces(second)
    answer = Answer(WriteOutcome.DONE, 201, keys={"number": 17}, digest="k1:d", look_again=True)
    story.settles(second, "v1", Disposition.APPLIED, last=(write, answer))
    story.clock.forward(BOUND_S - 1)
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(1)
    claim = story.claims()
    [link] = claim.links
    assert link.look_at == write.bound
    story.ledger.looked(claim, link.id)
    story.settles(claim, "v1")
    story.clock.forward(3600)
    assert story.refused() is Refusal.NOT_DUE


def test_without_a_key_no_content_is_kept(url: str) -> None:
    """A ledger without a key takes hints and announces all the same, and keeps neither bodies, fields nor words."""
    clock = Clock()
    with closing(Ledger.open(url, clock=clock)) as ledger:
        story = Story(ledger, clock)
        ledger.register_routes(ROUTES)
        ledger.accept([Hint(PATIENT, "v1", body=b"Canary")])
        write = story.announces(story.claims(), fields={"name": "Canary"})
        ledger.record(write.id, Answer(None, words=b"Canary"))
        clock.forward(BOUND_S)
        claim = story.claims(alone=True)
        assert claim.notified == {}
        assert [seen.fields for seen in claim.unresolved] == [None]
        assert story.sql("SELECT c.body, w.body, w.answer FROM changes c, writes w") == [(None, None, None)]


def test_a_record_left_behind_is_there(story: Story) -> None:
    """What the API could not change still has its key for those who need it, until it is as it should be again."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    story.ledger.leave_behind(claim, "", "this API cannot update")
    assert story.ledger.keys_of([PATIENT]) == {PATIENT: {"number": 17, "uuid": "u17"}}
    assert story.ledger.status()["left_behind"] == 1
    story.ledger.take_back(claim, "")
    assert [(link["state"], link["reason"]) for link in story.shown()["links"]] == [("linked", None)]


def test_what_is_deleted_is_not_left_behind(story: Story) -> None:
    """A tombstone stays one: there is no record that could be left."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    story.ledger.record(story.announces(claim, Operation.DELETE).id, done(None))
    story.ledger.leave_behind(claim, "", "this API cannot update")
    assert [link["state"] for link in story.shown()["links"]] == ["tombstone"]


def test_a_second_key_beside_a_record_left_behind_holds(story: Story) -> None:
    """A record that could not be changed or deleted is there: another key for its slot is a second record."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    story.ledger.leave_behind(claim, "", "this API cannot update")
    story.ledger.record(story.announces(claim).id, done(18))
    assert (story.mirror()["state"], story.mirror()["reason"]) == ("held", "second record")
    assert story.shown()["links"][0]["keys"] == {"number": 17, "uuid": "u17"}


def half(story: Story) -> tuple[Claim, int]:
    """Have a linked record, and the delete of it announced by which another is to take its place."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    return claim, story.announces(claim, Operation.REPLACE, version="v2").id


def test_the_half_way_point_of_a_replace_is_a_state(story: Story) -> None:
    """Deleted to be replaced: no key, so that nothing is owned, and the keys kept; then the new ones (protocol 9)."""
    claim, write = half(story)
    assert story.ledger.record(write, outcome(WriteOutcome.DONE))
    [row] = story.shown()["links"]
    assert (row["state"], row["key"], row["keys"]["number"]) == (LinkState.HALF_REPLACED, None, 17)
    create = story.announces(claim, Operation.CREATE, version="v2")
    assert story.ledger.record(create.id, done(18, "k1:new"))
    [row] = story.shown()["links"]
    assert (row["state"], row["key"], row["old_keys"]) == (LinkState.LINKED, "18", None)


def test_a_late_answer_is_no_half_way_point(story: Story) -> None:
    """A fenced worker's delete moves nothing: who took over sends it again, and gone is done (protocol 3f, 9)."""
    _, write = half(story)
    story.clock.forward(BOUND_S)
    story.claims(by="two", alone=True)
    assert not story.ledger.record(write, outcome(WriteOutcome.DONE))
    [row] = story.shown()["links"]
    assert (row["state"], row["key"]) == (LinkState.LINKED, "17")


def test_a_record_made_first_takes_the_place_of_the_old_one(story: Story) -> None:
    """The link has the new key and the old ones until the old record is deleted, and its digest is spared (9)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    create = story.announces(claim, Operation.CREATE, version="v2")
    assert story.ledger.record(create.id, replace(done(18, "k1:new"), replaces=True))
    [row] = story.shown()["links"]
    assert (row["key"], row["old_keys"]["number"]) == ("18", 17)
    gone = story.announces(claim, Operation.REPLACE, version="v2", spares_digest=True)
    assert story.ledger.record(gone.id, outcome(WriteOutcome.GONE))
    assert story.sql("SELECT digest FROM links") == [("k1:new",)]
    assert story.sql("SELECT count(*) FROM links WHERE old_keys IS NOT NULL") == [(0,)]


@pytest.mark.parametrize("since", ["nobody", "another"])
def test_a_late_record_takes_a_place_only_where_nobody_wrote_since(story: Story, since: str) -> None:
    """A fenced worker's new record is adopted, or is a second record where another attempt wrote (protocol 3e, 9)."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    create = story.announces(story.claims(), Operation.CREATE, version="v2")
    story.clock.forward(BOUND_S)
    second = story.claims(by="two", alone=True)
    if since == "another":
        story.announces(second, Operation.UPDATE, version="v2")
    story.ledger.record(create.id, replace(done(18), replaces=True))
    [row] = story.shown()["links"]
    assert row["key"] == ("18" if since == "nobody" else "17")
    assert (story.mirror()["reason"] == "second record") is (since == "another")


def test_replaced_records_count_in_no_delete_budget(story: Story) -> None:
    """However many records were replaced within the hour, a delete is let through (protocol 3k, 9)."""
    claim, _ = half(story)
    story.sql("UPDATE writes SET outcome = 'done'")
    for _ in range(25):
        story.ledger.record(story.announces(claim, Operation.REPLACE).id, outcome(WriteOutcome.NOT_DONE))
    story.sql("UPDATE writes SET outcome = 'done'")
    assert story.announces(claim, Operation.DELETE).id > 0


def test_a_baseline_is_the_answers_and_sealed(story: Story) -> None:
    """What the API gave back is kept sealed, opened at the claim, and unknown after an answer without it (11)."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, replace(done(17), baseline=b'{"name":"Canary"}'))
    assert "Canary" not in str(story.sql("SELECT baseline FROM links"))
    story.ledger.release(claim, reason="a test", detail="")
    story.clock.forward(60)
    claim = story.claims()
    assert claim.links[0].baseline == {"name": "Canary"}
    story.ledger.record(story.announces(claim, Operation.UPDATE).id, done(None))
    story.ledger.release(claim, reason="a test", detail="")
    story.clock.forward(60)
    assert story.claims().links[0].baseline is None


def test_an_undelete_that_is_done_brings_the_link_back(story: Story) -> None:
    """An update of a deleted record links it again, and those who waited for it go on (protocol 5, 8)."""
    story.applies("v1")
    story.sql("UPDATE links SET state = 'tombstone'")
    story.clock.forward(60)
    story.hears("v2")
    story.ledger.record(story.announces(story.claims(), Operation.UPDATE, version="v2").id, done(None))
    [row] = story.shown()["links"]
    assert (row["state"], row["key"]) == (LinkState.LINKED, "17")


def test_a_new_key_is_noted_to_go_back_to_medplum(story: Story) -> None:
    """The wish stands with the write, so that a late answer knows it too (protocol 3f)."""
    story.hears("v1")
    write = story.announces(story.claims(), write_back=True)
    story.clock.forward(BOUND_S)
    story.claims(by="two", alone=True)
    story.ledger.record(write.id, done(17))
    assert story.sql("SELECT count(*) FROM links WHERE identify_at IS NOT NULL") == [(1,)]


def test_a_half_replaced_record_without_successor_is_buried(story: Story) -> None:
    """Nothing is wanted in its place any more: as if it had been deleted (protocol 9)."""
    claim, write = half(story)
    story.ledger.record(write, outcome(WriteOutcome.DONE))
    story.ledger.bury(claim, "")
    assert story.shown()["links"][0]["state"] == LinkState.TOMBSTONE


@pytest.mark.parametrize("operation", [Operation.UPDATE, Operation.DELETE])
def test_a_write_without_an_answer_may_have_the_last_word(story: Story, operation: Operation) -> None:
    """5: what our own delete or undelete may have done is known until a later write of another kind has acted."""
    other = Operation.DELETE if operation is Operation.UPDATE else Operation.UPDATE

    def may() -> bool:
        return story.ledger.may_have_the_last_word(PATIENT, "", operation)

    story.applies("v1")
    claim = _next(story, "v2")
    assert not may()
    write = story.announces(claim, operation)
    assert may()
    story.ledger.record(write.id, unknown())
    claim = _next(story, "v3")
    story.ledger.record(story.announces(claim, Operation.UPDATE).id, outcome(WriteOutcome.GONE))
    assert may()
    claim = _next(story, "v4")
    story.ledger.record(story.announces(claim, other).id, done())
    assert not may()


@pytest.mark.parametrize("operation", [Operation.UPDATE, Operation.DELETE])
def test_only_a_delete_that_meets_nothing_says_what_became_of_older_writes(story: Story, operation: Operation) -> None:
    """3, 5: an undelete that is told of nothing to bring back may follow one that has acted."""
    story.applies("v1")
    story.ledger.record(story.announces(_next(story, "v2"), Operation.UPDATE).id, unknown())
    story.ledger.record(story.announces(_next(story, "v3"), operation).id, outcome(WriteOutcome.GONE))
    left = [write.operation for write in _next(story, "v4").unresolved]
    assert left == ([Operation.UPDATE] if operation is Operation.UPDATE else [])


def _next(story: Story, version: str) -> Claim:
    """Take the mirror for a version once nothing of before is under way any more."""
    story.clock.forward(BOUND_S)
    story.hears(version)
    return story.claims(alone=True)


def test_what_was_found_twice_says_nothing_of_the_record_of_today(story: Story) -> None:
    """3d: an attempt that stood still finds what another has linked, and replaced by a third record since."""
    story.hears("v1")
    story.clock.forward(60)
    create = story.announces(story.claims())
    story.ledger.record(create.id, unknown())
    _next(story, "v2")
    assert story.ledger.record(create.id, found(17))
    claim = _next(story, "v3")
    replacing = story.announces(claim)
    story.ledger.record(replacing.id, replace(done(18), replaces=True))
    assert story.ledger.record(create.id, found(17))
    assert story.mirror()["state"] != "held"
    [link] = story.shown()["links"]
    assert link["key"] == "18"
    assert not story.ledger.record(create.id, found(19))
    assert story.mirror()["reason"] == "second record"


def test_a_write_that_was_given_up_and_then_sent_without_an_answer_is_in_doubt_again(story: Story) -> None:
    """3f: its process stood still before it sent; what it did is looked for once it can act no more."""
    story.hears("v1")
    create = story.announces(story.claims(by="one"))
    claim = _next(story, "v2")
    story.ledger.lapse(claim, [create.id])
    assert story.settles(claim, "v2")
    assert story.ledger.record(create.id, unknown()) is False
    assert story.outcomes() == [None]
    [doubt] = story.claims().unresolved
    assert doubt.bound == story.clock.now + timedelta(seconds=LANDS_S)
