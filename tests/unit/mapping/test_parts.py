"""`part_of`: types without records of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.errors import RoutesInvalid, Unmappable
from worker.ledger.values import Phase
from worker.mapping import Context, Declared, load_routes, part_of
from worker.mapping.r4 import Coverage

MODULE = """
from worker.legacy import LegacyApi, Unsupported
from worker.mapping import part_of, route
from worker.mapping.r4 import Coverage, Patient

api = LegacyApi("clinic", base_url="https://clinic.example.com", auth=None, zone="UTC")
people = api.collection(
    "person", keys=("id",), create="POST /people", update="PUT /people/{id}",
    delete="DELETE /people/{id}", find=Unsupported("no look-up"),
)
part_of(PART, lambda part: part.beneficiary)


@route(Patient, to=people)
def person(p, ctx):
    return {"name": "x"}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Declared]]:
    """Load a module with one route and one part."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(part: str) -> Declared:
        name = f"mappings_with_part_{part.lower()}"
        (tmp_path / f"{name}.py").write_text(MODULE.replace("PART", part))
        return load_routes(name)

    yield load
    for name in [name for name in sys.modules if name.startswith("mappings_with_part_")]:
        del sys.modules[name]


def owner_of(reference: str | None, function: Callable[[Coverage], object] = lambda c: c.beneficiary) -> str | None:
    coverage = Coverage.model_validate(
        {
            "resourceType": "Coverage",
            "id": "k1",
            "status": "active",
            "beneficiary": {"reference": reference} if reference else {"display": "Quarksberg"},
            "payor": [{"reference": "Organization/o1"}],
        }
    )
    ctx = Context.of(coverage, zone="UTC", medplum="https://medplum.example.com")
    return part_of(Coverage, function).owned_by(coverage, ctx)  # type: ignore[arg-type]  # the mistakes are meant


def test_a_part_is_loaded_beside_the_routes(load: Callable[[str], Declared]) -> None:
    """A part needs no name, is no route, and is registered as live."""
    declared = load("Coverage")
    assert (list(declared), list(declared.parts)) == (["Patient"], ["Coverage"])
    assert declared.types["Coverage"][0] is Phase.LIVE


def test_a_type_is_no_part_and_a_route_at_once(load: Callable[[str], Declared]) -> None:
    """Who has records of its own is refused as a part, by file and line."""
    with pytest.raises(RoutesInvalid, match=r"mappings_with_part_patient.py:\d+: Patient has a route"):
        load("Patient")


@pytest.mark.parametrize(
    "text", ["Patient/p1", "Patient/p1/_history/3", "https://medplum.example.com/fhir/R4/Patient/p1"]
)
def test_the_owner_is_named_by_type_and_id(text: str) -> None:
    """However a reference is written, it names one resource of our Medplum."""
    assert owner_of(text) == "Patient/p1"


def test_a_part_of_nobody_has_no_owner() -> None:
    """A part whose reference is missing belongs to nobody."""
    assert owner_of("Patient/p1", lambda c: None) is None


@pytest.mark.parametrize("text", [None, "#inside", "https://elsewhere.example.com/fhir/R4/Patient/p1"])
def test_an_owner_that_is_none_of_ours_is_refused(text: str | None) -> None:
    """A logical or contained reference, or one of another server, names no resource of ours."""
    with pytest.raises(Unmappable):
        owner_of(text)


def test_a_function_that_fails_is_refused_without_values() -> None:
    """What the function raises is told by type and place alone."""

    def fails(coverage: Coverage) -> object:
        raise KeyError("Quarksberg")

    with pytest.raises(Unmappable) as refused:
        owner_of("Patient/p1", fails)
    assert "KeyError" in str(refused.value)
    assert "Quarksberg" not in str(refused.value)
    assert refused.value.__context__ is None
