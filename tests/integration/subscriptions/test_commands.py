"""`reverse-sync subscriptions …` as a person types it: exit codes, words, and what they never show."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from tests.integration.receiver_process import KEY
from tests.integration.subscriptions.conftest import ROUTES, TOKEN, Clinic
from worker.cli import commands
from worker.errors import LedgerError, SettingsInvalid

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _environment(alone: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "DATABASE_URL": alone.url,
        "PAYLOAD_KEY": KEY,
        "MEDPLUM_BASE_URL": alone.medplum_url,
        "ADMIN_CLIENT_ID": "admin",
        "ADMIN_CLIENT_SECRET": "admin-secret",
        "ENDPOINT": alone.endpoint,
        "WEBHOOK_TOKEN": TOKEN,
        "ROUTES": ROUTES,
        "OPERATOR": "the tests",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"REVERSE_SYNC_{name}", value)


def type_(*words: str, code: int = 0) -> str:
    """Type a command, and give what it says."""
    result: Result = CliRunner().invoke(commands, ["subscriptions", *words])
    assert result.exit_code == code, result.output
    return result.output


def test_from_nothing_to_nothing(alone: Clinic) -> None:
    """Plan, apply, plan, status, rotate, remove: each says what it did, its code says whether all is well."""
    assert "none yet" in type_("status")
    planned = type_("plan", code=1)
    assert planned.splitlines() == [f"{name}  would be made" for name in ("Coverage", "Observation", "Patient")]
    assert alone.stored("Subscription") == []
    assert type_("apply").splitlines() == [f"{name}  made" for name in ("Coverage", "Observation", "Patient")]
    assert type_("plan").count("is as it should be") == 3
    told = type_("rotate-secret")
    assert "new secrets for Coverage, Observation, Patient" in told
    status = type_("status")
    assert f"Patient  {alone.found().reference}  ok since" in status
    assert status.count("  secret ") == 6
    shown = told + status + type_("status", "--json")
    assert not [one for one in alone.ledger.subscription_secrets() if one.value.get_secret_value() in shown]
    assert type_("remove", "Patient", "--yes").count("deleted") == 1
    assert type_("remove", "Observation", "Coverage", "--yes").count("deleted") == 2
    assert alone.ledger.subscription_secrets() == ()


def test_trouble_shows_in_the_code(alone: Clinic) -> None:
    """For programs too: the state, the reason and the moments."""
    type_("apply")
    alone.by_hand(status="off")
    alone.watch(rearms=False).turn()
    assert "its status is off" in type_("status", code=1)
    rows = {row["type"]: row for row in json.loads(type_("status", "--json", code=1))}
    assert (rows["Patient"]["state"], rows["Observation"]["state"]) == ("off", "ok")
    assert "    status off → active" in type_("plan", code=1)
    assert "Patient: from " in type_("apply")
    type_("status")


def test_what_cannot_be_is_said_before_anything_is_done(alone: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types and --extra together, a key that is missing, an endpoint that is none, a header that would be cut."""
    asked = CliRunner().invoke(commands, ["subscriptions", "remove", "Patient", "--extra"])
    assert isinstance(asked.exception, LedgerError)
    for name, value in (("PAYLOAD_KEY", ""), ("ENDPOINT", "sync.example.org"), ("WEBHOOK_TOKEN", "Bearer: one")):
        with monkeypatch.context() as patch:
            patch.setenv(f"REVERSE_SYNC_{name}", value)
            refused = CliRunner().invoke(commands, ["subscriptions", "apply"])
            assert isinstance(refused.exception, SettingsInvalid)
            assert f"REVERSE_SYNC_{name}" in str(refused.exception)
    assert alone.stored("Subscription") == []
