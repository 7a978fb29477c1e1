"""What no notification told of comes into the clinic all the same: by search, by the sweep, by the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sync.crosswalk import ROOT, imports, legacy_has, settings_of, told
from tests.integration.sync.story import OTHER, PATIENT, POST_PATIENT, Story, condition, patient, practitioner
from worker.catch_up import CatchUp, Turn, instant
from worker.catch_up.sweeping import Sweeping
from worker.ledger.values import Disposition

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _today(story: Story) -> None:
    """Let the ledger's clock stand at Medplum's, and the routes begin now."""
    story.clock.now = datetime.now(UTC)
    begins(story, story.clock.now)


def begins(story: Story, moment: datetime) -> None:
    """Let the routes have been registered then."""
    story.sql("UPDATE routes SET registered_at = :at", at=moment.replace(tzinfo=None).isoformat(" "))


def catch_up(story: Story, *, overlap_s: float = 60.0, due_most: int | None = None) -> CatchUp:
    return CatchUp(
        ledger=story.ledger,
        medplum=story.reader,
        instance="one",
        every_s=60.0,
        overlap_s=overlap_s,
        sweep_over_s=7 * 86_400.0,
        due_most=due_most,
    )


def reads(story: Story, *types: str, by_a_person: bool = True, **how: Any) -> dict[str, Turn]:
    """Take one turn of each type, long enough for all of it."""
    turns = {}
    for each in types or story.ledger.types_caught_up():
        turn = catch_up(story, **how).turn(each, for_s=60, by_a_person=by_a_person)
        assert turn is not None
        turns[each] = turn
    return turns


def sweeps(story: Story, *types: str) -> int:
    """Read every known id back; how many changes that found."""
    story.ledger.begin_sweep(types or story.ledger.types_caught_up())
    sweeping = Sweeping(ledger=story.ledger, medplum=story.reader, over_s=1e6, due_most=None)
    return sum(sweeping.run(each, goes_on=lambda: True).found for each in types or story.ledger.types_caught_up())


def as_of(moment: datetime, *resources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Date resources back."""
    return [{**each, "meta": {"versionId": str(uuid.uuid4()), "lastUpdated": instant(moment)}} for each in resources]


def loads(story: Story, resources: list[dict[str, Any]], **how: object) -> None:
    assert story.medplum.post("/sandbox/load", json={"resources": resources, **how}).is_success


def sources(story: Story) -> set[str]:
    return {source for (source,) in story.sql("SELECT DISTINCT source FROM changes")}


def test_a_first_fill_makes_the_copy_complete(story: Story) -> None:
    """Everything that was written since the cutover comes into the clinic, parents before children, and once."""
    loads(story, as_of(story.clock.now - 400 * DAY, patient("p0")))  # before the cutover
    loads(story, as_of(story.clock.now - 20 * DAY, patient(), patient("p2", family="Roe"), practitioner()))
    loads(story, as_of(story.clock.now - 10 * DAY, condition(), condition("c2", of=OTHER, title="Asthma")))
    ended = told(story, "catch-up", "--since", instant(story.clock.now - 30 * DAY))
    assert ended.returncode == 0, ended.stderr
    assert "Patient: 2 rows, 2 changes found" in ended.stdout
    assert "Condition: 2 rows, 2 changes found" in ended.stdout
    story.settles()
    assert sorted(story.writes()) == ["POST"] * 5
    assert sources(story) == {"catch-up"}
    assert {len(story.records(kind)) for kind in ("patient", "problem")} == {2}
    assert told(story, "catch-up", "--since", instant(story.clock.now - 30 * DAY)).returncode == 0
    assert story.ledger.status()["mirrors"]["due"] == 0
    [(who, action, counts)] = story.sql(
        "SELECT who, action, arguments FROM operator_actions WHERE action = 'catch-up' ORDER BY id LIMIT 1"
    )
    assert (who, action, json.loads(counts)["counts"]["Patient"]) == ("Ada", "catch-up", 2)


def test_a_first_fill_over_imported_links_creates_nothing_twice(story: Story, tmp_path: Path) -> None:
    """A record that the clinic had before is updated, the others are created: no patient has two."""
    keys = legacy_has(story, patient())
    loads(story, as_of(story.clock.now - 20 * DAY, patient(family="Married"), patient("p2", family="Roe")))
    imports(story, tmp_path, "reference,number:int,uuid", f"{PATIENT},{keys['number']},{keys['uuid']}")
    assert told(story, "catch-up", "--since", "30d").returncode == 0
    story.settles()
    assert sorted(story.writes()) == ["POST", "POST", "PUT"]
    assert len(story.records()) == 2
    story.agrees()


