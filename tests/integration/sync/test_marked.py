"""Test resources of `check --end-to-end`: never mapped and never written, in whichever phase; and who is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.story import PATIENT, Story, only, patient, practitioner
from worker.ledger.values import Phase
from worker.mapping import Context, Result, part_of
from worker.mapping.r4 import Coverage, Patient
from worker.medplum.marked import CHECK, SUBSCRIPTION, TEST_RULE, tag
from worker.sync import End

MARK = {"tag": [tag(CHECK)]}


def rules(story: Story, of: str = PATIENT) -> list[str | None]:
    return [change["rule"] for change in story.shown(of)["changes"]]


def explodes(story: Story) -> None:
    """Let the mapping of patients fail whenever it is called."""
    route = story.routes["Patient"]

    def never(p: Patient, ctx: Context) -> Result:
        raise AssertionError("it was mapped")

    story.deploys({**story.routes, "Patient": replace(route, function=never)})


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.SHADOW])
def test_it_is_skipped_before_the_mapping(story: Story, phase: Phase) -> None:
    """Created, changed, deleted: each is settled, the rule is named, and nothing is sent or shadowed."""
    explodes(story)
    story.ledger.set_phase("Patient", phase, who="ada", why="test")
    story.changes(patient(meta=MARK))
    assert story.syncs().kind is End.DONE
    assert rules(story) == [TEST_RULE]
    story.changes(patient(meta=MARK, active=False))
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    assert story.dispositions()[:2] == ["skipped", "skipped"]
    assert story.state() == "current"
    assert story.calls() == []
    assert story.sql("SELECT reference FROM shadows") == []


def test_a_part_of_it_is_skipped_as_well(story: Story) -> None:
    """A test resource of a type that is a part makes nobody due."""
    story.parts = {"Coverage": part_of(Coverage, lambda c: c.beneficiary)}
    story.ledger.register_routes({"Coverage": (Phase.LIVE, "part")})
    card = {"resourceType": "Coverage", "id": "k1", "beneficiary": {"reference": PATIENT}, "status": "active"}
    story.changes({**card, "payor": [{"display": "x"}], "meta": MARK})
    story.settles()
    assert rules(story, "Coverage/k1") == [TEST_RULE]
    assert story.ledger.show(PATIENT) is None


def test_removed_with_its_history_it_is_nobodys_question(story: Story) -> None:
    """A late copy of its notification finds nothing in Medplum, and is settled, though Medplum had sent it."""
    [version] = story.changes(patient(meta=MARK))
    story.settles()
    story.deletes(PATIENT)
    story.settles()
    expunge(story)
    story.hears(PATIENT, "another")
    story.settles()
    assert story.state() == "current"
    assert rules(story)[-1] == TEST_RULE
    assert version


def test_removed_before_anybody_looked_it_is_known_by_what_was_sent(story: Story) -> None:
    """Nothing of it was ever read; the body of its notification carries the mark."""
    [version] = story.saves(patient(meta=MARK))
    body = only([json.loads(line) for line in story.medplum.get("/sandbox/resources?type=Patient").text.splitlines()])
    story.hears(PATIENT, version, body=json.dumps(body["resource"]).encode())
    expunge(story)
    story.settles()
    assert story.state() == "current"
    assert rules(story)[-1] == TEST_RULE
    assert None not in story.dispositions()


def test_what_has_a_record_is_no_test_resource(story: Story) -> None:
    """A patient who was written before is written on, whatever somebody tags them with."""
    story.changes(patient())
    story.settles()
    story.changes(patient(family="Roe", meta=MARK))
    story.settles()
    assert story.dispositions() == ["applied", "applied"]
    story.agrees()


@pytest.mark.parametrize("mark", [tag(SUBSCRIPTION), {"system": "https://example.org", "code": CHECK}])
def test_another_tag_is_none(story: Story, mark: dict[str, Any]) -> None:
    """It is the whole tag that counts."""
    story.changes(practitioner(meta={"tag": [mark]}))
    story.settles()
    assert story.dispositions("Practitioner/d1") == ["applied"]


def expunge(story: Story) -> None:
    """Remove the patient with its history, as an administrator."""
    form = {"grant_type": "client_credentials", "client_id": "admin", "client_secret": "admin-secret"}
    token = story.medplum.post("/oauth2/token", data=form).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert story.medplum.post(f"/fhir/R4/{PATIENT}/$expunge", headers=headers).is_success
