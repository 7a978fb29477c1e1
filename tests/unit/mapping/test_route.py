"""What becomes of a mapping's result, what of its failures, and which modules of routes are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from worker.errors import RoutesInvalid
from worker.legacy import Find, LegacyApi, Unsupported, Wire
from worker.mapping import (
    Absent,
    Context,
    Mapped,
    Phase,
    Record,
    Result,
    Route,
    Skip,
    Table,
    Unmappable,
    apply,
    link,
    load_routes,
    required,
    route,
)
from worker.mapping.r4 import Patient

CANARY = "Canary-4711"

api = LegacyApi(
    "clinic",
    base_url="https://clinic.example.com",
    auth=None,
    zone="America/New_York",
    wire=Wire(date="%m/%d/%Y", numbers="text"),
)
notes = api.collection(
    "note",
    keys=("id",),
    create="POST /patients/{patient.uuid}/notes",
    update="PUT /notes/{id}",
    delete=Unsupported("notes are kept"),
    find=Find("GET /notes?title={title}", match=("title",)),
)
others = api.collection(
    "other",
    keys=("id",),
    create="POST /others",
    update="PUT /others/{id}",
    delete="DELETE /others/{id}",
    find=Unsupported("no look-up"),
)
SEX = Table({"female": "F"})

PATIENT = Patient.model_validate(
    {
        "resourceType": "Patient",
        "id": "p1",
        "name": [{"family": CANARY, "given": ["Jane"]}],
        "birthDate": "1980",
        "gender": "male",
        "managingOrganization": {"reference": "https://medplum.example.com/fhir/R4/Organization/o1/_history/2"},
        "generalPractitioner": [{"reference": "Practitioner/d1"}, {"reference": "#gp"}],
    }
)


def mapped(function: Callable[[Patient, Context], Result]) -> Any:
    """Apply a mapping to the one patient of these tests."""
    declared = route(Patient, to=notes)(function)
    return apply(declared, PATIENT, Context.of(PATIENT, zone="America/New_York", medplum="https://medplum.example.com"))


def refused(function: Callable[[Patient, Context], Result]) -> Unmappable:
    """Apply a mapping that fails; the error, which holds no value and no chain."""
    with pytest.raises(Unmappable) as caught:
        mapped(function)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert CANARY not in repr([str(error), error.why, error.field, error.line, error.args])
    return error


@pytest.mark.parametrize("result", [Skip("not synced"), Absent("entered in error"), Unsupported("no column for it")])
def test_what_is_meant_is_returned(result: Result) -> None:
    """Skip, Absent and Unsupported come out as the mapping returned them."""
    assert mapped(lambda p, ctx: result) is result


def test_a_dict_becomes_one_record_in_wire_form() -> None:
    """Values are written, links stay by reference, a link without key becomes a parent, None stays None."""
    result = mapped(
        lambda p, ctx: {
            "patient": link(p.managingOrganization),
            "title": "Gout",
            "on": date(2019, 1, 1),
            "dose": Decimal("1.50"),
            "by": link((p.generalPractitioner or [])[0], "id"),
            "team": [link((p.generalPractitioner or [])[0], "number")],
            "of": {"day": date(2019, 1, 2), "none": None},
            "gone": None,
        }
    )
    assert isinstance(result, Mapped)
    (record,) = result.records
    assert (record.slot, record.collection, dict(record.parents)) == ("", notes, {"patient": "Organization/o1"})
    assert record.references() == {"Organization/o1", "Practitioner/d1"}
    fields = record.resolve({"Practitioner/d1": {"id": 7, "number": "n7"}, "Organization/o1": {"uuid": "u1"}})
    assert fields == {
        "title": "Gout",
        "on": "01/01/2019",
        "dose": "1.50",
        "by": "7",
        "team": ["n7"],
        "of": {"day": "01/02/2019", "none": None},
        "gone": None,
    }
    assert record.resolve_parents({"Organization/o1": {"uuid": "u1"}}) == {"patient": {"uuid": "u1"}}


def test_a_key_that_the_linked_record_lacks_is_refused() -> None:
    """A wrong key name never becomes an empty value."""
    (record,) = mapped(lambda p, ctx: {"by": link((p.generalPractitioner or [])[0], "idd")}).records
    with pytest.raises(Unmappable, match='no key "idd"'):
        record.resolve({"Practitioner/d1": {"id": 7}})


def test_several_records_go_where_they_say() -> None:
    """Each record has its slot, and its own collection if it names one."""
    result = mapped(lambda p, ctx: [Record("a", {"title": "A"}), Record("b", {"x": "B"}, to=others)])
    assert [(record.slot, record.collection.name) for record in result.records] == [("a", "note"), ("b", "other")]


def test_two_records_with_one_slot_are_refused() -> None:
    """Else one of them would be written over the other."""
    assert refused(lambda p, ctx: [Record(CANARY, {}), Record(CANARY, {})]).why == "two records have one slot"


def test_a_refusal_names_the_field_and_the_line_of_the_mapping() -> None:
    """The dict's key and the source beside it, whichever function of the toolkit refused."""

    def mapping(p: Patient, ctx: Context) -> Result:
        return {
            "title": "Gout", "day": required(ctx.date(p.birthDate)),
            "sex": SEX(p.gender),
        }  # fmt: skip

    error = refused(mapping)
    assert (error.field, error.line) == ("day", "day = required(ctx.date(p.birthDate))")
    assert error.why == "not a full date"


