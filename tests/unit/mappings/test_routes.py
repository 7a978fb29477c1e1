"""The example's routes as a whole: what loads them, what they need, and every recorded notification of their types."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from worker.errors import RoutesInvalid
from worker.ledger.values import Operation
from worker.mapping import Absent, Context, Mapped, Phase, apply, load_routes
from worker.medplum.resource import model

NOTIFICATIONS = Path(__file__).parents[2] / "fixtures" / "notifications"
RECORDED = sorted(path for path in NOTIFICATIONS.glob("*.json") if path.name != "index.json")
NO_BLOOD_PRESSURE = Absent("of all observations the clinic keeps blood pressures alone")
LEFT_OUT = {
    "020-encounter-create": Absent("a planned visit is an appointment"),
    "030-observation-create-decimals": NO_BLOOD_PRESSURE,
    "048-observation-update-by-system-author": NO_BLOOD_PRESSURE,
}


def test_seven_types_have_a_live_route() -> None:
    """All that the clinic keeps is written; what it cannot do is said in words, and that is the delete of a visit."""
    routes = load_routes("worker.mappings")
    assert {name: (route.to.name, route.phase) for name, route in routes.items()} == {
        "Appointment": ("appointment", Phase.LIVE),
        "Condition": ("problem", Phase.LIVE),
        "Encounter": ("visit", Phase.LIVE),
        "MedicationRequest": ("prescription", Phase.LIVE),
        "Observation": ("vital", Phase.LIVE),
        "Patient": ("patient", Phase.LIVE),
        "Practitioner": ("provider", Phase.LIVE),
    }
    cannot = [(name, each) for name, route in routes.items() for each in Operation if not route.to.supports(each)]
    assert cannot == [("Encounter", Operation.DELETE)]


@pytest.mark.parametrize("missing", ["URL", "KEY"])
def test_a_missing_site_setting_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Whoever loads the routes without the clinic's address or key is told the variable."""
    monkeypatch.delenv(f"REVERSE_SYNC_SITE_CLINIC_{missing}")
    for name in [name for name in sys.modules if name.startswith("worker.mappings")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RoutesInvalid, match=rf"clinic\.py:\d+: REVERSE_SYNC_SITE_CLINIC_{missing} is missing$"):
        load_routes("worker.mappings")


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_every_recorded_resource_with_a_route_is_mapped(path: Path) -> None:
    """What Medplum really sent becomes records of its route's collection, or is left out by a rule."""
    body = base64.b64decode(json.loads(path.read_text(encoding="utf-8"))["body_base64"])
    sent = json.loads(body or b"{}")
    routes = load_routes("worker.mappings")
    if sent.get("resourceType") not in routes:
        return
    resource, route = model(body), routes[sent["resourceType"]]
    ctx = Context.of(resource, zone=route.to.api.zoneinfo, medplum="https://api.medplum.com")
    result = apply(route, resource, ctx)
    if path.stem in LEFT_OUT:
        assert result == LEFT_OUT[path.stem]
        return
    assert isinstance(result, Mapped)
    assert {record.collection for record in result.records} == {route.to}
