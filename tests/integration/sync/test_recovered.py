"""A real ledger file is set back to its backup while Medplum and the clinic have gone on: what comes of it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.contract.ledger.story import KEYS
from tests.integration.sync.crosswalk import CHART, identified, rebuilds, told
from tests.integration.sync.story import CONDITION, OTHER, PATIENT, Story, condition, patient
from tests.integration.sync.test_catch_up import catch_up
from worker.ledger import Ledger
from worker.ledger.recovery import Restored
from worker.process import Instance
from worker.recovered import Recovering, StillInDoubt
from worker.running import Running
from worker.witness import Witness, WitnessUnreadable


@dataclass(slots=True)
class Backups:
    """The story's ledger file, copied and put back."""

    story: Story
    folder: Path

    @property
    def file(self) -> Path:
        return Path(self.story.ledger.database.url.removeprefix("sqlite:///"))

    def back_up(self) -> datetime:
        """Copy the ledger as it is; the time of the copy."""
        with closing(sqlite3.connect(self.file)) as ledger, closing(sqlite3.connect(self.folder / "backup.db")) as copy:
            ledger.backup(copy)
        return self.story.clock.now

    def restore(self) -> None:
        """Put the copy in the ledger's place, and open it anew."""
        self.story.ledger.close()
        for left in ("-wal", "-shm"):
            self.file.with_name(self.file.name + left).unlink(missing_ok=True)
        shutil.copy(self.folder / "backup.db", self.file)
        url = f"sqlite:///{self.file}"
        self.story.ledger = Ledger.open(url, keys=KEYS, clock=self.story.clock, connections=8)


@pytest.fixture
def backups(story: Story, tmp_path: Path) -> Iterator[Backups]:
    yield Backups(story, tmp_path)
    story.ledger.close()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "var" / "witness.json")


def recovering(story: Story) -> Recovering:
    return Recovering(story.ledger, "Ada", "the disk died", sleep=story.clock.forward)


def caught_up(story: Story) -> int:
    """Take the turns of every type; how many changes they found."""
    turns = (catch_up(story).turn(each, for_s=60, by_a_person=True) for each in story.ledger.types_caught_up())
    return sum(turn.found for turn in turns if turn is not None)


def lost_time(backups: Backups, witness: Witness) -> datetime:
    """Sync a patient, back the ledger up, go on with him, another one and a problem, and set the ledger back."""
    story = backups.story
    story.changes(patient())
    story.settles()
    since = backups.back_up()
    assert witness.keep(story.ledger)
    story.clock.forward(600)
    story.changes(patient(family="Roe"), patient("p2", family="Lost"), condition(of=OTHER))
    story.settles()
    assert witness.keep(story.ledger)
    backups.restore()
    return since


def test_a_ledger_that_was_set_back_is_noticed_before_the_first_write(backups: Backups, witness: Witness) -> None:
    """The file knows more than the ledger: everything pauses, and nothing is written until a person has spoken."""
    story = backups.story
    lost_time(backups, witness)
    written = story.writes()
    assert witness.look(story.ledger) is False
    story.hears(OTHER, "v1")
    assert story.tries(OTHER).words == "paused"
    assert (story.writes(), story.ledger.paused_as_set_back()) == (written, True)
    kept = witness.path.read_bytes()
    assert witness.keep(story.ledger) is False
    assert witness.path.read_bytes() == kept


def test_no_second_record_is_made_for_what_was_forgotten(backups: Backups, witness: Witness) -> None:
    """Resources that were created in the lost time are found again, and those that were changed end as they should."""
    story = backups.story
    since = lost_time(backups, witness)
    assert witness.look(story.ledger) is False
    assert recovering(story).ledger_set_back(since, lambda: None) == len(story.routes)
    assert witness.look(story.ledger) is True
    assert caught_up(story) == 3
    story.settles()
    assert [len(story.records(kind)) for kind in ("patient", "problem")] == [2, 1]
    assert {story.links(of)[0]["origin"] for of in (OTHER, CONDITION)} == {"found"}
    story.agrees()


