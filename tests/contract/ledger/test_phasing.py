"""Phases, active mapping versions and shadows: what a person switches, and what gathers meanwhile."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.contract.ledger.story import CONDITION, OTHER, PATIENT, Story, done
from worker.errors import LedgerError, Paused
from worker.ledger import Ledger, phasing
from worker.ledger.phasing import Shadow
from worker.ledger.sealing import NoKey
from worker.ledger.values import Disposition, Operation, Phase

CREATE = Shadow("", "patients", "create", b'{"name":"Quarksberg"}')
DELETE = Shadow("second", "patients", "delete", None)


def shadows(story: Story, *sent: Shadow, version: str = "v1", of: str = PATIENT) -> None:
    """Go the way of a version of a route that only shadows."""
    story.clock.forward(60)
    story.hears(version, of=of)
    claim = story.claims(of)
    story.ledger.keep_shadows(claim, version, "m1", sent)
    story.settles(claim, version, Disposition.SKIPPED)


def test_a_phase_is_changed_and_recorded(story: Story) -> None:
    """Who changed it, why, from where to where; the claims of that type know it at once."""
    assert story.ledger.set_phase("Patient", Phase.SHADOW, who="ada", why="first look") is Phase.LIVE
    story.hears("v1")
    assert story.claims().phase is Phase.SHADOW
    [action] = story.ledger.actions()
    assert (action["who"], action["action"], action["why"]) == ("ada", "phase", "first look")
    assert action["arguments"] == {"type": "Patient", "from": "live", "to": "shadow"}


def test_an_unknown_route_has_no_phase(story: Story) -> None:
    """A type without a route is refused, and nothing is recorded."""
    with pytest.raises(LedgerError, match="Device"):
        story.ledger.set_phase("Device", Phase.LIVE, who="ada", why="x")
    assert story.ledger.actions() == []


def test_nothing_is_live_without_a_key(url: str, ledger: Ledger) -> None:
    """A route goes live only where what is sent can be kept sealed."""
    with closing(Ledger.open(url, connections=1)) as keyless, pytest.raises(NoKey):
        keyless.set_phase("Patient", Phase.LIVE, who="ada", why="x")


def test_whoever_is_not_live_writes_nothing_more(story: Story) -> None:
    """An attempt that runs when its route is taken back announces no further write."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.set_phase("Patient", Phase.SHADOW, who="ada", why="stop")
    with pytest.raises(Paused):
        story.announces(claim)


