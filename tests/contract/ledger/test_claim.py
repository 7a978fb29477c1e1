"""One attempt at a time: claims, fencing tokens, leases, starts without an end, spacing and pauses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta

import pytest
from pydantic import SecretStr

from tests.contract.ledger.story import LEASE_S, OTHER, PATIENT, START, Story, done, read, unknown
from worker.errors import LeaseLost
from worker.ledger import Ledger, Sealer
from worker.ledger.values import Claim, Disposition, Hint, NotClaimed, Operation, Phase, Refusal


def test_a_mirror_has_one_holder(story: Story) -> None:
    """While a lease runs nobody else gets the mirror, the same process and a suspect's child included."""
    story.hears("v1")
    story.claims(by="one")
    assert story.refused(by="two") is Refusal.LEASED
    assert story.refused(by="one") is Refusal.LEASED
    alone = story.ledger.claim(PATIENT, instance="child", lease_s=LEASE_S, alone=True)
    assert isinstance(alone, NotClaimed)
    assert alone.why is Refusal.LEASED


def test_a_refused_claim_says_until_when(story: Story) -> None:
    """Whoever comes too early is told when the lease ends, or when the mirror may be tried."""
    story.hears("v1")
    claim = story.claims()
    refused = story.ledger.claim(PATIENT, instance="two", lease_s=1)
    assert refused == NotClaimed(Refusal.LEASED, START + timedelta(seconds=LEASE_S))
    story.ledger.release(claim, reason="not done", detail="", after_s=30)
    refused = story.ledger.claim(PATIENT, instance="two", lease_s=1)
    assert refused == NotClaimed(Refusal.NOT_YET, START + timedelta(seconds=30))


def test_an_unknown_mirror_is_refused(story: Story) -> None:
    """A task for a reference that the ledger never saw does nothing."""
    assert story.refused("Patient/never") is Refusal.UNKNOWN


def test_a_settled_mirror_is_not_due(story: Story) -> None:
    """A second task for the same hint finds nothing to do."""
    story.hears("v1")
    story.settles(story.claims(), "v1")
    assert story.refused() is Refusal.NOT_DUE


def test_tokens_only_rise(story: Story) -> None:
    """Every claim has a higher token than the one before."""
    story.hears("v1")
    first = story.claims()
    story.ledger.release(first, reason="not done", detail="")
    assert story.claims().token > first.token


def test_an_expired_lease_is_free(story: Story) -> None:
    """After its lease a mirror can be taken by another, and not a moment before."""
    story.hears("v1")
    first = story.claims(by="one")
    story.clock.forward(LEASE_S - 0.001)
    assert story.refused(alone=True) is Refusal.LEASED
    story.clock.forward(0.001)
    second = story.claims(by="two", alone=True)
    assert second.token == first.token + 1


def ends() -> list[Callable[[Story, Claim], bool]]:
    return [
        lambda story, claim: story.settles(claim, "v1", Disposition.APPLIED),
        lambda story, claim: story.ledger.release(claim, reason="not done", detail=""),
        lambda story, claim: story.ledger.fail(
            claim, reason="refused", detail="", settlement=read("v1", Disposition.FAILED, at=story.clock())
        ),
        lambda story, claim: story.ledger.hold(claim, reason="conflict", detail=""),
    ]


NAMES = ["finish", "release", "fail", "hold"]


@pytest.mark.parametrize("end", ends(), ids=NAMES)
def test_a_fenced_attempt_changes_neither_mirror_nor_changes(story: Story, end: Callable[[Story, Claim], bool]) -> None:
    """Once another holds the mirror, whichever way the old attempt ends is refused, and noted as fenced."""
    story.hears("v1")
    first = story.claims(by="one")
    story.clock.forward(LEASE_S)
    second = story.claims(by="two", alone=True)
    before = story.mirror()
    assert end(story, first) is False
    assert story.mirror() == before
    assert story.changes() == {"v1": None}
    assert story.shown()["attempts"][-1]["outcome"] == "fenced"
    assert story.settles(second, "v1")


@pytest.mark.parametrize("end", ends(), ids=NAMES)
def test_every_end_gives_the_mirror_back(story: Story, end: Callable[[Story, Claim], bool]) -> None:
    """An attempt that ends in whichever way leaves no lease and no start without an end, and one line in the story."""
    story.hears("v1")
    end(story, story.claims())
    mirror = story.mirror()
    assert (mirror["lease_owner"], mirror["lease_until"], mirror["starts"]) == (None, None, 0)
    assert mirror["syncing"] is False
    assert len(story.shown()["attempts"]) == 1