def test_without_the_recovered_mode_a_second_record_would_be_made(backups: Backups, witness: Witness) -> None:
    """The test above can fail: a ledger that is believed as it stands makes the forgotten record again."""
    story = backups.story
    lost_time(backups, witness)
    story.hears(OTHER, "again")
    story.settles()
    assert len(story.records()) == 3


def test_forgotten_links_are_rebuilt_before_anything_is_written(backups: Backups, witness: Witness) -> None:
    """Links come back from the keys on the resources while everything still stands."""
    story = backups.story
    story.changes(patient("p3"))
    story.settles()
    backups.back_up()
    story.changes(patient("p2", family="Lost"))
    story.settles()
    uuid = story.links(OTHER)[0]["keys"]["uuid"]
    story.changes(patient("p2", family="Lost", identifier=identified(CHART, uuid)))
    story.settles()
    witness.keep(story.ledger)
    backups.restore()
    witness.look(story.ledger)
    paused = []
    recovering(story).ledger_set_back(
        story.clock.now,
        lambda: paused.append((story.ledger.paused_as_set_back(), rebuilds(story).as_counts()["linked"])),
    )
    assert paused == [(True, 1)]
    story.hears(OTHER, "again")
    story.settles()
    assert len(story.records()) == 2
    assert story.links(OTHER)[0]["origin"] == "rebuilt"
    story.agrees()


def test_broken_off_it_stays_paused_and_goes_on(backups: Backups, witness: Witness) -> None:
    """Where the rebuilding fails nothing may be written; the same command goes on from there."""
    story = backups.story
    since = lost_time(backups, witness)
    witness.look(story.ledger)

    def fails() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        recovering(story).ledger_set_back(since, fails)
    assert story.ledger.paused_as_set_back()
    assert recovering(story).ledger_set_back(since, lambda: None) == 0
    assert not story.ledger.paused_as_set_back()


def test_the_mode_ends_when_nothing_is_in_doubt(backups: Backups, witness: Witness) -> None:
    """The end is refused with numbers while something is in doubt; catch-up proves the lost time, and ends that."""
    story = backups.story
    since = lost_time(backups, witness)
    recovering(story).ledger_set_back(since, lambda: None)
    with pytest.raises(StillInDoubt, match=f"{len(story.routes)} windows"):
        recovering(story).done(anyway=False)
    caught_up(story)
    story.settles()
    assert not recovering(story).done(anyway=False)
    story.agrees()
    assert story.ledger.modes() == ()


def test_a_file_of_another_ledger_is_put_right_by_a_person(backups: Backups, witness: Witness) -> None:
    """Accepted as it stands, the ledger goes on and the file follows it; the decision is recorded."""
    story = backups.story
    lost_time(backups, witness)
    witness.look(story.ledger)
    story.clock.forward(1)
    story.ledger.accept_ledger(who="Ada", why="a drill")
    assert witness.keep(story.ledger) is True
    seen = witness.seen()
    assert seen is not None
    assert seen.accepted == story.ledger.counters().accepted
    assert story.ledger.paused() == ()


def test_a_ledger_that_is_set_back_once_more_is_noticed_again(backups: Backups, witness: Witness) -> None:
    """A decision holds for what was known then: the next restore pauses again."""
    story = backups.story
    lost_time(backups, witness)
    story.clock.forward(1)
    story.ledger.accept_ledger(who="Ada", why="a drill")
    backups.back_up()
    story.clock.forward(60)
    witness.keep(story.ledger)
    story.changes(patient("p4"))
    story.settles()
    witness.keep(story.ledger)
    backups.restore()
    assert witness.look(story.ledger) is False


def test_a_restored_clinic_gets_again_what_it_lost(backups: Backups) -> None:
    """What was written since the clinic's backup is written again by itself, though the mapping says nothing new."""
    story = backups.story
    story.changes(patient("p2"))
    story.settles()
    story.clock.forward(3600)
    since = story.clock.now
    story.changes(patient(family="Roe"))
    story.settles()
    story.edits(f"patient/{story.links()[0]['keys']['number']}", last_name="Doe")
    before = story.writes()
    assert recovering(story).legacy_restored(since) == 1
    story.settles(for_s=60)
    assert story.writes() == [*before, "PUT"]
    assert not recovering(story).done(anyway=False)
    story.agrees()


