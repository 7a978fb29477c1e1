"""`reverse-sync check --legacy` and `failed`: what a person is told of a legacy API that cannot be entered."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.cli import main
from worker.ledger.migrate import upgrade

Start = Callable[[Behaviour], Vendor]
KEY = f"k1:{base64.b64encode(b'k' * 32).decode()}"
ROUTES = '''
"""One route to an API whose refresh token is good once."""

from worker.legacy import LegacyApi, OAuth2, Unsupported
from worker.mapping import Context, Result, route
from worker.mapping.r4 import Patient

FORM = {"grant_type": "refresh_token", "refresh_token": "canary-r0"}
api = LegacyApi("vendor", base_url="URL/api", auth=OAuth2("URL/token", FORM), zone="UTC", probe="GET /ping")
none = Unsupported("not in this test")
people = api.collection("person", keys=("id",), create=none, update=none, delete=none, find=none)


@route(Patient, to=people)
def person(p: Patient, ctx: Context) -> Result:
    return {"sex": p.gender}
'''


class Told:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        settings = {
            "REVERSE_SYNC_ROUTES": "vendor_routes",
            "REVERSE_SYNC_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
            "REVERSE_SYNC_PAYLOAD_KEY": KEY,
            "REVERSE_SYNC_MEDPLUM_BASE_URL": "http://127.0.0.1:9/",
            "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "us",
            "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "s",
            "REVERSE_SYNC_BROKER_URL": "redis://127.0.0.1:9/0",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        return int(end.value.code or 0), self._capsys.readouterr().out


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    upgrade(f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vendor_routes", raising=False)
    return Told(tmp_path, monkeypatch, capsys)


def routes(server: Vendor, tmp_path: Path) -> None:
    (tmp_path / "vendor_routes.py").write_text(ROUTES.replace("URL", server.url), encoding="utf-8")


def test_check_sends_the_harmless_request_and_keeps_the_token(vendor: Start, told: Told, tmp_path: Path) -> None:
    """One token for the check and the workers: the second check needs no other, and uses nothing up."""
    server = vendor(lambda asked: Says(200, {"access_token": "t", "refresh_token": "r1", "expires_in": 600}))
    routes(server, tmp_path)
    for _ in range(2):
        code, out = told("check", "--legacy")
        assert (code, out) == (0, "ok   the legacy API vendor answers\n")
    assert server.lines == ["POST /token", "GET /api/ping", "GET /api/ping"]


def test_what_needs_a_person_is_told_by_check_and_failed(vendor: Start, told: Told, tmp_path: Path) -> None:
    """A refused token stands among what failed, with what to do, and without the token."""

    def refuses(asked: Asked) -> Says:
        return Says(400, {"error": "invalid_grant", "error_description": "canary-r0 is used up"})

    routes(vendor(refuses), tmp_path)
    code, out = told("check", "--legacy")
    assert code == 1
    assert "NOT  the legacy API vendor answers" in out
    assert "/token answered 400 invalid_grant" in out
    code, listed = told("failed")
    assert code == 0
    assert "legacy:vendor  failed: token" in listed
    assert "mend its credentials" in listed
    (row,) = json.loads(told("failed", "--json")[1])
    assert (row["reference"], row["reason"]) == ("legacy:vendor", "token")
    assert "canary" not in out + listed
