"""Records taken over and links rebuilt between real processes: whose record it is, and that no second one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.sync.crosswalk import CHART, MRN, identified, imports, legacy_has, rebuilds, told
from tests.integration.sync.story import CONDITION, OTHER, PATIENT, Story, condition, patient
from worker.ledger.crosswalk import UNPROVED
from worker.links import Report


def counts(report: Report) -> tuple[int, int, int]:
    told = report.as_counts()
    return told["linked"], told["linked already"], told["refused"]


def refusal(report: Report) -> str:
    [(_, why)] = report.refusals
    return why


def forgets_links(story: Story) -> None:
    """Lose the crosswalk, and all that a look-up of creates could go by."""
    for table in ("links", "writes", "dependencies"):
        story.sql(f"DELETE FROM {table}")  # noqa: S608


def test_a_record_that_was_there_is_updated_and_not_created_again(story: Story, tmp_path: Path) -> None:
    """A patient whom the clinic knew before has one record after the import and the next change: the same one."""
    keys = legacy_has(story, patient())
    story.saves(patient())
    row = f"{PATIENT},{keys['number']},{keys['uuid']}"
    assert counts(imports(story, tmp_path, "reference,number:int,uuid", row, dry=True)) == (1, 0, 0)
    assert story.ledger.show(PATIENT) is None
    assert counts(imports(story, tmp_path, "reference,number:int,uuid", row)) == (1, 0, 0)
    assert story.writes() == ["POST"]
    story.changes(patient(family="Roe"))
    story.settles()
    assert story.writes() == ["POST", "PUT"]
    assert (story.record()["last_name"], story.record()["uuid"]) == ("Roe", keys["uuid"])
    assert counts(imports(story, tmp_path, "reference,number:int,uuid", row)) == (0, 1, 0)
    story.agrees()


def test_a_resource_is_found_by_its_legacy_identifier(story: Story, tmp_path: Path) -> None:
    """The value is looked for as it stands, commas and backslashes included, and no other value is taken for it."""
    values = {"p1": "a,b", "p2": "a\\b", "p3": "a", "p4": "b"}
    for id_, value in values.items():
        story.saves(patient(id_, identifier=identified(MRN, value)))
    lines = [f'"{MRN}|{value}",Patient,{number},u{number}' for number, value in enumerate(values.values())]
    assert counts(imports(story, tmp_path, "identifier,type,number:int,uuid", *lines)) == (4, 0, 0)
    assert [story.links(f"Patient/{id_}")[0]["keys"]["uuid"] for id_ in values] == ["u0", "u1", "u2", "u3"]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ([], "no resource in Medplum carries"),
        (
            [patient("p1", identifier=identified(MRN, "7")), patient("p2", identifier=identified(MRN, "7"))],
            "2 resources",
        ),
        ([patient("p1", identifier=identified(MRN, "7", "8"))], "Patient/p1 carries several identifiers"),
        ([patient("p1", identifier=identified(MRN, "7", use="old"))], "no resource in Medplum carries"),
        ([patient("p1", identifier=identified("urn:other", "7"))], "no resource in Medplum carries"),
    ],
)
def test_an_identifier_that_tells_nobody_for_certain_links_nobody(
    story: Story, tmp_path: Path, resources: list[dict[str, Any]], words: str
) -> None:
    """Exactly one living resource must carry the identifier, and no other one of that system."""
    if resources:
        story.saves(*resources)
    report = imports(story, tmp_path, "identifier,collection,number:int,uuid", f"{MRN}|7,patient,1,u1")
    assert words in refusal(report)
    assert story.sql("SELECT count(*) FROM links") == [(0,)]


def test_a_resource_that_is_not_there_is_not_linked(story: Story, tmp_path: Path) -> None:
    """A reference that Medplum does not have, or has deleted, is refused and its neighbours are linked."""
    story.saves(patient("p1"), patient("p2"))
    story.removes(PATIENT)
    lines = [f"Patient/{id_},{number},u{number}" for number, id_ in enumerate(("p1", "p2", "p3"))]
    report = imports(story, tmp_path, "reference,number:int,uuid", *lines)
    assert counts(report) == (1, 0, 2)
    assert [where for where, _ in report.refusals] == ["line 2", "line 4"]
    assert story.links(OTHER)[0]["key"] == "1"


def test_lines_that_contradict_each_other_are_all_refused(story: Story, tmp_path: Path) -> None:
    """One record for two patients, or two records for one: whichever came first could be the wrong one."""
    story.saves(*(patient(f"p{number}") for number in range(1, 6)))
    report = imports(
        story,
        tmp_path,
        "reference,number:int,uuid",
        "Patient/p1,1,u1",
        "Patient/p2,1,u1",
        "Patient/p3,3,u3",
        "Patient/p3,4,u4",
        "Patient/p5,5,u5",
    )
    assert counts(report) == (1, 0, 4)
    assert story.sql("SELECT reference FROM links") == [("Patient/p5",)]


@pytest.mark.parametrize(
    ("header", "line", "words"),
    [
        ("reference,number:int", "Patient/p1,1", "key.uuid is missing"),
        ("reference,id:int,uuid,number", "Patient/p1,1,u1,1", "a key that patient does not have"),
        ("reference,id:int", "Condition/c1,1", "parent.patient is missing"),
        ("reference,number,uuid,parent.ward", "Patient/p1,1,u1,Location/l1", "a parent that patient does not have"),
        ("reference,id:int", "Device/o1,1", "its type has no route"),
        ("reference,collection,id:int", "Patient/p1,wards,1", "Patient has no such collection: patient"),
        ("identifier,id:int", "urn:x|1,1", "its type is not told"),
    ],
)
def test_a_line_that_cannot_be_is_told_in_words(
    story: Story, tmp_path: Path, header: str, line: str, words: str
) -> None:
    """Unknown types and collections, and keys or parents that are missing or too many, are refused by name."""
    report = imports(story, tmp_path, header, line)
    assert counts(report) == (0, 0, 1)
    assert words in refusal(report)


def carries_keys(story: Story) -> None:
    """Have a patient and a problem synced whose keys stand on their resources, as write-back puts them there."""
    story.changes(patient(), condition())
    story.settles()
    uuid = story.links()[0]["keys"]["uuid"]
    problem = story.links(CONDITION)[0]["keys"]["id"]
    story.changes(
        patient(identifier=identified(CHART, uuid)),
        condition(identifier=identified("urn:clinic:problem", str(problem))),
    )
    story.settles()


def test_lost_links_come_back_from_the_identifiers(story: Story) -> None:
    """All keys come back with their JSON types, children after their parents, and no second record is made."""
    carries_keys(story)
    before = {of: (story.links(of)[0]["keys"], story.links(of)[0]["parents"]) for of in (PATIENT, CONDITION)}
    forgets_links(story)
    assert counts(rebuilds(story, dry=True)) == (2, 0, 0)
    assert story.sql("SELECT count(*) FROM links") == [(0,)]
    assert counts(rebuilds(story)) == (2, 0, 0)
    assert {of: (story.links(of)[0]["keys"], story.links(of)[0]["parents"]) for of in before} == before
    assert {story.links(of)[0]["origin"] for of in before} == {"rebuilt"}
    assert story.sql("SELECT digest, identified_key IS NOT NULL FROM links") == [(None, 1), (None, 1)]
    assert counts(rebuilds(story)) == (0, 2, 0)
    story.changes(patient(family="Roe"), condition(title="Asthma"))
    story.settles()
    assert (len(story.records()), len(story.records("problem"))) == (1, 1)
    story.agrees()


def test_an_identifier_of_another_patients_record_links_nobody(story: Story) -> None:
    """A key that somebody copied to another patient is not believed: nothing is linked, and no second record made."""
    story.changes(patient())
    story.settles()
    uuid = story.links()[0]["keys"]["uuid"]
    forgets_links(story)
    story.changes(patient("p2", identifier=identified(CHART, uuid)))
    report = rebuilds(story)
    assert refusal(report) == "the record under its key is not its own: external_id differ"
    assert (story.mirror(OTHER)["state"], story.mirror(OTHER)["reason"]) == ("held", UNPROVED)
    story.settles()
    assert len(story.records()) == 1
    assert story.links(OTHER) == []


def test_a_key_that_the_clinic_does_not_have_links_nobody(story: Story) -> None:
    """A record that is gone is listed and its resource held: a person says whether a new one is made."""
    story.changes(patient(identifier=identified(CHART, "00000000-0000-4000-8000-000000000000")))
    assert refusal(rebuilds(story)) == "the legacy system has no record under its key"
    assert story.state() == "held"


def test_a_link_that_says_otherwise_stays(story: Story) -> None:
    """A link is never changed by an identifier: both are named for a person to see."""
    carries_keys(story)
    story.saves(patient(identifier=identified(CHART, "another")))
    assert "see both" in refusal(rebuilds(story))
    assert story.state() == "current"
    assert len(story.links()) == 1


def test_the_command_line_takes_over_a_file(story: Story, tmp_path: Path) -> None:
    """`links import` is dry at first, records who applied it and why, and `links export` gives the same file out."""
    keys = legacy_has(story, patient())
    story.saves(patient())
    file = tmp_path / "given.csv"
    file.write_text(f"reference;number:int;uuid\n{PATIENT};{keys['number']};{keys['uuid']}\nPatient/p9;9;u9\n")
    dry = told(story, "links", "import", str(file))
    assert (dry.returncode, "1  would be linked" in dry.stdout, "--apply" in dry.stdout) == (1, True, True)
    assert "line 3: Medplum has no such resource" in dry.stdout
    assert told(story, "links", "import", str(file), "--apply").returncode == 2
    assert told(story, "links", "import", str(file), "--apply", "--why", "go-live").returncode == 1
    assert story.sql("SELECT who, action, why, affected FROM operator_actions") == [
        ("Ada", "links import", "go-live", 1)
    ]
    out = told(story, "links", "export").stdout
    assert out.splitlines() == [
        "reference,collection,slot,key.number:int,key.uuid",
        f"{PATIENT},patient,,{keys['number']},{keys['uuid']}",
    ]
    again = tmp_path / "again.csv"
    again.write_text(out)
    assert "1  linked already" in told(story, "links", "import", str(again)).stdout
