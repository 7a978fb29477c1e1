"""What a mapping asks about besides its own resource, and how it is answered."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from worker.errors import RoutesInvalid, Unmappable
from worker.mapping import Context, Table, pick
from worker.mapping.question import Asked, Fetch, History, Search
from worker.mapping.r4 import Condition, Coverage, Encounter, Patient, Practitioner, Reference
from worker.mapping.surroundings import Surroundings, asked

MEDPLUM = "https://medplum.example.com/"

Json = dict[str, Any]


def encounter(minute: int = 0, status: str = "finished", **more: Any) -> Json:
    return {
        "resourceType": "Encounter",
        "id": "e1",
        "meta": {"versionId": f"v{minute}", "lastUpdated": f"2026-11-01T10:{minute:02}:00.000Z"},
        "status": status,
        "class": {"code": "AMB"},
        **more,
    }


def bundle(*resources: Json) -> Surroundings:
    entries = [{"resource": resource} for resource in resources]
    return Surroundings.read(json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode())


def context(around: Surroundings) -> Context:
    return Context.of(around.model(), zone="UTC", medplum=MEDPLUM)


def doctor(resource: Json, ctx: Context) -> str | None:
    found = ctx.fetch(Reference.model_validate({"reference": resource["by"]}), Practitioner)
    return found.id if found else None


@pytest.mark.parametrize("text", ["Practitioner/d1", "Practitioner/d1/_history/7", MEDPLUM + "fhir/R4/Practitioner/d1"])
def test_a_fetched_resource_is_asked_for_once_and_then_known(text: str) -> None:
    """However a reference is written, the mapping asks for one resource and goes on with the answer."""
    around = bundle(encounter(), {"resourceType": "Practitioner", "id": "d1"})
    with pytest.raises(Asked) as one:
        doctor({"by": text}, context(around))
    assert one.value.question == Fetch("Practitioner/d1")
    assert asked(partial(doctor, {"by": text}), context(around), around.answer) == "d1"


def test_what_is_not_there_is_none() -> None:
    """A resource that Medplum has deleted is None to the mapping that fetches it."""
    around = bundle(encounter())
    assert asked(partial(doctor, {"by": "Practitioner/d1"}), context(around), around.answer) is None


def test_a_contained_resource_is_fetched_without_asking() -> None:
    """What the resource holds itself is at hand."""
    around = bundle(encounter(contained=[{"resourceType": "Practitioner", "id": "inside"}]))
    assert doctor({"by": "#inside"}, context(around)) == "inside"


@pytest.mark.parametrize("text", ["#nowhere", "Patient/p1", "https://elsewhere.example.com/fhir/R4/Practitioner/d1"])
def test_what_cannot_be_fetched_is_refused(text: str) -> None:
    """A contained resource that is missing, another type, another server: each is refused, none is guessed."""
    around = bundle(encounter(), {"resourceType": "Patient", "id": "p1"})
    with pytest.raises(Unmappable):
        asked(partial(doctor, {"by": text}), context(around), around.answer)


def test_a_mapping_that_catches_everything_does_not_swallow_a_question() -> None:
    """A question is no Exception."""

    def careless(ctx: Context) -> str | None:
        try:
            return doctor({"by": "Practitioner/d1"}, ctx)
        except Exception:  # the mistake that this is about
            return "nobody"

    around = bundle(encounter(), {"resourceType": "Practitioner", "id": "d1"})
    assert asked(careless, context(around), around.answer) == "d1"


def test_those_that_point_here_are_found() -> None:
    """A search brings the resources of a type that refer to this one, and no others."""

    def coverages(ctx: Context) -> list[str | None]:
        return [found.id for found in ctx.search(Coverage, by="beneficiary")]

    def coverage(id_: str, of: str) -> Json:
        about = {"status": "active", "beneficiary": {"reference": of}, "payor": [{"reference": "Organization/o1"}]}
        return {"resourceType": "Coverage", "id": id_, **about}

    patient = {"resourceType": "Patient", "id": "p1"}
    around = bundle(patient, coverage("a", "Patient/p1"), coverage("b", "Patient/p2"), coverage("c", "Patient/p1"))
    assert asked(coverages, context(around), around.answer) == ["a", "c"]
    with pytest.raises(Asked) as one:
        coverages(context(around))
    assert one.value.question == Search("Coverage", "beneficiary", "Patient/p1")


def finished_since(ctx: Context) -> datetime:
    def finished(e: Encounter) -> bool:
        return bool(e.status == "finished")

    return ctx.since(finished)


def test_since_is_when_it_began_to_hold_without_a_break() -> None:
    """Versions after the one that brought it do not move it; an earlier time at which it held does not count."""
    versions = [encounter(50), encounter(40), encounter(30, "in-progress"), encounter(20), encounter(10, "planned")]
    around = bundle(*versions)
    assert asked(finished_since, context(around), around.answer) == datetime(2026, 11, 1, 10, 40, tzinfo=UTC)


def test_since_with_one_version_is_that_one() -> None:
    """Without a history it began with this version."""
    assert asked(finished_since, context(bundle(encounter(5))), bundle(encounter(5)).answer).minute == 5


def test_a_superseded_version_with_a_later_time_is_left_out() -> None:
    """Medplum's current version can be older than one that it superseded: that one says nothing of this one."""
    around = bundle(encounter(20), encounter(21, "planned"), encounter(10))
    assert asked(finished_since, context(around), around.answer).minute == 10