def test_a_fenced_attempt_cannot_make_a_mirror_wait(story: Story) -> None:
    """Waiting is an end like the others: refused to whoever no longer holds the mirror."""
    story.hears("v1")
    first = story.claims(by="one")
    story.clock.forward(LEASE_S)
    story.claims(by="two", alone=True)
    before = story.mirror()
    story.ledger.wait(first, "Practitioner/1", "")
    assert story.mirror() == before


def test_an_attempt_cannot_end_twice(story: Story) -> None:
    """After its end an attempt has no say, even while nobody else holds the mirror."""
    story.hears("v1")
    claim = story.claims()
    assert story.settles(claim, "v1")
    assert not story.settles(claim, "v1", Disposition.APPLIED)
    assert not story.ledger.fail(claim, reason="refused", detail="")
    assert story.mirror()["state"] == "current"


def test_a_start_is_counted_before_the_work(story: Story) -> None:
    """A start without an end makes the mirror a suspect: only who works alone gets it, and starts add up."""
    story.hears("v1")
    assert story.claims().starts == 1
    for starts in (2, 3):
        story.clock.forward(LEASE_S)
        assert story.refused() is Refusal.SUSPECT
        assert story.claims(alone=True).starts == starts
    died = [attempt for attempt in story.shown()["attempts"] if attempt["outcome"] == "died"]
    assert [attempt["token"] for attempt in died] == [1, 2]


def test_an_end_clears_the_starts(story: Story) -> None:
    """Only consecutive starts without an end count."""
    story.hears("v1")
    story.claims()
    story.clock.forward(LEASE_S)
    story.ledger.release(story.claims(alone=True), reason="not done", detail="")
    assert story.claims().starts == 1


def test_a_newer_version_does_not_clear_the_starts(story: Story) -> None:
    """A suspect stays one when hints arrive: they do not show that its start would end."""
    story.hears("v1")
    story.claims()
    story.clock.forward(LEASE_S)
    story.hears("v2")
    assert story.refused() is Refusal.SUSPECT


def test_an_attempt_is_not_made_before_its_time(story: Story) -> None:
    """A release with a pause is not runnable before it, whatever hints arrive: due_at and not_before are two things."""
    story.hears("v1")
    story.ledger.release(story.claims(), reason="not done", detail="", after_s=30)
    story.hears("v2")
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(30)
    assert story.claims().attempts == 1


def test_a_release_until_the_bound_of_a_write(story: Story) -> None:
    """The later one of backoff and bound counts."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.record(write.id, unknown())
    story.ledger.release(claim, reason="unknown", detail="", after_s=10, until=write.bound)
    assert story.ledger.claim(PATIENT, instance="two", lease_s=1) == NotClaimed(Refusal.NOT_YET, write.bound)


def test_a_closed_gate_uses_up_no_attempt(story: Story) -> None:
    """Only releases that count raise the number of attempts."""
    story.hears("v1")
    story.ledger.release(story.claims(), reason="gate closed", detail="", counts=False)
    assert story.claims().attempts == 0


def test_the_first_write_is_immediate_and_the_next_a_second_later(story: Story) -> None:
    """After a write a mirror is not runnable for a second; a new one never waits."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.settles(claim, "v1", Disposition.APPLIED, last=(write, done()))
    story.hears("v2")
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(1)
    story.claims()


