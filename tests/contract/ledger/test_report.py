"""What the ledger tells: status, one resource's story, what needs a person. Names and shapes that others rely on."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.contract.ledger.story import CONDITION, KEYS, OTHER, PATIENT, ROUTES, Clock, Story, done, read
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.ledger.values import Answer, Disposition, Hint, State, WriteOutcome


def test_the_status_of_an_empty_ledger(story: Story) -> None:
    """Nothing accepted, every disposition and state at zero, and the identity holds."""
    status = story.ledger.status()
    assert status["accepted"] == status["purged"] == 0
    assert status["changes"] == dict.fromkeys([*map(str, Disposition), "open"], 0)
    assert status["mirrors"] == dict.fromkeys(map(str, State), 0)
    assert status["identity_holds"] is True
    assert status["oldest_open_seconds"] is None


def test_the_status_counts_everything(story: Story) -> None:
    """Dispositions, states, leases, unresolved writes and the oldest open change are each told."""
    story.applies("v1")
    story.hears("v2", of=OTHER)
    story.clock.forward(5)
    claim = story.claims(OTHER)
    story.announces(claim)
    story.ledger.accept([Hint("Device/1", "v1")])
    status = story.ledger.status()
    assert (status["accepted"], status["changes"]["applied"], status["changes"]["open"]) == (3, 1, 1)
    assert status["changes"]["skipped"] == 1
    assert (status["mirrors"]["current"], status["mirrors"]["due"]) == (1, 1)
    assert (status["syncing"], status["unresolved_writes"]) == (1, 1)
    assert status["oldest_open_seconds"] == 5.0
    assert json.loads(json.dumps(status)) == status


def test_what_is_left_behind_is_counted(story: Story) -> None:
    """A record that should be deleted and cannot be is counted, with its reason on the link."""
    story.applies("v1")
    story.clock.forward(60)
    story.hears(None)
    claim = story.claims()
    story.ledger.leave_behind(claim, "", "this API cannot delete patients")
    story.ledger.finish(claim, read(None, Disposition.SKIPPED, at=story.clock(), deleted=True, rule="left behind"))
    assert story.ledger.status()["left_behind"] == 1
    [link] = story.shown()["links"]
    assert (link["state"], link["reason"]) == ("left-behind", "this API cannot delete patients")


def test_a_lost_row_breaks_the_identity(story: Story) -> None:
    """The accounts are kept twice: a change that vanished is seen."""
    story.hears("v1", "v2")
    story.sql("DELETE FROM changes WHERE version_id = 'v1'")
    assert story.ledger.status()["identity_holds"] is False
    story.sql(
        "INSERT INTO counters (name, source, resource_type, value) VALUES ('purged', 'notification', 'Patient', 1)"
    )
    assert story.ledger.status()["identity_holds"] is True


def test_what_needs_a_person_is_listed_the_longest_first(story: Story) -> None:
    """Failed and held mirrors are listed with reference, reason, detail, since and attempts, as JSON."""
    story.hears("v1")
    story.ledger.fail(story.claims(), reason="refused", detail="422 birthDate")
    story.clock.forward(10)
    story.hears("v1", of=OTHER)
    story.ledger.hold(story.claims(OTHER), reason="conflict", detail="409")
    story.hears("v1", of=CONDITION)
    listed = story.ledger.failed()
    assert [entry["reference"] for entry in listed] == [PATIENT, OTHER]
    assert {"reference", "reason", "detail", "since", "attempts"} <= listed[0].keys()
    assert listed[0]["since"] == "2026-11-22T12:00:00.000Z"
    assert listed[0]["attempts"] == 1
    assert json.loads(json.dumps(listed)) == listed


def test_a_resource_has_one_story(story: Story) -> None:
    """Mirror, changes, links, attempts and writes of one resource are told together, as JSON, without ciphertext."""
    story.ledger.accept([Hint(PATIENT, "v0", body=b"Canary")])
    story.applies("v1")
    shown = story.shown()
    assert shown["reference"] == PATIENT
    assert {"mirror", "changes", "links", "attempts", "writes"} <= shown.keys()
    assert shown["mirror"]["state"] == "current"
    assert [change["disposition"] for change in shown["changes"]] == ["superseded", "applied"]
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["applied"]
    assert shown["links"][0]["keys"] == {"number": 17, "uuid": "u17"}
    assert json.loads(json.dumps(shown)) == shown
    assert shown["writes"][0]["key"] == "17"
    told = {name for part in ("changes", "links", "writes") for row in shown[part] for name in row}
    assert not told & {"body", "answer", "before_image", "digest"}


def test_a_resource_that_is_synced_now_is_told_so(story: Story) -> None:
    """Syncing is derived from the lease."""
    story.hears("v1")
    assert story.mirror()["syncing"] is False
    story.claims()
    assert story.mirror()["syncing"] is True
    story.clock.forward(60)
    assert story.mirror()["syncing"] is False


def test_an_unknown_resource_has_no_story(story: Story) -> None:
    """A reference that the ledger never saw is None."""
    assert story.ledger.show("Patient/none") is None


def test_no_content_stands_open_in_the_file(tmp_path: Path) -> None:
    """After bodies, fields and words went in, no canary can be read in the SQLite file or the files beside it."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    with closing(Ledger.open(url, keys=KEYS)) as ledger:
        ledger.register_routes(ROUTES)
        story = Story(ledger, Clock())
        ledger.accept([Hint(PATIENT, "v1", body=b'{"family":"Canary"}')])
        claim = story.claims()
        write = story.announces(claim, fields={"family": "Canary"})
        story.ledger.record(write.id, Answer(WriteOutcome.REFUSED, 422, "family", words=b"Canary is refused"))
        files = list(tmp_path.iterdir())
        assert len(files) == 3
        assert [file.name for file in files if b"Canary" in file.read_bytes()] == []
    assert b"Canary" not in (tmp_path / "ledger.db").read_bytes()


