"""Previews of resources: what would go out, with keys as the ledger knows them; and nothing goes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.sync.declared import declare
from tests.integration.sync.story import CONDITION, PATIENT, Story, condition, patient
from tests.integration.sync.test_asking import asks, coverage, doctor
from worker.cli import previewed
from worker.errors import RoutesInvalid
from worker.ledger.values import Phase
from worker.legacy import Call, Replace, Unsupported
from worker.mapping import Declared, part_of
from worker.mapping.r4 import Coverage
from worker.previewing import Previewing, Told


def previews(story: Story, of: str = PATIENT, *, against_legacy: bool = False) -> Told:
    """Preview one resource; whatever is told, the legacy system got nothing but reads."""
    parts = {"Coverage": part_of(Coverage, lambda c: c.beneficiary)}
    previewing = Previewing(
        story.ledger,
        story.reader,
        lambda collection, call: call(10.0),
        Declared(story.routes, parts),
        str(story.medplum.base_url),
    )
    before = story.writes()
    told = previewing.of(of, who="ada", against_legacy=against_legacy)
    assert story.writes() == before
    assert any(previewed.of(told))
    return told


def lines(told: Told) -> list[str]:
    return [line.strip() for line in previewed.of(told)]


def requests(told: Told) -> list[tuple[str, str]]:
    return [(request.method, request.path) for record in told.records for request in record.requests]


def body(told: Told) -> Any:
    [record] = told.records
    return record.requests[-1].body


def test_a_new_patient_would_be_created(story: Story) -> None:
    """Without a link it is a create, with the body as it would be sent; who looked is recorded."""
    story.saves(patient())
    told = previews(story)
    assert requests(told) == [("POST", "/patients")]
    assert (body(told)["last_name"], body(told)["birth_date"]) == ("Doe", "02/28/1985")
    [action] = story.ledger.actions()
    assert (action["who"], action["action"], action["arguments"]) == ("ada", "preview", {"reference": PATIENT})


def test_a_parent_without_a_record_is_waited_for(story: Story) -> None:
    """Its key stands in braces where it would be filled in."""
    story.saves(condition())
    told = previews(story, CONDITION)
    assert requests(told) == [("POST", "/patients/{patient.uuid}/problems")]
    assert "waits for Patient/p1" in lines(told)


def test_a_value_of_a_missing_record_stands_in_braces(story: Story) -> None:
    """A key in the body that nobody knows yet names whose it is."""
    story.saves(patient(generalPractitioner=[{"reference": "Practitioner/d1"}]))
    told = previews(story)
    assert body(told)["provider_id"] == "{Practitioner/d1.id}"
    assert told.records[0].waits_for == ("Practitioner/d1",)


def test_known_keys_are_filled_in(story: Story) -> None:
    """A linked record is updated under its own key and its parent's; an equal one is left as it is."""
    story.changes(patient(), condition())
    story.settles()
    assert previews(story, CONDITION).records[0].said == ("nothing: it is as it was last written",)
    story.saves(condition(title="Asthma"))
    [link] = story.links(CONDITION)
    path = f"/patients/{story.record()['uuid']}/problems/{link['keys']['id']}"
    told = previews(story, CONDITION)
    assert requests(told) == [("PUT", path)]
    assert body(told)["title"] == "Asthma"


def test_the_difference_is_told_field_by_field(story: Story) -> None:
    """Under the wire's normalisation: what only looks different is not told."""
    story.changes(patient())
    story.settles()
    story.edits("patient/4701", city="Elsewhere")
    story.saves(patient(family="Roe"))
    [record] = previews(story, against_legacy=True).records
    assert record.differences is not None
    told = {each.name: (each.held, each.ours) for each in record.differences}
    assert told == {"last_name": ("Doe", "Roe"), "city": ("Elsewhere", None)}


def test_an_equal_record_does_not_differ(story: Story) -> None:
    """What we wrote is what the legacy system holds."""
    story.changes(patient())
    story.settles()
    told = previews(story, against_legacy=True)
    assert told.records[0].differences == ()
    assert "the legacy system holds the same" in lines(told)


