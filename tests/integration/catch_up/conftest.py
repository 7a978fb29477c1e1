"""Catch-up between a real Medplum stand-in and a ledger of its own. Nothing is imitated but the ledger's clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.contract.ledger.conftest import migrated_file, postgres  # noqa: F401  fixtures
from tests.contract.ledger.story import KEYS, ROUTES, Clock
from tests.integration.catch_up.story import Story
from tests.integration.sync.conftest import medplum, medplum_url, reader, url  # noqa: F401  fixtures
from worker.ledger import Ledger
from worker.medplum import Medplum


@pytest.fixture
def story(url: str, medplum: httpx.Client, reader: Medplum) -> Iterator[Story]:  # noqa: F811  fixtures
    """Tell a story; however it ends, its accounts are in order."""
    clock = Clock()
    with closing(Ledger.open(url, keys=KEYS, clock=clock, connections=8)) as ledger:
        assert medplum.post("/sandbox/reset", json={}).is_success
        ledger.register_routes({"Patient": ROUTES["Patient"]})
        story = Story(ledger, clock, medplum, reader)
        yield story
        assert ledger.status()["identity_holds"]