def test_an_attempt_without_a_write_is_not_spaced(story: Story) -> None:
    """Reading what is unchanged does not hold up the next hint."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    story.settles(story.claims(), "v2")
    story.hears("v3")
    story.claims()


def waits(story: Story, version: int) -> float:
    """Write a version as soon as spacing lets it, and tell how long the mirror then rests."""
    story.hears(f"v{version}")
    claim = story.claims()
    operation = Operation.UPDATE if claim.links else Operation.CREATE
    write = story.announces(claim, operation)
    story.settles(claim, f"v{version}", Disposition.APPLIED, last=(write, done()))
    story.hears(f"v{version}b")
    refused = story.ledger.claim(PATIENT, instance="one", lease_s=1)
    assert isinstance(refused, NotClaimed)
    assert refused.until is not None
    rest = (refused.until - story.clock.now).total_seconds()
    story.clock.forward(rest)
    return rest


def test_spacing_grows_while_a_mirror_stays_hot(story: Story) -> None:
    """Writes that come as soon as they may are spaced further and further, up to half a minute."""
    rests = [waits(story, number) for number in range(1, 10)]
    assert rests[0] == 1.0
    assert rests == sorted(rests)
    assert 4.0 < rests[4] <= 30.0
    assert rests[-1] == 30.0


def test_a_mirror_cools_down(story: Story) -> None:
    """After a quiet time spacing begins anew."""
    for number in range(1, 5):
        waits(story, number)
    story.clock.forward(300)
    assert waits(story, 9) == 1.0


def test_several_writes_of_one_attempt_do_not_heat(story: Story) -> None:
    """A resource with three records is no hotter after one attempt than one with a single record."""
    story.hears("v1")
    claim = story.claims()
    for number, slot in enumerate("abc"):
        story.ledger.record(story.announces(claim, slot=slot).id, done(number))
    story.settles(claim, "v1", Disposition.APPLIED)
    story.hears("v2")
    story.clock.forward(1)
    story.claims()


@pytest.mark.parametrize("scope", ["Patient", "*"])
def test_a_paused_type_is_not_claimed(story: Story, scope: str) -> None:
    """A pause of the type, or of everything, refuses claims until it is resumed; hints gather."""
    story.hears("v1")
    story.ledger.pause([scope] if scope != "*" else [], who="ana", why="go-live")
    assert story.refused() is Refusal.PAUSED
    story.hears("v2")
    assert story.ledger.resume([], who="ana", why="done") == 1
    assert story.claims().hints == 2


def test_a_pause_of_one_type_leaves_the_others(story: Story) -> None:
    """Pausing Condition does not stop Patient."""
    story.hears("v1")
    story.ledger.pause(["Condition"], who="ana", why="codes")
    story.claims()


def test_a_route_in_phase_paused_is_not_claimed(story: Story) -> None:
    """The phase `paused` of a route works like a pause."""
    story.hears("v1")
    story.sql("UPDATE routes SET phase = :phase WHERE resource_type = 'Patient'", phase=Phase.PAUSED.value)
    assert story.refused() is Refusal.PAUSED


def test_a_mirror_is_claimed_again_when_its_look_comes(story: Story) -> None:
    """A mirror that nobody asked for is runnable once its own look is due."""
    story.hears("v1")
    story.ledger.wait(story.claims(), "Practitioner/1", "")
    assert story.refused() is Refusal.NOT_YET
    story.clock.forward(300)
    story.claims()


def test_an_ended_lease_announces_nothing(story: Story) -> None:
    """From the moment its lease is over an attempt may not announce, though nobody else came."""
    story.hears("v1")
    claim = story.claims()
    story.clock.forward(LEASE_S)
    with pytest.raises(LeaseLost, match=PATIENT):
        story.announces(claim)
    assert story.outcomes() == []


def test_mirrors_do_not_hinder_each_other(story: Story) -> None:
    """A leased mirror keeps nobody from another."""
    story.hears("v1")
    story.hears("v1", of=OTHER)
    story.claims()
    story.claims(OTHER)


def test_a_claim_says_whether_somebody_asked(story: Story) -> None:
    """A look that the mirror takes by itself is told from one that somebody asked for."""
    story.hears("v1")
    claim = story.claims()
    assert claim.asked
    story.ledger.look_later(claim, reason="absent", detail="", after_s=60)
    story.clock.forward(60)
    claim = story.claims()
    assert not claim.asked
    story.hears("v2")
    story.ledger.release(claim, reason="x", detail="")
    assert story.claims().asked


def test_only_a_delete_hint_is_nothing_seen(story: Story) -> None:
    """Never seen is what is known by a delete hint alone, which can be forged; one version, and it was seen."""
    story.hears(None)
    claim = story.claims()
    assert claim.never_seen
    story.hears("v1")
    story.ledger.release(claim, reason="x", detail="")
    assert not story.claims().never_seen


@pytest.mark.parametrize("body", ["the key was taken away", "a body was altered"])
def test_a_body_that_does_not_open_keeps_nobody_from_the_claim(story: Story, body: str) -> None:
    """Notified bodies that do not open are left out, and an unanswered write has no fields then; the claim stands."""
    story.ledger.accept([Hint(PATIENT, "v1", body=b"{}"), Hint(PATIENT, "v2", body=b"{}")])
    first = story.claims()
    assert first.notified.keys() == {"v1", "v2"}
    story.announces(first)
    story.clock.forward(200)
    ledger = story.ledger
    if body == "a body was altered":
        story.sql("UPDATE changes SET body = :junk WHERE version_id = 'v1'", junk=b"\x01\x02k1 junk that nobody sealed")
        story.sql("UPDATE writes SET body = :junk", junk=b"\x01\x02k1 junk that nobody sealed")
        expected = {"v2"}
    else:
        other = (("k2", SecretStr(base64.b64encode(b"x" * 32).decode())),)
        ledger = Ledger(story.ledger.database, Sealer(other))
        expected = set()
    claim = ledger.claim(PATIENT, instance="two", lease_s=60, alone=True)
    assert isinstance(claim, Claim)
    assert claim.notified.keys() == expected
    assert claim.open_versions == {"v1", "v2"}
    assert [write.fields for write in claim.unresolved] == [None]
    assert ledger.last_sent(PATIENT, "") is None
