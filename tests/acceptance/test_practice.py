"""The second legacy API, by the declaration of `practice_mappings` alone: what holds for the clinic holds for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest

from deploy.demo.systems import Medplum
from tests.acceptance.system import System
from tests.acceptance.test_kills import survives_kills
from tests.acceptance.traffic import Traffic

pytestmark = [pytest.mark.processes, pytest.mark.timeout(200)]

SETTLED_WITHIN_S = 60.0
FIRST = datetime(2026, 11, 1, 4, tzinfo=UTC)  # the night in which an hour comes twice


class Bookings(Traffic):
    """A front end that books, changes and cancels appointments besides."""

    def __init__(self, medplum: Medplum, seed: int) -> None:
        super().__init__(medplum, seed)
        self._slots = count()

    def begin(self) -> None:
        super().begin()
        self._write(self._appointment())

    def _steps(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            *super()._steps(),
            (4, lambda: self._write(self._appointment())),
            (4, lambda: self._change("Appointment")),
            (2, lambda: self._delete("Appointment")),
        ]

    def _appointment(self) -> dict[str, Any]:
        who = [self._random.choice(self._of(resource_type)) for resource_type in ("Patient", "Practitioner")]
        self._referred.update(who)
        start = FIRST + next(self._slots) * timedelta(minutes=30)
        return self._new("Appointment") | {
            "status": "booked",
            "start": start.isoformat(),
            "end": (start + timedelta(minutes=20)).isoformat(),
            "participant": [{"actor": {"reference": reference}, "status": "accepted"} for reference in who],
        }

    def _stamped(self, resource_type: str) -> dict[str, Any]:
        stamped = super()._stamped(resource_type)
        return {"description": f"Visit {stamped['name'][0]['given'][1]}"} if resource_type == "Appointment" else stamped


def test_whoever_is_killed_every_record_is_what_medplum_holds_once_and_never_older(practice: System) -> None:
    """SIGKILL for the broker, a worker and the practice in turn, while appointments are replaced and tokens end."""
    survives_kills(practice, Bookings(practice.medplum, seed=1))
    assert states_of_refresh_tokens(practice) >= {"used", "live"}


def test_an_update_keeps_what_the_front_desk_wrote_and_clears_what_medplum_no_longer_says(practice: System) -> None:
    """The practice empties what is not sent: its own column is sent along as it was, ours as it is now."""
    made = patient("kept") | {"telecom": [{"system": "email", "value": "jane@example.com"}]}
    practice.medplum.write([made])
    practice.settle(SETTLED_WITHIN_S)
    practice.clinic.edit(record_of(practice, "kept")["record"], remarks="Comes late", sms_ok="1")
    practice.medplum.write([patient("kept", deceasedDateTime="2026-11-01T06:30:00Z")])
    practice.settle(SETTLED_WITHIN_S)
    held = record_of(practice, "kept")["data"]
    assert (held["remarks"], held["sms_ok"], held["email"]) == ("Comes late", "1", "")
    assert held["died_at"] == "2026-11-01 01:30:00"


@pytest.mark.parametrize("end", ["expire", "revoke"])
def test_tokens_that_end_in_the_middle_cost_nobody_a_write(practice: System, end: str) -> None:
    """Access tokens end, or every token does: one worker renews for all, by refresh token or by the password."""
    practice.settle(SETTLED_WITHIN_S)
    httpx.post(f"{practice.clinic.url}/sandbox/tokens", json={"end": end}, trust_env=False).raise_for_status()
    asked = len(token_requests(practice))
    names = [f"{end}-{number}" for number in range(12)]
    practice.medplum.write([patient(name) for name in names])
    practice.settle(SETTLED_WITHIN_S)
    practice.assert_accounted()
    held = [record["external_id"] for record in practice.clinic.records().values()]
    assert [held.count(name) for name in names] == [1] * len(names)
    grants = [line["body"]["grant_type"] for line in token_requests(practice)[asked:]]
    assert grants[0] == "refresh_token"
    assert grants.count("password") == (1 if end == "revoke" else 0)


def patient(name: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "name": [{"family": "Doe", "given": ["Jane"]}], **more}


def record_of(system: System, external_id: str) -> dict[str, Any]:
    [record] = [each for each in system.clinic.records().values() if each["external_id"] == external_id]
    return record


def token_requests(system: System) -> list[dict[str, Any]]:
    return [line for line in system.clinic.journal() if line["path"] == "/oauth/token"]


def states_of_refresh_tokens(system: System) -> set[str]:
    lines = httpx.get(f"{system.clinic.url}/sandbox/tokens", trust_env=False).raise_for_status().text.splitlines()
    return {line["state"] for line in map(json.loads, lines) if line["use"] == "refresh"}