def test_a_restored_medplum_is_read_again(backups: Backups) -> None:
    """What was settled since Medplum's backup is read again, and the clinic follows it back."""
    story = backups.story
    since = story.clock.now - timedelta(seconds=1)
    story.changes(patient(family="Roe"))
    story.settles()
    story.saves(patient(family="Doe"))  # what the backup has; nobody is told
    assert recovering(story).medplum_restored(since) == 1
    assert story.ledger.sweep_rounds()["Patient"] == {"total": 1, "read": 0, "found": 0, "ended": False}
    story.settles(for_s=60)
    assert story.record()["last_name"] == "Doe"
    [mode] = story.ledger.modes()
    assert mode.kind is Restored.MEDPLUM
    with pytest.raises(StillInDoubt, match="windows of time"):
        recovering(story).done(anyway=False)
    caught_up(story)
    assert not recovering(story).done(anyway=False)
    story.agrees()


def test_a_process_looks_before_it_claims(backups: Backups, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker or dispatcher that starts over a ledger that was set back pauses everything first."""
    story = backups.story
    lost_time(backups, witness)
    monkeypatch.setenv("REVERSE_SYNC_DATABASE_URL", story.ledger.database.url)
    monkeypatch.setenv("REVERSE_SYNC_WITNESS", str(witness.path))
    running = Running.dispatcher(Instance.new("dispatch"))
    assert story.ledger.paused_as_set_back()
    running.keep_witness()
    running.ledger.close()
    seen = witness.seen()
    assert seen is not None
    assert seen.accepted > story.ledger.counters().accepted


def test_the_file_holds_counters_and_a_time(backups: Backups, witness: Witness) -> None:
    """The witness is replaced as a whole, holds nothing of a patient, and one that cannot be read is said to be so."""
    story = backups.story
    story.changes(patient())
    story.settles()
    assert witness.seen() is None
    assert witness.keep(story.ledger)
    held = json.loads(witness.path.read_text())
    assert held.keys() == {"accepted", "writes", "changes", "at"}
    assert [path.name for path in witness.path.parent.iterdir()] == ["witness.json"]
    witness.path.write_text("{")
    with pytest.raises(WitnessUnreadable, match="cannot be read"):
        witness.keep(story.ledger)


def test_the_command_line_says_what_happens(
    backups: Backups, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status`, `resume` and `recovered` lead through it, and everything is recorded with who and why."""
    story = backups.story
    lost_time(backups, witness)
    witness.look(story.ledger)
    status = told(story, "status").stdout
    assert "paused         everything, by reverse-sync: the ledger is behind its witness" in status
    assert "next           the ledger was set back in time: reverse-sync recovered" in status
    assert "`reverse-sync recovered" in told(story, "resume", "--why", "go on").stderr
    assert told(story, "recovered", "--since", "2h", "--accept", "--why", "x").returncode == 2
    begun = told(story, "recovered", "--since", "2026-11-22T12:00Z", "--yes", "--why", "the disk died")
    assert begun.returncode == 0, begun.stderr
    assert "recovered mode since 2026-11-22 12:00:00 UTC" in begun.stdout
    assert f"{len(story.routes)} windows of time not proven yet: catch-up reads it" in begun.stdout
    assert (
        "recovering     ledger restored to 2026-11-22T12:00:00Z, by Ada: the disk died" in told(story, "status").stdout
    )
    assert "every create is looked up first" in told(story, "show", PATIENT).stdout
    refused = told(story, "recovered", "--done", "--why", "well again")
    assert (refused.returncode, "windows of time" in refused.stderr) == (1, True)
    monkeypatch.setenv("REVERSE_SYNC_CATCH_UP_OVERLAP_SECONDS", "0.5")
    ends_at = time.monotonic() + 20
    while told(story, "catch-up").stdout.count("the ledger was set back"):  # the end of the window is too young yet
        assert time.monotonic() < ends_at, "it is never proven"
    story.settles()
    assert told(story, "recovered", "--done", "--why", "well again").returncode == 0
    done = story.sql("SELECT who, why FROM operator_actions WHERE action = 'recovered' ORDER BY id")
    assert done == [("Ada", "the disk died"), ("Ada", "well again")]
