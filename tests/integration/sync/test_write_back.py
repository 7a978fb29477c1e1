"""Write-back and echo between real processes: a legacy key comes to Medplum, and what comes of it costs no write."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.integration.sync.story import CONDITION, OTHER, PATIENT, Story, condition, only, patient
from worker.cli import story as telling
from worker.cli import words
from worker.mapping import Context, Result, pick, route
from worker.mapping.r4 import Patient
from worker.medplum import Medplum, Present, Read
from worker.medplum.quota import Priority
from worker.metrics import WRITE_BACKS
from worker.write_back import WriteBacks

SYSTEM = "https://clinic.example.com/patient-number"
MRN = {"system": "https://hospital.example.com/mrn", "value": "A-1"}


def writes_back(story: Story, resource_type: str = "Patient") -> str:
    """Take a turn of write-back as a worker does."""
    return story.worker().write_back(resource_type)


def stored(story: Story, of: str = PATIENT) -> dict[str, Any]:
    """Return what Medplum holds: version, deleted, resource."""
    lines = [json.loads(line) for line in story.medplum.get("/sandbox/resources").text.splitlines()]
    return only([line for line in lines if line["reference"] == of])


def identifiers(story: Story, of: str = PATIENT) -> list[Any]:
    found: list[Any] = stored(story, of)["resource"].get("identifier", [])
    return found


def versions(story: Story) -> int:
    """Count all versions that Medplum ever made, audit events left out: nothing is delivered here."""
    return int(story.medplum.get("/sandbox/state").json()["versions"])


def created(story: Story, *resources: dict[str, Any]) -> None:
    """Have resources synced to records, so that their keys are to be put on them."""
    story.changes(*(resources or (patient(),)))
    story.settles()
    assert wishes(story)


def wishes(story: Story) -> list[str]:
    rows = story.sql("SELECT reference FROM links WHERE identify_at IS NOT NULL ORDER BY reference")
    return [str(row.reference) for row in rows]


def number(story: Story) -> dict[str, str]:
    """Return the identifier that the clinic's only patient should have in Medplum."""
    return {"system": SYSTEM, "value": str(story.record()["number"])}


def tries(story: Story, of: str = PATIENT) -> list[str]:
    return [attempt["detail"] for attempt in story.shown(of)["attempts"] if attempt["outcome"] == "write-back"]


def bad(status: int, *, times: int | None = 1, **more: object) -> dict[str, object]:
    """Make the sandbox answer our patches badly."""
    return {"status": status, "methods": ["PATCH"], "clients": ["sync"], "times": times, **more}


