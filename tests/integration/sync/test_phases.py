"""Phases and mapping versions on the way of a change: shadowed, live, handed back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.story import CONDITION, PATIENT, Story, condition, patient
from worker.ledger.phasing import RouteState
from worker.ledger.values import Phase
from worker.mapping import Context, Result, Skip
from worker.mapping.r4 import Patient
from worker.sync import End

on_both = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


def goes(story: Story, phase: Phase, *types: str) -> None:
    for each in types or ("Patient",):
        story.ledger.set_phase(each, phase, who="ada", why="test")
        if phase is Phase.LIVE:
            story.ledger.ask_for_all(each)


def state(story: Story, of: str = "Patient") -> RouteState:
    return {each.resource_type: each for each in story.ledger.route_states()}[of]


def maps(story: Story, **fields: Any) -> None:
    """Let the patient's mapping say something else, as another release would, which is active."""
    route = story.routes["Patient"]

    def other(p: Patient, ctx: Context) -> Result:
        result = route.function(p, ctx)
        assert isinstance(result, Mapping)
        return {**result, **fields} if "skip" not in fields else Skip("by another rule")

    story.deploys({**story.routes, "Patient": replace(route, function=other)})


@on_both
def test_a_shadowed_route_sends_nothing_and_keeps_what_it_would(story: Story) -> None:
    """Every version is read and mapped, none is sent; a child needs no parent's record for its shadow."""
    goes(story, Phase.SHADOW, "Patient", "Condition")
    story.changes(condition(), patient())
    story.settles()
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.calls("POST", "PUT", "DELETE", "GET") == []
    assert (state(story).shadowed, state(story, "Condition").shadowed) == ({"create": 1}, {"create": 1})
    assert story.dispositions() == ["skipped", "skipped"]


@on_both
def test_going_live_sends_what_was_shadowed(story: Story) -> None:
    """Everything is looked at, written once, and found equal to its shadow; the versions end as applied."""
    goes(story, Phase.SHADOW, "Patient", "Condition")
    story.changes(condition(), patient())
    story.settles()
    goes(story, Phase.LIVE, "Patient", "Condition")
    story.settles()
    assert story.writes() == ["POST", "POST"]
    assert (story.dispositions(), story.dispositions(CONDITION)) == (["applied"], ["applied"])
    assert (state(story).shadowed, state(story).compared) == ({}, {"equal": 1})
    assert state(story, "Condition").compared == {"equal": 1}
    assert "compared with its shadow: equal" in [attempt["detail"] for attempt in story.shown(PATIENT)["attempts"]]


def test_going_live_again_writes_nothing(story: Story) -> None:
    """What the legacy system holds already is looked at and left as it is."""
    story.changes(patient())
    story.settles()
    goes(story, Phase.LIVE)
    story.settles()
    assert story.writes() == ["POST"]


def test_another_mapping_than_was_shadowed_is_told(story: Story) -> None:
    """The first live write that is not what was shadowed is counted as different."""
    goes(story, Phase.SHADOW)
    story.changes(patient())
    story.settles()
    maps(story, middle_name="Q")
    goes(story, Phase.LIVE)
    story.settles()
    assert state(story).compared == {"different": 1}


def test_a_skip_takes_the_shadow_away(story: Story) -> None:
    """What the mapping skips now would not be sent."""
    goes(story, Phase.SHADOW)
    story.changes(patient())
    story.settles()
    maps(story, skip=True)
    story.changes(patient(family="Roe"))
    story.settles()
    assert state(story).shadowed == {}


def test_a_live_route_that_shadows_again_keeps_updates_and_deletes(story: Story) -> None:
    """Records that are there would be updated and deleted; an unchanged one would not be touched."""
    story.changes(patient(), patient("p2"), patient("p3"))
    story.settles()
    goes(story, Phase.SHADOW)
    story.changes(patient(family="Roe"), patient("p3", active=True))
    story.deletes("Patient/p2")
    story.settles()
    assert state(story).shadowed == {"update": 1, "delete": 1}
    assert len(story.records()) == 3
    goes(story, Phase.LIVE)
    story.settles()
    assert state(story).compared == {"equal": 2}
    assert sorted(record["last_name"] for record in story.records()) == ["Doe", "Roe"]


@pytest.mark.parametrize("phase", [Phase.OFF, Phase.RETIRED])
def test_a_route_that_is_out_reads_nothing(story: Story, phase: Phase) -> None:
    """Changes are settled by the phase alone."""
    goes(story, phase)
    story.changes(patient())
    story.settles()
    assert (story.dispositions(), story.hooks.priorities) == (["skipped"], [])


def test_a_paused_route_gathers(story: Story) -> None:
    """Nothing is claimed while it is paused; live again, everything is written."""
    goes(story, Phase.PAUSED)
    story.changes(patient())
    assert story.tries().kind is End.AGAIN
    assert story.dispositions() == [None]
    goes(story, Phase.LIVE)
    story.settles()
    assert story.dispositions() == ["applied"]


def test_a_worker_with_another_mapping_hands_the_mirror_back(story: Story) -> None:
    """Nothing is read or announced by it, no attempt counts, and a worker with the active mapping goes on."""
    old = story.worker("old")
    story.routes = {**story.routes, "Patient": replace(story.routes["Patient"], function=lambda p, ctx: Skip("x"))}
    new = story.worker("new")
    story.changes(patient())
    assert story.tries(by=new).kind is End.AGAIN
    assert (story.mirror()["attempts"], story.mirror()["reason"]) == (0, "other version")
    assert (story.hooks.priorities, story.shown(PATIENT)["writes"]) == ([], [])
    story.clock.forward(15)
    assert story.tries(by=old).kind is End.DONE
    assert story.record()["last_name"] == "Doe"


def test_activating_turns_the_workers_round(story: Story) -> None:
    """After the switch the old worker hands back and the new one writes, by its version."""
    old, before = story.worker("old"), story.routes["Patient"].version
    maps(story, middle_name="Q")
    story.changes(patient())
    assert story.tries(by=old).kind is End.AGAIN
    story.clock.forward(15)
    assert story.tries().kind is End.DONE
    [(version,)] = story.sql("SELECT mapping_version FROM links WHERE reference = :of", of=PATIENT)
    assert version == story.routes["Patient"].version != before
