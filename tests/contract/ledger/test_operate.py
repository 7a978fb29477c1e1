"""What people decide: routes, pauses, replays, whose ledger this is; each action with who and why."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from pydantic import SecretStr

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, START, Story, done, read
from worker.errors import LedgerForeign
from worker.ledger import Ledger, Sealer, Selection
from worker.ledger.sealing import NoKey
from worker.ledger.values import Answer, Disposition, NotClaimed, Operation, Phase, Refusal, RouteRow, WriteOutcome


def fails(story: Story, of: str, reason: str = "refused") -> None:
    story.hears("v1", of=of)
    story.ledger.fail(
        story.claims(of), reason=reason, detail="", settlement=read("v1", Disposition.FAILED, at=story.clock())
    )


def test_routes_are_registered_and_keep_their_phase(story: Story) -> None:
    """A route's first phase is the declared one; later the ledger's stands, and so does the active mapping."""
    story.sql("UPDATE routes SET phase = 'shadow' WHERE resource_type = 'Patient'")
    story.ledger.register_routes({"Patient": (Phase.LIVE, "m2"), "Condition": (Phase.LIVE, "m1")})
    routes = story.ledger.routes()
    assert routes["Patient"] == RouteRow("Patient", Phase.SHADOW, "m1")
    assert routes["Condition"].phase is Phase.LIVE
    assert routes["Practitioner"].phase is Phase.OFF


def test_a_route_that_comes_back_is_not_off(story: Story) -> None:
    """A type that was left out of one release by mistake is synced again by the next."""
    story.ledger.register_routes({"Condition": (Phase.LIVE, "m1")})
    story.ledger.register_routes({"Condition": (Phase.LIVE, "m1"), "Patient": (Phase.LIVE, "m1")})
    assert story.ledger.routes()["Patient"].phase is Phase.LIVE


def test_a_replay_marks_due_and_voids_the_digest(story: Story) -> None:
    """A replayed mirror is written whatever is known of its record."""
    story.applies("v1")
    story.clock.forward(60)
    assert story.refused() is Refusal.NOT_DUE
    assert story.ledger.replay(Selection(references=(PATIENT,)), who="ana", why="template changed") == (PATIENT,)
    [link] = story.claims().links
    assert link.digest is None


def test_a_replay_during_an_attempt_is_not_lost(story: Story) -> None:
    """A replay while an attempt is under way leaves the mirror due and the digest void when that attempt settles."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    write = story.announces(claim, Operation.UPDATE, version="v2")
    story.ledger.replay(Selection(references=(PATIENT,)), who="ana")
    story.settles(claim, "v2", Disposition.APPLIED, last=(write, done(None)))
    assert story.mirror()["state"] == "due"
    story.clock.forward(60)
    [link] = story.claims().links
    assert link.digest is None


@pytest.mark.parametrize("state", ["failed", "held", "waiting"])
def test_a_replay_frees_what_stands_still(story: Story, state: str) -> None:
    """Failed, held and waiting mirrors are claimable after a replay, their attempts start anew."""
    story.hears("v1")
    claim = story.claims()
    if state == "failed":
        story.ledger.fail(claim, reason="x", detail="")
    elif state == "held":
        story.ledger.hold(claim, reason="x", detail="")
    else:
        story.ledger.wait(claim, "Practitioner/1", "")
    story.ledger.replay(Selection(references=(PATIENT,)), who="ana")
    claim = story.claims()
    assert (claim.attempts, claim.starts) == (0, 1)
    assert story.ledger.failed() == []


def test_a_replay_does_not_overtake_an_announced_write(story: Story) -> None:
    """After a replay the next attempt still knows the write that may land, and its bound."""
    story.hears("v1")
    claim = story.claims()
    write = story.announces(claim)
    story.ledger.release(claim, reason="unknown", detail="", until=write.bound)
    story.ledger.replay(Selection(references=(PATIENT,)), who="ana")
    again = story.ledger.claim(PATIENT, instance="one", lease_s=60)
    if isinstance(again, NotClaimed):
        assert again.until == write.bound
    else:
        assert [seen.bound for seen in again.unresolved] == [write.bound]


def test_a_selection_without_names_is_what_needs_a_person(story: Story) -> None:
    """`--all` means the failed and the held, never the whole ledger."""
    fails(story, PATIENT)
    story.hears("v1", of=OTHER)
    story.settles(story.claims(OTHER), "v1")
    story.hears("v1", of=CONDITION)
    story.ledger.hold(story.claims(CONDITION), reason="conflict", detail="")
    assert story.ledger.replayable(Selection()) == (CONDITION, PATIENT)