def test_a_refusal_inside_an_object_names_the_way_to_it() -> None:
    """Nested objects give a dotted field."""
    error = refused(lambda p, ctx: {"of": {"sex": SEX(p.gender)}})
    assert (error.field, error.line) == ("of.sex", "sex = SEX(p.gender)")


def test_a_refusal_outside_of_the_dict_names_its_line() -> None:
    """A statement before the dict has no field, and its own source."""

    def mapping(p: Patient, ctx: Context) -> Result:
        sex = SEX(p.gender)
        return {"sex": sex}

    error = refused(mapping)
    assert (error.field, error.line) == ("", "sex = SEX(p.gender)")


def helper(p: Patient) -> str:
    return required(SEX(p.gender))


def test_a_refusal_in_a_helper_names_the_field_that_called_it() -> None:
    """The line is the helper's, where it has to be mended; the field is the one that asked."""
    error = refused(lambda p, ctx: {"sex": helper(p)})
    assert (error.field, error.line) == ("sex", "return required(SEX(p.gender))")


def test_a_value_without_wire_form_names_its_field() -> None:
    """What the declaration cannot write is refused at the field that holds it."""

    def mapping(p: Patient, ctx: Context) -> Result:
        return {"title": "Gout", "dose": {"of": 1.5}}  # type: ignore[dict-item]

    error = refused(mapping)
    assert (error.field, error.line) == ("dose", 'dose = {"of": 1.5}')
    assert "float" in error.why


def test_a_name_that_the_mapping_makes_is_not_repeated() -> None:
    """A key out of the resource is a value of it."""
    error = refused(lambda p, ctx: {str((p.name or [])[0].family): object()})  # type: ignore[dict-item]
    assert error.field == ""


def test_a_parent_that_is_missing_is_refused() -> None:
    """A path without its parent cannot be filled; no null goes into the body instead."""
    error = refused(lambda p, ctx: {"patient": None, "title": "Gout"})
    assert (error.field, error.why) == ("patient", "is missing: it fills the path")


def test_a_parent_inside_an_object_is_refused() -> None:
    """A link without key is no value of a body."""
    error = refused(lambda p, ctx: {"of": {"patient": link(p.managingOrganization)}})
    assert error.field == "of"
    assert "stands alone" in error.why


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda p, ctx: {"a": p.name[0].family.index("x")}, "ValueError"),
        (lambda p, ctx: {"a": {}[p.name[0].family]}, "KeyError"),
        (lambda p, ctx: {"a": p.contact[0]}, "TypeError"),
        (lambda p, ctx: {"a": p.none}, "AttributeError"),
        (lambda p, ctx: {"a": int(p.name[0].family)}, "ValueError"),
        (lambda p, ctx: {"a": Patient.model_validate({"gender": [p.name[0].family]})}, "ValidationError"),
    ],
)
def test_code_that_fails_becomes_a_refusal_without_foreign_text(function: Any, name: str) -> None:
    """Whatever the mapping raises, its type and place are told and nothing else."""
    error = refused(function)
    assert error.why == f"the mapping failed with {name}"
    assert error.field == "a"


def test_a_refusal_that_was_chained_lets_its_cause_go() -> None:
    """A mapping that raises Unmappable from an error of its own does not take that along."""

    def mapping(p: Patient, ctx: Context) -> Result:
        try:
            return {"number": int(CANARY)}
        except ValueError as error:
            raise Unmappable("no") from error

    assert refused(mapping).why == "no"


def test_a_mapping_that_forgets_to_return_is_refused() -> None:
    """None is no result."""
    assert refused(lambda p, ctx: None).why == "the mapping returned NoneType"  # type: ignore[arg-type, return-value]


def test_a_route_is_still_its_function() -> None:
    """Users call it in their own tests."""
    declared = route(Patient, to=notes)(lambda p, ctx: Skip("x"))
    assert declared(PATIENT, Context.of(PATIENT, zone="UTC", medplum="https://m.example.com")) == Skip("x")
    assert (declared.type, declared.phase, declared.collections) == ("Patient", Phase.SHADOW, (notes,))


def test_the_collections_of_a_route_are_all_that_it_names() -> None:
    """Those of `to=` in the function's code count."""

    def mapping(p: Patient, ctx: Context) -> Result:
        return [Record("b", {"x": 1}, to=others)]

    assert route(Patient, to=notes)(mapping).collections == (notes, others)


