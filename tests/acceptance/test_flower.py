"""Flower tells at a glance what takes care of itself and what needs a person, and shows nothing but references."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import httpx
import pytest

from tests.acceptance.system import System

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

Json = dict[str, Any]

ARGUMENTS = re.compile(r"\['([A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64})'\]")
OURS_ALONE = re.compile(r"Traceback \(most recent call last\):\n( .*\n)+worker\.tasks\.(TriedAgain|NeedsPerson): .*\n")
REFUSED, HELD, UNMAPPABLE, APPLIED, WAITING = (
    f"Patient/flower-{name}" for name in ("refused", "held", "unmappable", "applied", "waiting")
)


def test_flower_shows_success_retry_by_itself_and_failure_only_for_what_needs_a_person(troubled: System) -> None:
    """Applied is SUCCESS; a clinic that is down is RETRY and then SUCCESS; refused, held and unmappable are FAILURE."""
    conflict = {"match": {"method": "POST", "fields": {"external_id": "flower-held"}}, "kind": "status", "status": 409}
    troubled.clinic.misbehave(conflict)
    troubled.medplum.write(
        [
            patient(APPLIED),
            patient(HELD),
            patient(UNMAPPABLE) | {"deceasedBoolean": True},
            patient(REFUSED) | {"address": [{"use": "home", "postalCode": "none"}]},
        ]
    )
    ends = {APPLIED: "SUCCESS", HELD: "FAILURE", UNMAPPABLE: "FAILURE", REFUSED: "FAILURE"}
    troubled.wait_until(
        lambda: all(end in states(troubled)[reference] for reference, end in ends.items()), "Flower shows all ends", 30
    )
    troubled.kill("clinic")
    troubled.medplum.write([patient(WAITING)])
    troubled.wait_until(lambda: "RETRY" in states(troubled)[WAITING], "Flower shows RETRY", 30)
    assert states(troubled)[WAITING] <= {"RETRY", "RECEIVED", "STARTED"}
    troubled.restart("clinic")
    troubled.wait_until(lambda: "SUCCESS" in states(troubled)[WAITING], "Flower shows SUCCESS", 60)
    shown = states(troubled)
    assert not {"FAILURE", "RETRY"} & shown[APPLIED]
    assert {reference for reference, seen in shown.items() if "FAILURE" in seen} == needed_a_person(troubled, shown)
    assert {HELD, UNMAPPABLE, REFUSED} <= needed_a_person(troubled, shown)


def test_flower_shows_references_alone(troubled: System) -> None:
    """Whatever has run so far: arguments are one reference, there is no result, and a traceback has one error, ours."""
    seen = tasks(troubled)
    assert seen
    for task in seen:
        assert ARGUMENTS.fullmatch(task["args"]), task["args"]
        assert task["kwargs"] == "{}"
        assert task["result"] in {None, "None"}
        assert task["traceback"] is None or OURS_ALONE.fullmatch(task["traceback"]), task["traceback"]


def tasks(system: System) -> list[Json]:
    """Ask Flower's API for every sync that it knows of."""
    url = f"{system.urls['flower']}/api/tasks?limit=10000&taskname=worker.tasks.sync"
    told: dict[str, Json] = httpx.get(url, timeout=20, trust_env=False).raise_for_status().json()
    return [task for task in told.values() if task["args"]]


def states(system: System) -> defaultdict[str, set[str]]:
    """Return the states of each reference's tasks."""
    shown: defaultdict[str, set[str]] = defaultdict(set)
    for task in tasks(system):
        found = ARGUMENTS.fullmatch(task["args"])
        assert found is not None, task["args"]
        shown[found[1]].add(task["state"])
    return shown


def needed_a_person(system: System, references: defaultdict[str, set[str]]) -> set[str]:
    """Ask the ledger which of these ever failed or were held."""
    reasons = {"refused", "conflict", "unmappable", "invalid", "identity", "exists"}
    return {
        reference
        for reference in references
        if any(attempt["outcome"] in reasons for attempt in (system.ledger.show(reference) or {})["attempts"])
    }


def patient(reference: str) -> Json:
    name = [{"family": "Flower", "given": ["Ada"]}]
    return {"resourceType": "Patient", "id": reference.partition("/")[2], "name": name, "birthDate": "1980-02-29"}
