"""The collector of fixture pairs and its damage test find what they are there for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.legacy import LegacyApi, Unsupported
from worker.mapping import Absent, Context, Result, Skip, link, required, route
from worker.mapping.pairs import damages, mapped, pairs, survives_damage
from worker.mapping.r4 import Patient

api = LegacyApi("clinic", base_url="https://clinic.example.com", auth=None, zone="UTC")
persons = api.collection(
    "person",
    keys=("id",),
    create="POST /persons",
    update="PUT /persons/{id}",
    delete="DELETE /persons/{id}",
    find=Unsupported("none"),
)

PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "p1",
    "birthDate": "1985-02-28",
    "contact": [{"name": {"family": "Doe"}}],
    "managingOrganization": {"reference": "Organization/o1"},
}


@route(Patient, to=persons)
def careful(p: Patient, ctx: Context) -> Result:
    if p.gender == "male":
        return Skip("men")
    if p.gender == "female":
        return Absent("women")
    if p.gender == "other":
        return Unsupported("others")
    return {"born": required(ctx.date(p.birthDate)), "by": link(p.managingOrganization, "id"), "at": None}


@route(Patient, to=persons)
def careless(p: Patient, ctx: Context) -> Result:
    return {"of": p.contact[0].name.family if p.contact and p.contact[0].name else None, "year": p.birthDate.year}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [{"record": "person", "fields": {"born": "1985-02-28", "by": "→ Organization/o1 (id)", "at": None}}]),
        ({"gender": "male"}, {"skip": "men"}),
        ({"gender": "female"}, {"absent": "women"}),
        ({"gender": "other"}, {"unsupported": "others"}),
        ({"birthDate": "1985"}, {"unmappable": "born", "why": "not a full date"}),
    ],
)
def test_each_result_has_its_right_hand_side(changes: dict[str, str], expected: object) -> None:
    """Records with links by reference, and each kind of no in its words."""
    assert mapped(careful, json.dumps(PATIENT | changes).encode()) == expected


def test_damage_leaves_out_each_element_and_cuts_each_date() -> None:
    """Every member and list entry once, the type and the id aside."""
    said = {words for words, _ in damages(PATIENT)}
    assert said == {
        "birthDate left out",
        "birthDate cut to its month",
        "birthDate cut to its year",
        "contact left out",
        "contact.0 left out",
        "contact.0.name left out",
        "contact.0.name.family left out",
        "managingOrganization left out",
        "managingOrganization.reference left out",
    }


def test_damage_finds_what_type_checkers_cannot_see(tmp_path: Path) -> None:
    """A year-only date is text, whatever the model says: the careless mapping crashes on it."""
    case = tmp_path / "case.fhir.json"
    case.write_text(json.dumps(PATIENT))
    survives_damage(careful, case)
    with pytest.raises(AssertionError, match=r"case\.fhir\.json: birthDate .*AttributeError"):
        survives_damage(careless, case)


def test_an_empty_folder_is_no_test(tmp_path: Path) -> None:
    """A misspelt folder does not pass in silence."""
    with pytest.raises(FileNotFoundError):
        pairs(careful, tmp_path)


def asked(*, update: bool) -> Any:
    """Stand for pytest's request, with or without `--update`."""
    return SimpleNamespace(config=SimpleNamespace(getoption=lambda name, default: update))


def test_one_line_collects_compares_and_updates(tmp_path: Path) -> None:
    """A missing right-hand side fails, `--update` writes it, then it passes, and a changed one fails again."""
    case, beside = tmp_path / "one.fhir.json", tmp_path / "one.legacy.json"
    case.write_text(json.dumps(PATIENT))
    test = pairs(careful, tmp_path)
    with pytest.raises(FileNotFoundError):
        test(case, False, asked(update=False))
    test(case, False, asked(update=True))
    test(case, False, asked(update=False))
    beside.write_text(beside.read_text().replace("1985", "1984"))
    with pytest.raises(AssertionError, match="maps to something else"):
        test(case, False, asked(update=False))


def test_each_case_is_mapped_and_damaged(tmp_path: Path) -> None:
    """Both tests come with the one line, for every file of the folder."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.fhir.json").write_text(json.dumps(PATIENT))
    marks: Any = pairs(careful, tmp_path).pytestmark  # type: ignore[attr-defined]
    assert [mark.kwargs["ids"] for mark in marks] == [["one", "two"], ["maps", "damaged"]]