def test_what_medplum_never_sent_is_found(story: Story) -> None:
    """A lost create, a lost update and a lost delete are one pass away; what was heard of in time is no work."""
    story.changes(patient(), patient("p2"), patient("p3"))
    story.settles()
    story.saves(patient(family="Roe"), patient("p4"))
    story.removes(OTHER)
    written = len(story.writes())
    turns = reads(story)
    assert (turns["Patient"].found, turns["Condition"].found) == (3, 0)
    story.settles()
    assert sorted(story.writes()[written:]) == ["DELETE", "POST", "PUT"]
    story.clock.forward(60)
    assert reads(story)["Patient"].found == 0
    story.agrees()


def test_passes_over_the_overlap_make_no_work(story: Story) -> None:
    """What was applied, skipped, deleted or has failed is read again by every pass, and asked for by none."""
    story.changes(patient(), patient("p2"), condition())
    story.settles()
    story.deletes(OTHER)
    story.breaks("status", POST_PATIENT, times=None, status=422)
    story.changes(patient("p5"))
    story.settles()
    assert story.state("Patient/p5") == "failed"
    attempts, rows = story.sql("SELECT count(*) FROM attempts"), story.sql("SELECT count(*) FROM changes")
    for _ in range(3):
        story.clock.forward(60)
        assert {turn.found for turn in reads(story).values()} == {0}
        story.settles()
    assert story.sql("SELECT count(*) FROM attempts") == attempts
    assert story.sql("SELECT count(*) FROM changes") == rows
    story.mends()


def test_what_is_committed_late_is_found(story: Story) -> None:
    """A version whose lastUpdated is older than the last pass, and which was not there then, is found by the next."""
    begins(story, story.clock.now - DAY)
    reads(story, "Patient")
    loads(story, as_of(datetime.now(UTC) - timedelta(seconds=30), patient()))
    story.clock.forward(60)
    assert reads(story, "Patient", overlap_s=60.0)["Patient"].found == 1


def test_a_young_row_is_left_to_its_notification(story: Story) -> None:
    """The periodic pass leaves what was written a moment ago; a later one finds it, and a person does at once."""
    loads(story, as_of(datetime.now(UTC), patient()))
    assert reads(story, "Patient", by_a_person=False)["Patient"].found == 0
    assert reads(story, "Patient", by_a_person=True)["Patient"].found == 0  # it is not due yet
    story.ledger.ask_for_catch_up(["Patient"], None)
    assert reads(story, "Patient", by_a_person=True)["Patient"].found == 1


def test_one_turn_of_a_type_at_a_time(story: Story) -> None:
    """A turn is leased in the ledger, over all processes, and given back at its end."""
    assert story.ledger.job("catch-up Patient", every_s=30, instance="two")
    assert catch_up(story).turn("Patient") is None
    story.clock.forward(30)
    assert catch_up(story).turn("Patient") is not None
    story.clock.forward(60)
    assert catch_up(story).turn("Patient") is not None
    [route] = [each for each in story.ledger.status()["routes"] if each["resource_type"] == "Patient"]
    assert route["last_catch_up"].startswith("2 pages, 0 rows, 0 found")


def test_live_changes_go_before_a_first_fill(story: Story) -> None:
    """With enough due the turn takes nothing, says so, and goes on where it was once that is done."""
    loads(story, as_of(story.clock.now - DAY, *(patient(f"p{number}") for number in range(3))))
    story.ledger.ask_for_catch_up(["Patient"], story.clock.now - 2 * DAY)
    story.changes(practitioner())
    turn = reads(story, "Patient", due_most=1)["Patient"]
    assert (turn.full, turn.found) == (True, 0)
    assert "waits for what is due" in turn.words()
    story.settles()
    story.clock.forward(5)
    assert reads(story, "Patient", due_most=1)["Patient"].found == 3


def test_a_medplum_that_does_not_answer_leaves_the_position(story: Story) -> None:
    """The trouble stands with the turn and in the status; the next one goes on, and nothing counts as proven."""
    loads(story, as_of(story.clock.now - DAY, patient()))
    story.ledger.ask_for_catch_up(["Patient"], story.clock.now - 2 * DAY)
    story.faults(api=[{"status": 503, "types": ["Patient"]}])
    turn = reads(story, "Patient", by_a_person=False)["Patient"]
    assert "Medplum answered 503" in turn.trouble
    assert "Medplum answered 503" in told(story, "status").stdout
    story.faults(api=[])
    story.clock.forward(60)
    assert reads(story, "Patient")["Patient"].found == 1