def before_the_patch(reader: Medplum, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between our read and our first patch."""
    patch, acts = reader._patch, [act]

    def interrupted(*arguments: Any) -> httpx.Response:
        if acts:
            acts.pop()()
        return patch(*arguments)

    monkeypatch.setattr(reader, "_patch", interrupted)


def shown(story: Story, of: str = PATIENT) -> str:
    return "\n".join(telling.of(story.shown(of)))


def test_the_key_of_a_new_record_comes_to_its_resource(story: Story) -> None:
    """One version is made, which says all that the one before it said, and the key; nothing is left to do."""
    created(story, patient(identifier=[MRN]))
    before, count = stored(story)["resource"], versions(story)
    assert writes_back(story) == "write-back of Patient: 1 done, 0 later"
    after = stored(story)["resource"]
    assert after["identifier"] == [MRN, number(story)]
    assert before | {"meta": None, "identifier": None} == after | {"meta": None, "identifier": None}
    assert versions(story) == count + 1
    assert wishes(story) == []
    assert only(story.links())["identified_key"] == number(story)["value"]
    assert "the key is on the Medplum resource" in shown(story)
    assert writes_back(story) == "write-back of Patient: 0 done, 0 later"


def test_a_resource_without_identifiers_gets_its_first(story: Story) -> None:
    """Where there is no array to append to, one is made."""
    created(story)
    writes_back(story)
    assert identifiers(story) == [number(story)]


def test_what_the_client_may_not_see_stays(story: Story) -> None:
    """Where an access policy hides identifiers from us, the key is appended to them and takes nobody's place."""
    created(story, patient(identifier=[MRN]))
    story.faults(hidden_fields={"sync": {"Patient": ["identifier"]}})
    writes_back(story)
    assert identifiers(story) == [MRN, number(story)]


def test_what_comes_back_is_an_echo(story: Story) -> None:
    """The notification of our own version ends as echo: no second write, and no second write-back."""
    created(story)
    writes_back(story)
    story.hears(PATIENT, stored(story)["versionId"])
    count = versions(story)
    story.settles()
    writes_back(story)
    assert story.dispositions() == ["applied", "echo"]
    assert story.writes() == ["POST"]
    assert versions(story) == count
    assert story.mirror()["bounces"] == 0
    story.agrees()


def test_a_change_after_write_back_is_written_as_ever(story: Story) -> None:
    """A user's next version, with the identifier in it, leads to one update, and its key stays where it is."""
    created(story)
    writes_back(story)
    story.changes(patient(family="Roe", identifier=identifiers(story)))
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    assert story.record()["last_name"] == "Roe"
    assert wishes(story) == []


def test_an_identifier_that_is_there_already_is_left_alone(story: Story) -> None:
    """Where the resource carries this key, nothing is written."""
    created(story)
    story.saves(patient(identifier=[number(story)]))
    count = versions(story)
    writes_back(story)
    assert versions(story) == count
    assert wishes(story) == []


def test_the_former_key_is_replaced_in_its_place(story: Story) -> None:
    """A record that was made anew has another key: the entry keeps its place and its other members."""
    created(story, patient(identifier=[{"system": SYSTEM, "value": "old", "use": "secondary"}, MRN]))
    story.sql("UPDATE links SET identified_key = 'old'")
    writes_back(story)
    assert identifiers(story) == [{**number(story), "use": "secondary"}, MRN]
    assert "in the place of the former one" in tries(story)[-1]


def test_the_key_of_another_record_is_left_and_said(story: Story) -> None:
    """A resource that names a record under our system which we never put there may have two: nothing is written."""
    theirs = {"system": SYSTEM, "value": "old"}
    created(story, patient(identifier=[theirs, MRN]))
    assert writes_back(story) == "write-back of Patient: 0 done, 1 later"
    assert identifiers(story) == [theirs, MRN]
    assert "there may be two records" in tries(story)[-1]


def test_a_conflict_is_read_and_tried_again_at_once(story: Story) -> None:
    """409 to a patch costs another read and another patch, in the same turn."""
    created(story)
    story.faults(api=[bad(409)])
    assert writes_back(story) == "write-back of Patient: 1 done, 0 later"
    assert identifiers(story) == [number(story)]


def test_a_version_that_came_in_between_is_kept(story: Story, reader: Medplum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who writes between our read and our patch loses nothing: the patch fails its test, and is made anew.

    Without the test it would put our key where another system's identifier has come to stand.
    """
    old = {"system": SYSTEM, "value": "old"}
    created(story, patient(identifier=[old, MRN]))
    story.sql("UPDATE links SET identified_key = 'old'")
    theirs = patient(family="Roe", identifier=[MRN, old])
    before_the_patch(reader, monkeypatch, lambda: story.saves(theirs))
    writes_back(story)
    assert stored(story)["resource"]["name"][0]["family"] == "Roe"
    assert identifiers(story) == [MRN, number(story)]


def test_conflicts_without_end_end_the_try(story: Story) -> None:
    """Who always meets another version tries later, with the reason in the story and the record as it was."""
    created(story)
    before = story.mirror()
    story.faults(api=[bad(409, times=None)])
    assert writes_back(story) == "write-back of Patient: 0 done, 1 later"
    assert story.mirror() == before
    assert "still to be put on the Medplum resource (tried 1 time: Medplum answered 409" in shown(story)
    story.faults(api=[])
    story.clock.forward(3600)
    writes_back(story)
    assert identifiers(story) == [number(story)]


def test_a_deleted_resource_is_never_restored(story: Story) -> None:
    """Nothing is written to what was deleted, and nothing is left to do."""
    created(story)
    story.removes(PATIENT)
    count = versions(story)
    writes_back(story)
    assert stored(story)["deleted"]
    assert versions(story) == count
    assert wishes(story) == []
    assert tries(story) == ["the Medplum resource is gone: nothing is put there"]


def test_a_resource_deleted_in_between_is_never_restored(
    story: Story, reader: Medplum, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete between our read and our patch stands."""
    created(story)
    before_the_patch(reader, monkeypatch, lambda: story.removes(PATIENT))
    writes_back(story)
    assert stored(story)["deleted"]
    assert wishes(story) == []


def test_a_lost_answer_does_no_harm(story: Story) -> None:
    """The patch was made and its answer lost: the next try sees the identifier, and no second version is made."""
    created(story, patient(identifier=[MRN]))
    count = versions(story)
    story.faults(api=[bad(503, after=True)])
    writes_back(story)
    assert identifiers(story) == [MRN, number(story)]
    assert wishes(story) == [PATIENT]
    story.clock.forward(3600)
    writes_back(story)
    assert identifiers(story) == [MRN, number(story)]
    assert versions(story) == count + 1
    assert wishes(story) == []


def test_the_echo_of_a_lost_answer_is_told_by_its_author(story: Story) -> None:
    """A version of ours whose id never reached us is called echo all the same, and written nowhere."""
    created(story, patient(identifier=[MRN]))
    story.faults(api=[bad(503, after=True)])
    writes_back(story)
    story.hears(PATIENT, stored(story)["versionId"])
    story.settles(for_s=10)
    assert story.dispositions() == ["applied", "echo"]
    assert story.writes() == ["POST"]


def test_a_token_that_ended_is_renewed(story: Story) -> None:
    """401 to a patch costs one new token and no try."""
    created(story)
    story.faults(api=[bad(401)])
    assert writes_back(story) == "write-back of Patient: 1 done, 0 later"
    assert identifiers(story) == [number(story)]


def test_a_client_that_may_not_write_harms_no_sync(story: Story) -> None:
    """403 to patches: syncs go on, and the story says which right is missing."""
    created(story)
    story.faults(api=[bad(403, times=None)])
    before = WRITE_BACKS.labels("Patient", "refused")._value.get()
    writes_back(story)
    assert WRITE_BACKS.labels("Patient", "refused")._value.get() == before + 1
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.state() == "current"
    assert story.record()["last_name"] == "Roe"
    assert "let the AccessPolicy of the client write it" in shown(story)


def test_medplum_s_waiting_time_is_honoured_for_all(story: Story) -> None:
    """After 429 nothing more is asked in this turn, and what was not tried counts no try."""
    created(story, patient(), patient("p2"))
    count = versions(story)
    story.faults(api=[bad(429, times=None)])
    writes_back(story)
    rows = story.sql("SELECT reference, identify_attempts FROM links ORDER BY identify_attempts")
    assert [row.identify_attempts for row in rows] == [0, 1]
    assert versions(story) == count
    assert len(wishes(story)) == 2


def test_write_back_leaves_most_of_the_quota_to_others(story: Story, medplum_url: str) -> None:
    """It stops while six tenths of Medplum's units are left, and a live read is answered."""
    everyone = [f"Patient/p{number}" for number in range(10)]
    created(story, *(patient(f"p{number}", identifier=[MRN]) for number in range(10)))
    story.faults(units_per_minute=2000)
    with Medplum(medplum_url + "/", "sync", SecretStr("sync-secret")) as told:  # what it is told first is the most
        assert isinstance(told.read(PATIENT, deadline_s=10), Present)
        WriteBacks(ledger=story.ledger, medplum=told, routes=story.routes).turn("Patient")
        assert isinstance(told.read(PATIENT, deadline_s=10), Present)
    put = [of for of in everyone if identifiers(story, of) != [MRN]]
    assert 0 < len(put) < 10
    assert sorted(put + wishes(story)) == sorted(everyone)


def test_each_type_has_its_own_system(story: Story) -> None:
    """A child gets its own key under its own system, beside its parent's."""
    created(story, patient(), condition())
    assert story.ledger.types_to_identify() == ("Condition", "Patient")
    writes_back(story, "Condition")
    [problem] = story.records("problem")
    assert identifiers(story, CONDITION) == [
        {"system": "https://clinic.example.com/problem-id", "value": str(problem["id"])}
    ]
    assert wishes(story) == [PATIENT]


def test_a_stopping_worker_gives_back_what_it_took(story: Story) -> None:
    """Nothing is begun after SIGTERM, and nothing waits for a lease to run out."""
    created(story)
    story.stopping.set()
    writes_back(story)
    assert identifiers(story) == []
    assert story.ledger.types_to_identify() == ("Patient",)


def test_own_version_and_own_author_never_skip_a_write(story: Story) -> None:
    """A version that is ours by id and by author, with other content than the record's, is written."""
    created(story)
    [version] = story.changes(patient(family="Roe"), author="sync")
    story.sql("INSERT INTO own_versions VALUES (:of, :version, '2026-11-22 12:00:00')", of=PATIENT, version=version)
    story.settles()
    assert story.dispositions() == ["applied", "applied"]
    assert story.record()["last_name"] == "Roe"


def test_a_version_of_ours_is_an_echo_whoever_is_named_as_its_author(story: Story) -> None:
    """The id of a version that we wrote chooses the word, where Medplum names somebody else."""
    created(story)
    [version] = story.changes(patient(active=True))
    story.sql("INSERT INTO own_versions VALUES (:of, :version, '2026-11-22 12:00:00')", of=PATIENT, version=version)
    story.settles()
    assert story.dispositions() == ["applied", "echo"]


def test_set_accounts_is_not_taken_for_an_echo(story: Story) -> None:
    """A user's change under a version that keeps our author is written: content decides, not the author."""
    created(story)
    writes_back(story)
    story.saves(patient(family="Roe", identifier=identifiers(story)))
    kept = patient(family="Roe", identifier=identifiers(story), meta={"tag": [{"code": "account"}]})
    story.changes(kept, author="sync")
    story.settles()
    assert story.record()["last_name"] == "Roe"
    assert story.dispositions()[-1] == "applied"


@pytest.mark.parametrize("told", [True, False])
def test_a_version_that_our_patch_overtook_is_written(story: Story, *, told: bool) -> None:
    """A user's version is not yet synced when our patch makes the next one: its content reaches the clinic."""
    created(story)
    [theirs] = story.saves(patient(family="Roe"))
    writes_back(story)
    story.hears(PATIENT, *([theirs] if told else []), stored(story)["versionId"])
    story.settles()
    assert story.record()["last_name"] == "Roe"
    assert story.writes() == ["POST", "PUT"]
    assert story.dispositions() == ["applied", *(["superseded"] if told else []), "applied"]
    story.agrees()


@route(Patient, to=None)  # type: ignore[arg-type]  # the function alone is used
def maps_it_back(p: Patient, ctx: Context) -> Result:
    name = pick.name(p.name, at=ctx.updated)
    return {
        "last_name": name.family if name else None,
        "first_name": "Jane",
        "middle_name": pick.identifier(p.identifier, system=SYSTEM),  # the mistake
        "birth_date": ctx.date(p.birthDate),
        "sex": "F",
        "external_id": ctx.fhir_id,
    }


def test_a_mapping_that_maps_the_key_back_makes_no_loop(story: Story) -> None:
    """Our version leads to one write more, and that to none: the wish for a write-back comes with a new key alone."""
    story.deploys({**story.routes, "Patient": replace(story.routes["Patient"], function=maps_it_back.function)})
    created(story)
    for _ in range(5):
        writes_back(story)
        story.hears(PATIENT, stored(story)["versionId"])
        story.settles()
        story.clock.forward(60)
    assert story.writes() == ["POST", "PUT"]
    assert versions(story) == 2
    assert story.record()["middle_name"] == str(story.record()["number"])
    assert story.mirror()["bounces"] == 1


def test_the_second_bounce_says_what_to_do(story: Story) -> None:
    """Status and story name it; a user's next version that is written ends the alarm."""
    created(story)
    for family in ("Roe", "Poe"):
        story.changes(patient(family=family), author="sync")
        story.settles()
    status = story.ledger.status() | {"paused": (), "worker_seconds": 1.0}
    assert status["bouncing"] == 1
    assert any("no mapping maps the key" in line for line in words.of_status(status))
    assert "2 versions in a row that we wrote ourselves led to writes" in shown(story)
    story.changes(patient(family="Doe"))
    story.settles()
    assert story.ledger.status()["bouncing"] == 0


def test_the_status_says_how_many_keys_are_to_be_put(story: Story) -> None:
    """A line of the status counts them and says since when; it goes when nothing is left."""
    created(story, patient(), patient("p2"))
    story.clock.forward(300)
    status = story.ledger.status() | {"paused": (), "worker_seconds": 1.0}
    assert "write-back     2 to do, oldest 5 min 0 s" in list(words.of_status(status))
    writes_back(story)
    assert story.ledger.status()["to_identify"] == 0


def test_check_asks_whether_the_client_may_write(story: Story, reader: Medplum) -> None:
    """A type that our patches are forbidden is named with what to do, and the asking changes nothing."""
    story.saves(patient())
    count = versions(story)
    assert reader.check(writes=["Patient"])[-1] == ("the client may write Patient", True, "")
    story.faults(api=[bad(403, times=None)])
    name, ok, advice = reader.check(writes=["Patient"])[-1]
    assert (name, ok) == ("the client may write Patient", False)
    assert "let the AccessPolicy of the client write it" in advice
    assert versions(story) == count


def test_reads_of_write_back_come_last(story: Story, reader: Medplum, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for under the priority that stops first."""
    created(story)
    priorities: list[Priority] = []
    read = reader._reads.read

    def noted(of: str, *, deadline_s: float, priority: Priority = Priority.LIVE) -> Read:
        priorities.append(priority)
        return read(of, deadline_s=deadline_s, priority=priority)

    monkeypatch.setattr(reader._reads, "read", noted)
    writes_back(story)
    assert set(priorities) == {Priority.WRITE_BACK}
    assert OTHER not in wishes(story)
