"""Everything at once, drawn at random: whatever happens on the way, in the end both sides agree or a person is told."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.integration.sync.story import CONDITION, LEASE_S, OTHER, PATIENT, Killed, Story, condition, killed, patient
from worker.legacy.gate import Gate

ALL = (PATIENT, OTHER, CONDITION)
FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("reset_before", {}),
    ("reset_after", {}),
    ("refuse", {}),
    ("status", {"status": 500, "saves": True}),
    ("status", {"status": 502}),
    ("status", {"status": 503}),
    ("status", {"status": 422}),
]
KIND = {PATIENT: "patient", OTHER: "patient", CONDITION: "problem"}
DOUBTS = {"conflict", "gone"}  # deleted or left under its old parent in the clinic while the outcome was open


class Chaos:
    """One seed's choices."""

    def __init__(self, story: Story, seed: int) -> None:
        self.story, self.dice = story, random.Random(seed)

    def step(self) -> None:
        doing = (self.saves, self.saves, self.removes, self.forges, self.breaks, self.kills, self.waits)
        self.dice.choice((*doing, self.tries, self.tries, self.tries, self.tries))()

    def saves(self) -> None:
        story, of = self.story, self.dice.choice(ALL)
        word = self.dice.choice(("Doe", "Roe", "Poe"))
        resource = condition(title=word) if of == CONDITION else patient(of[-2:], word)
        [version] = story.saves(resource)
        if self.dice.random() < 0.8:
            story.hears(of, version)

    def removes(self) -> None:
        of = self.dice.choice(ALL)
        if of in self.living():
            self.story.removes(of)
            if self.dice.random() < 0.8:
                self.story.hears(of, None)

    def forges(self) -> None:
        self.story.hears(self.dice.choice(ALL), None)

    def breaks(self) -> None:
        kind, rule = self.dice.choice(FAULTS)
        self.story.breaks(kind, {"method": self.dice.choice(("POST", "PUT", "DELETE", "GET"))}, **rule)

    def kills(self) -> None:
        where = self.dice.choice(("before", "after"))
        setattr(self.story.hooks, where, killed)
        self.tries()
        setattr(self.story.hooks, where, lambda request: None)

    def waits(self) -> None:
        self.story.clock.forward(self.dice.choice((0.5, 2, 30, 61, 90)))

    def tries(self) -> None:
        self.story.gate = Gate(None)
        if self.dice.random() < 0.2:
            self.story.hooks.read = self.saves
        try:
            self.story.tries(self.dice.choice(ALL))
        except Killed:
            self.story.clock.forward(LEASE_S)
        self.story.hooks.read = lambda: None

    def living(self) -> dict[str, Any]:
        lines = self.story.medplum.get("/sandbox/resources").text.splitlines()
        return {entry["reference"]: entry for entry in map(json.loads, lines) if not entry["deleted"]}

    def calms_down(self) -> None:
        """Have catch-up tell of what nobody told, and everything done that is due."""
        self.story.mends()
        self.story.gate = Gate(None)
        living = self.living()
        for of in ALL:
            self.story.hears(of, living[of]["versionId"] if of in living else None)
        self.story.settles(for_s=3600)


@pytest.mark.parametrize("seed", range(12))
def test_in_the_end_both_sides_agree_or_a_person_is_told(story: Story, seed: int) -> None:
    """Bursts, deletes, forged hints, faults and kills: nothing is lost, doubled, reversed or on the wrong patient."""
    chaos = Chaos(story, seed)
    for _ in range(60):
        chaos.step()
    chaos.calms_down()
    story.adds_up()
    living, needs_a_person = chaos.living(), {entry["reference"]: entry for entry in story.ledger.failed()}
    for of, entry in needs_a_person.items():
        assert entry["reason"] in DOUBTS | {"parent"}, (of, entry)
    calm = [of for of in ALL if of not in needs_a_person]
    for of in calm:
        told = [line for line in story.records(KIND[of]) if of in (CONDITION, f"Patient/{line.get('external_id')}")]
        assert len(told) == (of in living), of
        if of in living:
            name = "title" if of == CONDITION else "last_name"
            resource = living[of]["resource"]
            assert told[0][name] == (resource["code"]["text"] if of == CONDITION else resource["name"][0]["family"])
    for of in calm:
        assert [write for write in story.outcomes(of) if write[1] is None] == []
    assert all(line["copies"] <= 1 for line in story.lines("records"))