def test_an_expunged_resource_is_found_by_the_sweep(story: Story) -> None:
    """No search by time shows it: reading its id back does. It is looked at twice, then a person decides."""
    story.changes(patient(), patient("p2"))
    story.settles()
    assert story.medplum.post("/sandbox/faults", json={"hidden": {"sync": [PATIENT]}}).is_success
    assert reads(story, "Patient")["Patient"].found == 0
    assert sweeps(story) == 1
    story.settles()
    assert (story.state(), story.mirror()["reason"]) == ("held", "absent")
    assert len(story.records()) == 2
    assert sweeps(story) == 0  # it is on the list
    assert story.dispositions(OTHER) == [Disposition.APPLIED]


def test_a_sweep_finds_versions_and_deletions_that_nobody_told_of(story: Story) -> None:
    """Another version is synced, a deletion is carried out, and what is as it was costs nothing."""
    story.changes(patient(), patient("p2"), patient("p3"))
    story.settles()
    story.saves(patient(family="Roe"))
    story.removes(OTHER)
    attempts = len(story.shown("Patient/p3")["attempts"])
    ended = told(story, "sweep", "--type", "Patient")
    assert ended.returncode == 0, ended.stderr
    assert "Patient: 3 links read back, 2 changes found" in ended.stdout
    story.settles()
    assert len(story.shown("Patient/p3")["attempts"]) == attempts
    story.agrees()


def test_a_dry_run_counts_and_writes_nothing(story: Story) -> None:
    """It says what would be found, by type, and the ledger is as it was."""
    story.changes(patient())
    story.settles()
    story.saves(patient(family="Roe"), patient("p2"))
    before = [story.sql(f"SELECT count(*) FROM {table}") for table in ("changes", "windows", "operator_actions")]  # noqa: S608
    ended = told(story, "catch-up", "--dry-run", "--type", "Patient", "--since", "1h", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {"Patient": {"rows": 2, "changes": 2, "left": []}}
    after = [story.sql(f"SELECT count(*) FROM {table}") for table in ("changes", "windows", "operator_actions")]  # noqa: S608
    assert after == before


def test_the_command_says_what_stays_unproven(story: Story) -> None:
    """Time that is too young to be proven is named, with its reason; a type without a route is refused."""
    story.ledger.doubt("Patient", story.clock.now - DAY, story.clock.now, "the Subscription was off")
    ended = told(story, "catch-up", "--type", "Patient", "--json")
    told_of = json.loads(ended.stdout)["Patient"]
    in_words = told(story, "catch-up", "--type", "Patient").stdout
    assert "the Subscription was off; it was read, and the workers prove it after" in in_words
    assert (ended.returncode, [each["reason"] for each in told_of["unproven"]]) == (0, ["the Subscription was off"])
    assert "not proven     Patient" in told(story, "status").stdout
    refused = told(story, "catch-up", "--type", "Device")
    assert (refused.returncode, "no route that runs for Device" in refused.stderr) == (1, True)
    assert told(story, "catch-up", "--since", "2099-01-01").returncode == 2


def test_killed_in_the_middle_it_changes_no_result(story: Story) -> None:
    """The command is killed outright between two pages and run again: each resource has one change, none is missing."""
    people = [patient(f"p{number}") for number in range(2400)]
    for start in range(0, len(people), 400):
        loads(story, as_of(story.clock.now - DAY + timedelta(seconds=start), *people[start : start + 400]))
    story.ledger.pause(["Patient"], who="Ada", why="no workers run in this test")
    story.faults(api=[{"delay_seconds": 0.3, "types": ["Patient"]}])
    command = [sys.executable, "-m", "worker.cli", "catch-up", "--type", "Patient", "--since", "2d"]
    running = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings_of(story), stdout=subprocess.DEVNULL)
    ends_at = time.monotonic() + 30
    while (found := story.sql("SELECT count(*) FROM changes")[0][0]) == 0:
        assert time.monotonic() < ends_at, "nothing was found"
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait(10)
    assert 0 < found < len(people)
    story.faults(api=[])
    again = told(story, "catch-up", "--type", "Patient")
    assert again.returncode == 0, again.stderr
    [(rows, resources)] = story.sql("SELECT count(*), count(DISTINCT reference) FROM changes")
    assert rows == resources == len(people)
    assert told(story, "catch-up", "--type", "Patient", "--json").stdout.count('"found": 0') == 1