def test_since_of_what_does_not_hold_is_refused() -> None:
    """What is not so now has no beginning."""
    around = bundle(encounter(5, "planned"))
    with pytest.raises(Unmappable):
        asked(finished_since, context(around), around.answer)


def test_a_mapping_that_asks_without_end_is_stopped() -> None:
    """A mapping whose every answer leads to another question ends in words."""

    def endless(ctx: Context) -> None:
        raise Asked(History(str(len(ctx.answers))))

    with pytest.raises(RecursionError):
        asked(endless, context(bundle(encounter())), lambda question: ())


def test_references_to_several_types_keep_their_order() -> None:
    """All references to the named types, in the order of the resource, others left out."""
    texts = ["Patient/p1", "Location/l1", "Practitioner/d1", "Patient/p2"]
    references = [Reference.model_validate({"reference": text}) for text in texts]
    found = pick.references_to(references, Patient, Practitioner)
    assert [each.reference for each in found] == ["Patient/p1", "Practitioner/d1", "Patient/p2"]
    assert pick.references_to(None, Patient) == []


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"valueCoding": {"code": "2106-3"}}, "2106-3"),
        ({"valueCodeableConcept": {"coding": [{"code": "x"}]}}, "x"),
        ({"valueCode": "F"}, "F"),
        ({"valueString": "White"}, "White"),
        ({"valueBoolean": True}, None),
    ],
)
def test_a_code_in_an_extension_within_an_extension(value: Json, code: str | None) -> None:
    """US Core's race and the like: the code of the inner extension, however it is written."""
    inner = {"url": "ombCategory", **value}
    patient = Patient.model_validate({"resourceType": "Patient", "extension": [{"url": "race", "extension": [inner]}]})
    assert pick.extension_code(patient, "race", "ombCategory") == code
    assert pick.extension_code(patient, "race", "detailed") is None
    assert pick.extension_code(None, "race") is None


def test_a_table_comes_out_of_a_csv_file(tmp_path: Path) -> None:
    """Two columns under a line of titles; an unknown code is refused as in any table."""
    file = tmp_path / "codes.csv"
    file.write_text('\ufeffcode,value\nM,MAR\n\nS,"SN,G"\n', encoding="utf-8")
    table = Table.read(file)
    assert (table("M"), table("S"), table(None)) == ("MAR", "SN,G", None)
    with pytest.raises(Unmappable):
        table("X")


@pytest.mark.parametrize("lines", ["code,value\nM\n", "code,value\nM,MAR\nM,SNG\n", "code,value\n,MAR\n"])
def test_a_table_that_cannot_be_read_names_file_and_line(tmp_path: Path, lines: str) -> None:
    """A missing column, a doubled code, a code that is nothing: the line is named."""
    file = tmp_path / "codes.csv"
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(RoutesInvalid, match=r"codes\.csv:[23]: "):
        Table.read(file)


def test_a_table_comes_out_of_a_concept_map(tmp_path: Path) -> None:
    """Each element's first target, but none that is said not to match."""
    targets = [{"code": "MAR", "equivalence": "equivalent"}]
    elements = [{"code": "M", "target": targets}, {"code": "X", "target": [{"code": "?", "equivalence": "unmatched"}]}]
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"resourceType": "ConceptMap", "group": [{"element": elements}]}))
    table = Table.from_concept_map(file, default=None)
    assert (table("M"), table("X")) == ("MAR", None)
    file.write_text("{}")
    with pytest.raises(RoutesInvalid, match="ConceptMap"):
        Table.from_concept_map(file)


def test_conditions_are_no_encounters() -> None:
    """The models that mappings are typed with come one by one, by name."""
    from worker.mapping import r4

    assert r4.Condition is Condition
    with pytest.raises(AttributeError):
        _ = r4.Nothing  # type: ignore[attr-defined]