def test_a_deleted_resource_loses_its_record(story: Story) -> None:
    """A deletion in Medplum is a delete under the known key."""
    story.changes(patient())
    story.settles()
    uuid = story.record()["uuid"]
    story.removes(PATIENT)
    told = previews(story)
    assert (requests(told), told.said) == ([("DELETE", f"/patients/{uuid}")], ("absent: deleted in Medplum",))


def test_what_should_not_be_there_says_its_rule(story: Story) -> None:
    """A rule of the mapping stands where requests would."""
    story.saves(condition(category=[{"coding": [{"code": "encounter-diagnosis"}]}]))
    told = previews(story, CONDITION)
    assert told.said == ("absent: a diagnosis of one visit is not on the problem list",)
    assert requests(told) == []


def test_what_cannot_be_mapped_names_the_line(story: Story) -> None:
    """The mapping's own line and why, as the failed list would have it."""
    story.saves(patient(birthDate="1985"))
    told = previews(story)
    assert told.said == ("unmappable: birth_date = ctx.date(p.birthDate): not a full date",)


def test_a_resource_that_is_nowhere_is_told(story: Story) -> None:
    """Absent is no deletion."""
    assert "neither the resource nor its deletion" in previews(story).said[0]


def test_a_replaced_record_is_two_requests(story: Story) -> None:
    """An API that cannot change a record gets a delete and a create."""
    declare(story, "Patient", to={"update": Replace()})
    story.changes(patient())
    story.settles()
    story.saves(patient(family="Roe"))
    assert [method for method, _ in requests(previews(story))] == ["DELETE", "POST"]
    declare(story, "Patient", to={"update": Replace(create_first=True)})
    assert [method for method, _ in requests(previews(story))] == ["POST", "DELETE"]


def test_what_the_api_cannot_do_is_left_behind(story: Story) -> None:
    """The declared words stand where the request would."""
    story.changes(patient())
    story.settles()
    declare(story, "Patient", to={"delete": Unsupported("nobody deletes a patient")})
    story.removes(PATIENT)
    told = previews(story)
    assert (told.records[0].said, requests(told)) == (("left behind: nobody deletes a patient",), [])


def test_a_request_that_needs_the_record_keeps_its_braces(story: Story) -> None:
    """What only the record itself can tell is not guessed, and not read without being asked for."""
    story.changes(patient())
    story.settles()
    declare(story, "Patient", to={"update": Call("PUT /patients/{uuid}/{current.version}")})
    story.saves(patient(family="Roe"))
    told = previews(story)
    assert requests(told) == [("PUT", "/patients/{uuid}/{current.version}")]
    assert body(told)["last_name"] == "Roe"


def test_what_a_mapping_asks_is_read_and_not_noted(story: Story) -> None:
    """A preview answers questions as the sync does, and leaves no trace of it in the ledger."""
    asks(story, doctor)
    story.saves(patient(), {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Okafor"}]})
    assert body(previews(story))["middle_name"] == "Okafor"
    assert story.sql("SELECT * FROM dependencies") == []


def test_a_part_names_its_owner(story: Story) -> None:
    """A type without records says who would be looked at."""
    story.saves(coverage())
    assert previews(story, "Coverage/k1").said == ("it has no records of its own: Patient/p1 would be looked at",)


def test_a_type_without_a_route_is_refused(story: Story) -> None:
    """Nothing is read of what nobody maps."""
    with pytest.raises(RoutesInvalid, match="no route for Device"):
        previews(story, "Device/x")


def test_a_phase_that_sends_nothing_is_told(story: Story) -> None:
    """What would be sent is shown all the same."""
    story.ledger.set_phase("Patient", Phase.SHADOW, who="ada", why="test")
    story.saves(patient())
    told = previews(story)
    assert (told.said, len(requests(told))) == (("the route is shadow: nothing is sent",), 1)
    assert replace(told, said=()).records == told.records


def test_a_delete_stands_under_a_deleted_parent(story: Story) -> None:
    """The key of a parent whose record is gone still fills the path of what was under it."""
    story.changes(patient(), condition())
    story.settles()
    uuid, [link] = story.record()["uuid"], story.links(CONDITION)
    story.deletes(PATIENT)
    story.settles()
    story.removes(CONDITION)
    assert requests(previews(story, CONDITION)) == [("DELETE", f"/patients/{uuid}/problems/{link['keys']['id']}")]