def test_errors_of_the_database_hold_no_parameters(empty_url: str) -> None:
    """A statement that the database refuses is LedgerUnavailable, without its values and without a chain."""
    upgrade(empty_url)
    with closing(Ledger.open(empty_url)) as ledger:
        ledger.register_routes(ROUTES)
        with ledger.database.engine.begin() as connection:
            connection.execute(text("DROP TABLE changes"))
        with pytest.raises(LedgerUnavailable) as caught:
            ledger.accept([Hint("Patient/Canary", "v1")])
    assert "Canary" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_both_keys_of_a_second_record_are_told(story: Story) -> None:
    """Where two records were made for one resource, a person sees both keys: one has to be removed by hand."""
    story.hears("v1")
    first = story.claims(lease_s=1)
    write = story.announces(first)
    story.clock.forward(200)
    second = story.claims(alone=True)
    story.ledger.record(story.announces(second).id, done(18))
    story.ledger.record(write.id, done(17))
    assert story.mirror()["reason"] == "second record"
    assert [write["key"] for write in story.shown()["writes"]] == ["17", "18"]


def test_each_route_has_accounts_and_a_lag_of_its_own(story: Story) -> None:
    """What is accepted of a type adds up for that type; its lag counts from when its oldest open change was written."""
    story.applies("v1")
    story.hears("v1", of=CONDITION)
    story.sql("UPDATE changes SET last_updated = NULL WHERE reference = :of", of=CONDITION)
    story.clock.forward(7)
    status = story.ledger.status()
    told = {each["resource_type"]: each for each in status["routes"]}
    assert list(told) == ["Condition", "Patient", "Practitioner"]
    assert (told["Patient"]["accepted"], told["Patient"]["changes"]["applied"], told["Patient"]["lag_seconds"]) == (
        1,
        1,
        None,
    )
    assert (told["Condition"]["changes"]["open"], told["Condition"]["lag_seconds"]) == (1, 7.0)
    assert status["lag_seconds"] == {"Condition": 7.0, "Patient": 0.0, "Practitioner": 0.0}
    assert status["watermark_seconds"]["Patient"] == 67.0  # nothing was caught up with since it was registered
    assert json.loads(json.dumps(status)) == status


def test_rows_of_two_routes_do_not_make_up_for_each_other(story: Story) -> None:
    """A row that is gone from one type and one too many of another are two faults, not none."""
    story.applies("v1")
    story.applies("v1", of=OTHER, key=18)
    story.sql("UPDATE changes SET resource_type = 'Condition' WHERE reference = :of", of=OTHER)
    status = story.ledger.status()
    assert status["identity_holds"] is False
    assert [each["identity_holds"] for each in status["routes"]] == [False, False, True]
    story.sql("UPDATE changes SET resource_type = 'Patient' WHERE reference = :of", of=OTHER)
