"""Subscriptions as code in a running system: applied, used, rotated, switched off and on again, examined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.acceptance.system import System, started
from worker.ledger.tables import windows

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ADMIN = {"ADMIN_CLIENT_ID": "admin", "ADMIN_CLIENT_SECRET": "admin-secret"}
SETTLED_S = 40.0


def patient(number: int, family: str) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": f"s{number}",
        "name": [{"family": family, "given": ["Jane"]}],
        "gender": "female",
        "birthDate": f"1985-02-{number:02d}",
    }


def recorded(system: System) -> list[object]:
    """List the patients that the clinic has records of."""
    return sorted(each["external_id"] for each in system.clinic.records().values())


def subscriptions(system: System) -> list[dict[str, Any]]:
    """List the Subscriptions that Medplum has."""
    return [line["resource"] for line in system.medplum.truth("Subscription") if not line["deleted"]]


def test_applied_rotated_switched_off_and_examined(tmp_path: Path) -> None:
    """Each routed type comes through what `apply` made; no process but the terminal has the administrator's secret.

    A rotation under way refuses nothing, one that was switched off is on again by itself with a window for its time,
    and the doctor goes the whole way with workers that settle his test resource.
    """
    with started(tmp_path, settings={"WATCH_SECONDS": "1"}) as system:
        by_hand = [f"Subscription/{one['id']}" for one in subscriptions(system)]
        admin = {**ADMIN, "ENDPOINT": f"{system.urls['web']}/medplum"}
        desk = replace(
            system, settings={**system.settings, **{f"REVERSE_SYNC_{name}": value for name, value in admin.items()}}
        )
        planned = desk.cli("subscriptions", "plan")
        assert all(f"{name}  would be made" in planned for name in (*system.legacy.types, "MedicationRequest")), planned
        assert planned.count("not ours") == len(by_hand), planned
        desk.cli("subscriptions", "apply")
        system.medplum.write([], by_hand)
        assert "is as it should be" in desk.cli("subscriptions", "plan")

        system.medplum.write([patient(1, "Applied")])
        system.settle(SETTLED_S)
        before = {one["id"]: one["extension"] for one in subscriptions(system)}
        rotated = desk.cli("subscriptions", "rotate-secret", "Patient")
        assert "new secrets for Patient" in rotated, rotated
        system.medplum.write([patient(2, "Rotated")])
        system.settle(SETTLED_S)
        assert recorded(system) == ["s1", "s2"]
        changed = [one for one in subscriptions(system) if one["extension"] != before[one["id"]]]
        assert [one["criteria"] for one in changed] == ["Patient"]

        examined = desk.cli("check", "--end-to-end", "--type", "Patient")
        assert "NOT" not in examined, examined
        assert "is deleted, with its history" in examined
        assert recorded(system) == ["s1", "s2"]

        checked = desk.cli("check")
        assert "NOT" not in checked, checked
        for right in ("search Subscription", "search AuditEvent", "write Subscription"):
            assert f"ok   the client may {right}" in checked

        off = next(one for one in subscriptions(system) if one["criteria"] == "Patient")
        system.medplum.write([{**off, "status": "off"}])
        system.wait_until(lambda: _doubted(system) == [("Patient", "subscription was off")], "it is on again", 30)
        assert next(one for one in subscriptions(system) if one["id"] == off["id"])["status"] == "active"
        system.medplum.write([patient(3, "Rearmed")])
        system.settle(SETTLED_S)
        assert recorded(system) == ["s1", "s2", "s3"]
        assert "Patient  Subscription/" in desk.cli("subscriptions", "status")
        assert "switched on again" in system.processes.said("worker") + system.processes.said("worker2")
        system.medplum.write([], [f"Subscription/{off['id']}"])
        assert "Subscription missing: Medplum has no" in desk.cli("check", "--end-to-end", "--type", "Patient")
        system.assert_accounted()
        secrets = [each["valueString"] for one in subscriptions(system) for each in one["extension"][:1]]
        told = planned + rotated + examined + "".join(system.processes.said(name) for name in ("web", "worker"))
        assert not [secret for secret in secrets if secret in told]


def _doubted(system: System) -> list[tuple[str, str]]:
    columns = (windows.c.resource_type, windows.c.reason)
    in_doubt = select(*columns).where(windows.c.reason.is_not(None))
    rows = system.ledger.database.read(lambda tx: tx.execute(in_doubt).all())
    return [(row.resource_type, row.reason) for row in rows]
