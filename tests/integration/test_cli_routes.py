"""`reverse-sync routes`, `phase`, `activate`, and what `migrate` does with a new mapping."""

from __future__ import annotations

import io
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.ledger.story import KEYS, Story
from tests.integration.test_cli import Run, run, shell, story  # noqa: F401  fixtures
from worker.ledger import Ledger
from worker.ledger.phasing import OTHER_VERSION, Shadow
from worker.ledger.values import Disposition, Phase

CREATE = Shadow("", "patients", "create", b"{}")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVERSE_SYNC_PAYLOAD_KEY", f"k1:{KEYS[0][1].get_secret_value()}")


def shadowed(story: Story) -> None:  # noqa: F811
    story.ledger.set_phase("Patient", Phase.SHADOW, who="ada", why="look")
    story.hears("v1")
    claim = story.claims()
    story.ledger.keep_shadows(claim, "v1", "m1", [CREATE])
    story.settles(claim, "v1", Disposition.SKIPPED)


def test_a_route_goes_live_after_it_was_asked(story: Story, run: Run) -> None:  # noqa: F811
    """What would be sent is told first; then every resource of it is due, and the switch is recorded."""
    shadowed(story)
    told = run("phase", "Patient", "live", "--why", "compared", "--yes")
    assert told.code == 0, told.err
    assert told.out.splitlines() == [
        "would be sent: 1 create",
        "Patient is live; it was shadow",
        "1 resource due; a worker takes each within seconds",
    ]
    assert story.mirror()["state"] == "due"
    assert story.ledger.actions()[0]["why"] == "compared"


def test_a_no_changes_nothing(story: Story, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Whoever says no leaves the route as it is."""
    shadowed(story)
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run("phase", "Patient", "live", "--why", "compared").code == 1
    assert story.ledger.routes()["Patient"].phase is Phase.SHADOW
    assert story.mirror()["state"] == "current"


def test_a_route_is_taken_out_at_once(story: Story, run: Run) -> None:  # noqa: F811
    """To stop a route asks nothing, and marks nothing due."""
    assert run("phase", "Patient", "off", "--why", "wrong patient").out == "Patient is off; it was live\n"
    assert story.ledger.routes()["Patient"].phase is Phase.OFF


def test_an_unknown_route_is_named(story: Story, run: Run) -> None:  # noqa: F811
    """A misspelt type is told together with those that there are."""
    told = run("phase", "Patiant", "live", "--why", "x")
    assert (told.code, "the routes are Condition, Patient, Practitioner" in told.err) == (1, True)


def test_routes_tell_what_gathers(story: Story, run: Run) -> None:  # noqa: F811
    """Phase, active mapping, states, what would be sent, and what was handed back; also for programs."""
    shadowed(story)
    story.clock.forward(60)
    story.hears("v2")
    story.ledger.release(story.claims(), reason=OTHER_VERSION, detail="", after_s=5, counts=False)
    told = run("routes")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    start = lines.index("Patient  shadow, mapping m1")
    assert lines[start + 1 : start + 4] == [
        "    1 due; 0 legacy records",
        "    would be sent: 1 create",
        "    1 resource handed back by workers with another mapping: `reverse-sync activate`",
    ]
    [patient] = [route for route in run("routes", "--json").json if route["resource_type"] == "Patient"]
    assert (patient["phase"], patient["shadowed"], patient["handed_back"]) == ("shadow", {"create": 1}, 1)
    assert "reverse-sync activate" in run("status").out


def _set_version(tmp_path: Path, version: str, *, worker_lives: bool) -> None:
    with closing(Ledger.open(f"sqlite:///{tmp_path}/ledger.db", keys=KEYS, connections=1)) as ledger:
        ledger.activate({"Patient": version}, who="ada", why="an older release")
        if worker_lives:
            ledger.heartbeat(instance="one", role="worker", host="h", pid=1)


def _version(tmp_path: Path) -> str:
    with closing(Ledger.open(f"sqlite:///{tmp_path}/ledger.db", connections=1)) as ledger:
        return ledger.routes()["Patient"].mapping_version


def test_a_new_mapping_waits_while_workers_run(shell: Run, tmp_path: Path) -> None:  # noqa: F811
    """`migrate` keeps the active mapping then and says what to do; `activate` switches it, and back no further."""
    assert shell("migrate").code == 0
    new = _version(tmp_path)
    _set_version(tmp_path, "older", worker_lives=True)
    told = shell("migrate")
    assert told.code == 0, told.err
    assert "1 route has a new mapping (Patient)" in told.out
    assert "reverse-sync activate" in told.out
    assert _version(tmp_path) == "older"
    assert f"this code has {new}" in shell("routes").out
    told = shell("activate", "--why", "all run it")
    assert told.out == f"Patient: {new} is active; it was older\n"
    assert _version(tmp_path) == new
    assert shell("activate", "Patient", "--why", "again").out == "these mappings are active already\n"


def test_a_new_mapping_is_active_at_once_where_nobody_works(shell: Run, tmp_path: Path) -> None:  # noqa: F811
    """Without a living worker there is nobody who maps otherwise; that is recorded as well."""
    assert shell("migrate").code == 0
    new = _version(tmp_path)
    _set_version(tmp_path, "older", worker_lives=False)
    assert "new mapping" not in shell("migrate").out
    assert _version(tmp_path) == new
    with closing(Ledger.open(f"sqlite:///{tmp_path}/ledger.db", connections=1)) as ledger:
        assert ledger.actions()[0]["who"] == "reverse-sync"