HEAD = """
from worker.legacy import Find, LegacyApi, Unsupported
from worker.mapping import Skip, Table, link, route
from worker.mapping.r4 import Condition, Patient

api = LegacyApi("x", base_url="https://x.example.com", auth=None, zone="UTC")
def collection(**declared):
    usual = dict(keys=("id",), create="POST /a", update="PUT /a/{id}", delete="DELETE /a/{id}")
    return api.collection("a", **(usual | dict(find=Unsupported("none")) | declared))
T = Table({"a": "b"})
"""
ROUTE = """
@route(Patient, to=collection(DECLARED))
def patient(p, ctx):
    return {"name": T("a"), "group": link(None)}
"""


def declaring(collection: str) -> str:
    """Write a module whose collection is declared like this."""
    return HEAD + ROUTE.replace("DECLARED", collection)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Load routes out of a package with these modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded: list[str] = []

    def load(name: str, **modules: str) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        for module, source in {"__init__": "", **modules}.items():
            (folder / f"{module}.py").write_text(source)
        loaded.append(name)
        return load_routes(name)

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] in loaded]:
        del sys.modules[name]


def test_a_package_gives_the_routes_of_all_its_modules(load: Callable[..., Any]) -> None:
    """Nothing has to be listed, and a route that another module imports is one route."""
    again = "from acme_a.one import patient\n"
    condition = ROUTE.replace("Patient", "Condition").replace("patient", "condition").replace("DECLARED", "")
    routes = load("acme_a", one=declaring(""), two=HEAD + again + condition)
    assert list(routes) == ["Condition", "Patient"]
    assert all(isinstance(found, Route) for found in routes.values())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(:\n", r"acme/one\.py:1: "),
        ("\nimport no_such_module\n", r"acme/one\.py:2: No module named 'no_such_module'$"),
        ("\n\nint('Canary-4711')\n", r"acme/one\.py:3: it failed with ValueError when imported$"),
        ("a = 1\n", r"acme declares no route"),
        (declaring('update="PUT a"'), r'acme/one\.py:9: "PUT a" is not a request like'),
        (declaring('update="PUT /a/{idd}"'), r'acme/one\.py:12: a: nothing is called "idd" in "PUT /a/{idd}"$'),
        (declaring('create="POST /a/{grp.id}"'), r'a: nothing is called "grp.id" in'),
        (declaring('create="POST /a/{group.idd}"'), r'a: nothing is called "group.idd" in'),
        (declaring('find=Find("GET /a", match=("nam",))'), r'the mapping returns no field "nam"$'),
        (declaring('clear={"nam": ""}'), r'the mapping returns no field "nam"$'),
        (declaring("") * 2 + "again = 1\n", None),
        (
            declaring("") + ROUTE.replace("DECLARED", "").replace("def patient", "def other"),
            r"two routes for Patient: .*one\.py:12 and .*one\.py:16: keep one$",
        ),
    ],
)  # fmt: skip
def test_routes_that_cannot_be_used_name_file_and_line(load: Callable[..., Any], source: str, said: str | None) -> None:
    """A user learns where to look, and no value of an exception is repeated."""
    if said is None:
        assert list(load("acme", one=source)) == ["Patient"]
        return
    with pytest.raises(RoutesInvalid, match=said) as caught:
        load("acme", one=source)
    assert "Canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_parents_key_of_another_route_is_known(load: Callable[..., Any]) -> None:
    """`{group.number}` is right where some collection has such a key."""
    condition = ROUTE.replace("Patient", "Condition").replace("patient", "condition")
    routes = load(
        "acme_b",
        one=HEAD
        + ROUTE.replace("DECLARED", 'keys=("number",), update="PUT /a/{number}", delete="DELETE /a/{number}"')
        + condition.replace("DECLARED", 'create="POST /a/{group.number}"'),
    )
    assert len(routes) == 2


def test_a_module_that_is_not_there_is_named(load: Callable[..., Any]) -> None:
    """A misspelt setting does not end in a traceback."""
    with pytest.raises(RoutesInvalid, match=r"^no_such_routes: No module named 'no_such_routes'$"):
        load_routes("no_such_routes")


def test_the_version_is_that_of_source_and_tables(load: Callable[..., Any]) -> None:
    """The same source has the same version; another line, or another row of an imported table, has another."""
    source = HEAD.replace('T = Table({"a": "b"})', "from .tables import T") + ROUTE.replace("DECLARED", "")
    table = "from worker.mapping import Table\nT = Table({'a': 'ROW'})\n"
    packages = {
        "acme_c": {"one": source, "tables": table},
        "acme_d": {"one": source, "tables": table + "\n# the same rows\n"},
        "acme_e": {"one": source, "tables": table.replace("ROW", "other")},
        "acme_f": {"one": source + "\n# another line\n", "tables": table},
    }
    c, d, e, f = (load(name, **modules)["Patient"].version for name, modules in packages.items())
    assert c == d
    assert len({c, e, f}) == 3
