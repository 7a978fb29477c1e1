"""A look-up in a list that an API gives out a hundred at a time, and whose filter is left out: practice charts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.acceptance.legacies import PRACTICE
from tests.integration.sync.story import CONDITION, PATIENT, Story, condition, only, patient, practitioner
from tests.integration.sync.test_identity import clinic, clinic_url, legacy, routes  # noqa: F401  fixtures
from worker.sync import End

A_PAGE = 100


def enters(story: Story, chart_no: str, number: int) -> None:
    """Have the front desk enter diagnoses by hand."""
    url = str(story.clinic.base_url)
    account = {name.lower(): PRACTICE.site[name] for name in ("USERNAME", "PASSWORD", "CLIENT_ID", "CLIENT_SECRET")}
    form = {"grant_type": "password", "user_role": "users", **account}
    with httpx.Client(base_url=url, trust_env=False) as desk:
        token = desk.post("/oauth/token", data=form).raise_for_status().json()["access_token"]
        for each in range(number):
            sent = {"description": f"Old complaint {each}", "noted_on": "2001-01-01"}
            answer: Any = desk.post(
                f"/v2/charts/{chart_no}/diagnoses", data=sent, headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.raise_for_status().json()["success"]


@pytest.mark.parametrize("legacy", ["practice"], indirect=True)
def test_a_lost_create_is_found_beyond_the_first_page(story: Story) -> None:
    """A chart has more entries than come at once: the record without an answer is on the second page, and is found."""
    story.changes(practitioner(), patient())
    story.settles()
    enters(story, only(story.links(PATIENT))["keys"]["chart_no"], A_PAGE + 1)
    story.changes(condition())
    story.breaks("reset_after", {"method": "POST", "template": "/v2/charts/{chart_no}/diagnoses"})
    assert story.syncs(CONDITION).kind is End.AGAIN
    story.settles()
    assert len(story.records("diagnosis")) == A_PAGE + 2
    assert only(story.links(CONDITION))["state"] == "linked"
    assert story.state(CONDITION) == "current"