def test_all_are_asked_for_in_chunks(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mirror of the type is due, whatever it stood at, but for the held ones; digests and other types stay."""
    monkeypatch.setattr(phasing, "AT_A_TIME", 2)
    for number in range(5):
        story.applies("v1", of=f"Patient/n{number}", key=number)
    story.applies("v1", of=CONDITION, key=99)
    story.hears("v2", of=OTHER)
    story.ledger.hold(story.claims(OTHER), reason="conflict", detail="")
    story.clock.forward(60)
    assert story.ledger.ask_for_all("Patient") == 5
    assert {story.mirror(f"Patient/n{number}")["state"] for number in range(5)} == {"due"}
    assert (story.mirror(OTHER)["state"], story.mirror(CONDITION)["state"]) == ("held", "current")
    [link] = story.claims("Patient/n3").links
    assert link.digest == "k1:d"


def test_an_attempt_under_way_leaves_the_mirror_due(story: Story) -> None:
    """Whoever claimed while the route only shadowed is followed by an attempt that knows better."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.ask_for_all("Patient")
    story.settles(claim, "v1", Disposition.SKIPPED)
    assert story.mirror()["state"] == "due"


def test_a_shadow_replaces_the_one_before(story: Story) -> None:
    """What would be sent is what the last attempt says; bodies are sealed, and counts are told by operation."""
    shadows(story, CREATE, DELETE)
    [state] = [state for state in story.ledger.route_states() if state.resource_type == "Patient"]
    assert state.shadowed == {"create": 1, "delete": 1}
    assert all(b"Quarksberg" not in bytes(row.body or b"") for row in story.sql("SELECT body FROM shadows"))
    shadows(story, DELETE, version="v2")
    [state] = [state for state in story.ledger.route_states() if state.resource_type == "Patient"]
    assert (state.shadowed, state.mirrors) == ({"delete": 1}, {"current": 1})


def test_whoever_lost_the_mirror_keeps_no_shadow(story: Story) -> None:
    """An attempt that was overtaken does not put its older view over the newer one."""
    story.hears("v1")
    late = story.claims(lease_s=1)
    story.clock.forward(2)
    story.ledger.keep_shadows(story.claims(by="two", alone=True), "v1", "m1", [DELETE])
    story.ledger.keep_shadows(late, "v1", "m1", [CREATE])
    assert [row.operation for row in story.sql("SELECT operation FROM shadows")] == ["delete"]


@pytest.mark.parametrize(
    ("version", "sent", "verdict"),
    [
        ("v1", [CREATE, DELETE], "equal"),
        ("v1", [CREATE], "different"),
        ("v1", [Shadow("", "patients", "create", b"{}"), DELETE], "different"),
        ("v2", [CREATE, DELETE], "newer"),
    ],
)
def test_the_first_live_write_is_compared(story: Story, version: str, sent: list[Shadow], verdict: str) -> None:
    """The shadow is compared once with what was sent of the same version, counted and forgotten."""
    shadows(story, CREATE, DELETE)
    story.clock.forward(60)
    story.hears("v2")
    claim = story.claims()
    assert claim.shadowed
    assert story.ledger.drop_shadows(claim, version, sent) == verdict
    assert story.ledger.drop_shadows(claim, version, sent) == ""
    [state] = [state for state in story.ledger.route_states() if state.resource_type == "Patient"]
    assert (state.shadowed, state.compared) == ({}, {verdict: 1})
    story.adds_up()


def test_an_active_version_is_switched_and_recorded(story: Story) -> None:
    """The old version stands with the action, so that it can be taken back; what is active already is no action."""
    assert story.ledger.activate({"Patient": "m2", "Condition": "m1"}, who="ada", why="deployed") == {"Patient": "m1"}
    story.hears("v1")
    assert story.claims().active_version == "m2"
    [action] = story.ledger.actions()
    assert action["arguments"] == {"Patient": {"from": "m1", "to": "m2"}}
    assert story.ledger.activate({"Patient": "m2"}, who="ada", why="again") == {}
    assert len(story.ledger.actions()) == 1


def test_a_version_of_an_unknown_route_changes_nothing(story: Story) -> None:
    """One unknown type among them, and none is switched."""
    with pytest.raises(LedgerError):
        story.ledger.activate({"Condition": "m2", "Device": "m2"}, who="ada", why="x")
    assert story.ledger.routes()["Condition"].mapping_version == "m1"


def test_what_was_handed_back_is_told(story: Story) -> None:
    """Mirrors that no worker takes stand in the status and behind their route."""
    story.hears("v1")
    story.ledger.release(story.claims(), reason=phasing.OTHER_VERSION, detail="", after_s=5, counts=False)
    assert story.ledger.status()["handed_back"] == {"Patient": 1}
    handed = {state.resource_type: state.handed_back for state in story.ledger.route_states()}
    assert handed == {"Condition": 0, "Patient": 1, "Practitioner": 0}
    assert story.mirror()["attempts"] == 0


def test_links_are_counted_by_their_records(story: Story) -> None:
    """A route shows how many records it has in the legacy system; a tombstone is none."""
    story.applies("v1")
    story.applies("v1", of=OTHER, key=18)
    story.clock.forward(60)
    story.hears(None, of=OTHER)
    claim = story.claims(OTHER)
    write = story.announces(claim, Operation.DELETE)
    story.settles(claim, None, Disposition.APPLIED, last=(write, done(None)), deleted=True)
    assert {state.resource_type: state.links for state in story.ledger.route_states()}["Patient"] == 1