def test_a_selection_is_narrowed_down(story: Story) -> None:
    """Type, reason and time each narrow it, and what is counted is what is replayed."""
    fails(story, PATIENT, "refused")
    fails(story, CONDITION, "unmappable")
    story.clock.forward(3600)
    fails(story, OTHER, "refused")
    assert story.ledger.replayable(Selection(resource_type="Patient")) == (PATIENT, OTHER)
    assert story.ledger.replayable(Selection(reason="unmappable")) == (CONDITION,)
    recent = Selection(reason="refused", since=START + timedelta(seconds=1800))
    assert story.ledger.replayable(recent) == (OTHER,)
    assert story.ledger.replay(recent, who="ana") == (OTHER,)
    assert story.mirror(PATIENT)["state"] == "failed"


def test_an_unknown_reference_is_not_replayed(story: Story) -> None:
    """A misspelt reference selects nothing and makes nothing."""
    assert story.ledger.replay(Selection(references=("Patient/none",)), who="ana") == ()
    assert story.ledger.show("Patient/none") is None


def test_what_people_did_is_recorded(story: Story) -> None:
    """Pause, resume and replay are listed with who, why and how many, the latest first."""
    fails(story, PATIENT)
    story.ledger.pause(["Condition"], who="ana", why="new codes")
    story.ledger.resume(["Condition"], who="ben", why="codes are in")
    story.ledger.replay(Selection(), who="ana", why="fixed")
    actions = story.ledger.actions()
    assert [(action["action"], action["who"], action["why"], action["affected"]) for action in actions] == [
        ("replay", "ana", "fixed", 1),
        ("resume", "ben", "codes are in", 1),
        ("pause", "ana", "new codes", 1),
    ]


def test_pauses_are_listed_until_they_end(story: Story) -> None:
    """Standing pauses say scope, who and why; resuming one leaves the others."""
    story.ledger.pause([], who="ana", why="all")
    story.ledger.pause(["Patient"], who="ben", why="one")
    assert [(pause.scope, pause.who, pause.why) for pause in story.ledger.paused()] == [
        ("*", "ana", "all"),
        ("Patient", "ben", "one"),
    ]
    assert story.ledger.resume(["Patient"], who="ana", why="") == 1
    assert [pause.scope for pause in story.ledger.paused()] == ["*"]


def test_a_ledger_belongs_to_its_systems(story: Story) -> None:
    """Bound once, a ledger refuses another Medplum or legacy system and names both."""
    story.ledger.belong_to({"medplum": "project-a", "legacy:clinic": "https://a"})
    story.ledger.belong_to({"medplum": "project-a"})
    with pytest.raises(LedgerForeign) as caught:
        story.ledger.belong_to({"medplum": "project-b", "legacy:clinic": "https://a"})
    assert "project-a" in str(caught.value)
    assert "project-b" in str(caught.value)
    assert "https://a" not in str(caught.value)


def test_a_person_lets_a_ledger_change_hands(story: Story) -> None:
    """Adopting binds it to the new systems, and is recorded."""
    story.ledger.belong_to({"medplum": "project-a"})
    story.ledger.adopt_systems({"medplum": "project-b"}, who="ana", why="moved")
    story.ledger.belong_to({"medplum": "project-b"})
    assert story.ledger.actions()[0]["action"] == "adopt"


def test_foreign_systems_are_told_without_binding(story: Story) -> None:
    """Asking whose ledger it is binds nothing: a name that it does not know is not foreign, and stays unknown."""
    story.ledger.belong_to({"medplum": "project-a"})
    assert story.ledger.foreign({"medplum": "project-a", "legacy:clinic": "https://a"}) == []
    [told] = story.ledger.foreign({"medplum": "project-b", "legacy:clinic": "https://b"})
    assert "project-a" in told
    assert "project-b" in told
    assert story.sql("SELECT name FROM deployment") == [("medplum",)]


def test_the_api_s_own_words_are_opened_for_a_person_who_is_named(story: Story) -> None:
    """Words that may hold values are opened on request, each under its write; who looked at whose is recorded."""
    story.hears("v1")
    write = story.announces(story.claims())
    story.ledger.record(write.id, Answer(WriteOutcome.REFUSED, status=422, words=b'{"error": "Quarksberg"}'))
    assert story.ledger.words(PATIENT, who="ana") == {write.id: '{"error": "Quarksberg"}'}
    assert "Quarksberg" not in str(story.shown())
    [action] = story.ledger.actions()
    assert (action["who"], action["action"], action["affected"]) == ("ana", "words", 1)
    assert action["arguments"] == {"reference": PATIENT}


def test_words_that_no_key_opens_are_left_out(story: Story) -> None:
    """With another key nothing is told; without any key it is said which setting is missing."""
    story.hears("v1")
    write = story.announces(story.claims())
    story.ledger.record(write.id, Answer(WriteOutcome.REFUSED, words=b"no"))
    other = Sealer((("k2", SecretStr(base64.b64encode(b"x" * 32).decode())),))
    assert Ledger(story.ledger.database, other).words(PATIENT, who="ana") == {}
    with pytest.raises(NoKey, match="REVERSE_SYNC_PAYLOAD_KEY"):
        Ledger(story.ledger.database, Sealer(())).words(PATIENT, who="ana")
