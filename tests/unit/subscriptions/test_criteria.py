"""Criteria that Medplum accepts and never fires are refused with the reason, in a route too."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import RoutesInvalid
from worker.mapping import load_routes
from worker.mapping.criteria import never_fires


@pytest.mark.parametrize(
    "criteria",
    [
        "Patient",
        "Patient?active=true",
        "Observation?status=final",
        "Patient?_tag:not=test",
        "Condition?subject=Patient/1",
    ],
)
def test_what_fires_is_let_through(criteria: str) -> None:
    """A type alone, and what is known to match in memory."""
    assert never_fires(criteria) is None


@pytest.mark.parametrize(
    ("criteria", "why"),
    [
        ("", "not a resource type"),
        ("Patienten", "not a resource type"),
        ("HumanName", "not a resource type"),
        ("Patient?_author=Practitioner/1", "never matches"),
        ("Observation?subject.name=Jane", "chained"),
        ("Observation?subject:Patient.name=Jane", "chained"),
        ("Patient?_has:Observation:patient:code=1", "chained"),
        ("Patient?favourite=red", "not known to match"),
        ("Patient?status=final", "not known to match"),  # a Patient has no status
        ("Patient?active:exact=true", "modifier"),
        ("Patient?active=", "no value"),
    ],
)
def test_what_never_fires_is_refused(criteria: str, why: str) -> None:
    """Each with its reason."""
    told = never_fires(criteria)
    assert told is not None
    assert why in told


ROUTE = """
from pydantic import SecretStr
from worker.legacy import ApiKey, LegacyApi, Unsupported
from worker.mapping import Skip, route
from worker.mapping.r4 import Patient

no = Unsupported("nobody is there")
api = LegacyApi("nowhere", base_url="http://127.0.0.1:9", auth=ApiKey("X", SecretStr("k")), zone="UTC")
persons = api.collection("p", keys=("id",), create="POST /p", update="PUT /p/{{id}}", delete=no, find=no)


@route(Patient, to=persons, criteria="{criteria}")
def patient(p, ctx):
    return Skip("nobody")
"""


@pytest.mark.parametrize(
    ("criteria", "why"),
    [
        ("Patient?_author=x", "never matches"),
        ("Observation?status=final", "not one of Patient"),
        ("Patient?active=true", ""),
    ],
)
def test_a_route_says_so_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criteria: str, why: str
) -> None:
    """File, line, criteria and reason; a good one is kept."""
    name = f"routed_{abs(hash(criteria))}"
    (tmp_path / f"{name}.py").write_text(ROUTE.format(criteria=criteria))
    monkeypatch.syspath_prepend(tmp_path)
    if not why:
        assert load_routes(name)["Patient"].criteria == criteria
        return
    with pytest.raises(RoutesInvalid, match=why) as caught:
        load_routes(name)
    assert f"{name}.py:" in str(caught.value)
