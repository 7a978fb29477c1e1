"""A record that is to be deleted while the one that should take its place may have been made. `protocol.md` 9."""

from __future__ import annotations

import pytest

from tests.integration.sync.declared import declare
from tests.integration.sync.story import PATIENT, POST_PATIENT, Story, only, patient
from worker.legacy import Replace


@pytest.mark.parametrize("saves", [True, False])
def test_a_new_record_without_an_answer_goes_with_the_old_one(story: Story, saves: bool) -> None:
    """The new one is made first and never answered, then the resource is deleted: neither is left in the clinic."""
    declare(story, "Patient", to={"update": Replace(create_first=True)})
    story.changes(patient())
    story.settles()
    story.clock.forward(60)
    story.breaks("status", POST_PATIENT, status=500, saves=saves)
    story.changes(patient(family="Roe"))
    story.syncs()
    story.deletes(PATIENT)
    story.settles()
    assert (story.state(), only(story.links())["state"]) == ("current", "tombstone")
    assert story.records() == []
