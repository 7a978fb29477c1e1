"""What the stories of imported, rebuilt and lost links are told with: the commands' own rooms, and the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.contract.ledger.story import KEYS
from tests.integration.sync.story import CLINIC_KEY, Story
from worker.ledger.values import Keys, Operation
from worker.links import Report, Sheet
from worker.links.asking import Asking
from worker.links.rebuilding import Rebuilding
from worker.links.taking import Taking
from worker.mapping import Context, Mapped, WriteBack, apply
from worker.medplum.resource import model

ROOT = Path(__file__).resolve().parents[3]
MRN, CHART = "urn:legacy:mrn", "urn:clinic:uuid"


def legacy_has(story: Story, resource: Mapping[str, Any]) -> Keys:
    """Let the clinic have the record of a patient before anything was synced."""
    meta = {"versionId": "v0", "lastUpdated": "2026-01-01T00:00:00.000Z"}
    route = story.routes["Patient"]
    read = model(json.dumps({**resource, "meta": meta}).encode())
    mapped = apply(route, read, Context.of(read, zone=route.to.api.zoneinfo, medplum=str(story.medplum.base_url)))
    assert isinstance(mapped, Mapped)
    request = route.to.request(Operation.CREATE, mapped.records[0].resolve({}), {}, {})
    keys = route.to.api.send(request, deadline_s=20).keys
    assert keys is not None
    return keys


def identified(system: str, *values: str, **more: str) -> list[dict[str, str]]:
    return [{"system": system, "value": value, **more} for value in values]


def imports(story: Story, folder: Path, *rows: str, dry: bool = False) -> Report:
    """Import lines; the first one is the header."""
    path = folder / "links.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    taking = Taking(ledger=story.ledger, routes=story.routes, asking=Asking(story.reader, story.gate))
    action = None
    if not dry:
        action = story.ledger.begin_action(who="Ada", action="links import", why="go-live", arguments={})
    return taking.run(Sheet.open(path, ("number", "uuid", "id")), action=action)


def rebuilds(story: Story, *, dry: bool = False) -> Report:
    """Rebuild the links of patients and their problems, whose keys are on the resources."""
    by_key = {"Patient": WriteBack(CHART, "uuid"), "Condition": WriteBack("urn:clinic:problem")}
    routes = {name: replace(route, identifier=by_key.get(name)) for name, route in story.routes.items()}
    rebuilding = Rebuilding(
        ledger=story.ledger,
        routes=routes,
        asking=Asking(story.reader, story.gate),
        medplum_base_url=str(story.medplum.base_url),
    )
    action = None
    if not dry:
        action = story.ledger.begin_action(who="Ada", action="links rebuild", why="lost", arguments={})
    return rebuilding.run(sorted(by_key), action=action)


def settings_of(story: Story) -> dict[str, str]:
    """Name the story's ledger and systems, and Ada, as a command's environment does."""
    api = story.routes["Patient"].to.api
    return {
        "REVERSE_SYNC_DATABASE_URL": story.ledger.database.url,
        "REVERSE_SYNC_PAYLOAD_KEY": ",".join(f"{name}:{key.get_secret_value()}" for name, key in KEYS),
        "REVERSE_SYNC_OPERATOR": "Ada",
        "REVERSE_SYNC_MEDPLUM_BASE_URL": str(story.medplum.base_url),
        "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "sync",
        "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "sync-secret",
        "REVERSE_SYNC_SITE_CLINIC_URL": api.base_url,
        "REVERSE_SYNC_SITE_CLINIC_KEY": CLINIC_KEY,
    }


def told(story: Story, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, over the story's ledger and systems, as Ada."""
    command = [sys.executable, "-m", "worker.cli", *arguments]
    environ = os.environ | settings_of(story)
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120)
