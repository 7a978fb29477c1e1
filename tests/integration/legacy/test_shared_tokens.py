"""One token for all workers, through a real ledger: who asks, who waits, and what a crash leaves behind."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.contract.ledger.conftest import migrated_file  # noqa: F401  fixture
from tests.contract.ledger.story import Clock
from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.deadline import deadline
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.legacy import Answered, Credential, LegacyApi, OAuth2, Outcome
from worker.legacy.token import LEASE_S, LEAST_S, REFUSED_REST_S

Start = Callable[[Behaviour], Vendor]
KEYS = (("k1", SecretStr(base64.b64encode(b"k" * 32).decode())),)
PASSWORD: dict[str, Credential] = {"grant_type": "password", "username": "sync", "password": SecretStr("s3cret")}
REFRESH: dict[str, Credential] = {"grant_type": "refresh_token", "refresh_token": SecretStr("r0"), "client_id": "us"}


class Killed(BaseException):
    """The process dies here."""


class Rotating:
    """Gives tokens by password and by refresh tokens, each good once; a used one closes the whole family."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.given = 0
        self.valid, self.refresh = "", "r0"
        self.password_opens = True
        self.used: list[str] = []

    def __call__(self, asked: Asked) -> Says:
        if asked.path != "/token":
            return Says(200 if asked.headers.get("authorization") == f"Bearer {self.valid}" else 401, {})
        with self.lock:
            return self.token(asked.form())

    def token(self, form: dict[str, str]) -> Says:
        if form["grant_type"] == "refresh_token":
            self.used.append(form["refresh_token"])
            if form["refresh_token"] != self.refresh:
                self.refresh = "none"
                return Says(400, {"error": "invalid_grant"})
        elif not self.password_opens:
            return Says(401, {"error": "invalid_grant"})
        self.given += 1
        self.valid, self.refresh = f"t{self.given}", f"r{self.given}"
        return Says(200, {"access_token": self.valid, "refresh_token": self.refresh, "expires_in": 3600})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(migrated_file: Path, tmp_path: Path, clock: Clock) -> Iterator[Ledger]:  # noqa: F811
    shutil.copy(migrated_file, tmp_path / "ledger.db")
    with closing(Ledger.open(f"sqlite:///{tmp_path}/ledger.db", keys=KEYS, clock=clock)) as ledger:
        yield ledger


@pytest.fixture
def workers(ledger: Ledger) -> Iterator[Callable[..., LegacyApi]]:
    """Make the API of one more worker process, bound to the ledger."""
    made: list[LegacyApi] = []

    def worker(server: Vendor, form: dict[str, Credential], store: Any = None) -> LegacyApi:
        api = server.api(auth=OAuth2(f"{server.url}/token", form), probe="GET /ping")
        api.bind(store or ledger)
        made.append(api)
        return api

    yield worker
    for api in made:
        api.close()


def ping(api: LegacyApi) -> Answered:
    answered = api.ping()
    assert answered is not None
    return answered


def test_one_worker_asks_for_all(vendor: Start, workers: Callable[..., LegacyApi]) -> None:
    """Of eight workers that come at once one asks, and the others use what it kept; so it is after a 401."""
    behaviour = Rotating()
    server = vendor(behaviour)
    apis = [workers(server, PASSWORD) for _ in range(8)]
    for turn in (1, 2):
        with ThreadPoolExecutor(8) as pool:
            assert {answered.outcome for answered in pool.map(ping, apis)} == {Outcome.DONE}
        assert behaviour.given == turn
        behaviour.valid = "another"
    assert behaviour.used == ["r1"]


def test_a_worker_that_starts_uses_what_is_kept(vendor: Start, workers: Callable[..., LegacyApi]) -> None:
    """A restart costs no token."""
    behaviour = Rotating()
    server = vendor(behaviour)
    ping(workers(server, PASSWORD))
    assert ping(workers(server, PASSWORD)).outcome is Outcome.DONE
    assert behaviour.given == 1


def test_a_refresh_token_of_the_settings_is_used_once(vendor: Start, workers: Callable[..., LegacyApi]) -> None:
    """The vendor's page gave one refresh token; from then on its successors serve, over restarts."""
    behaviour = Rotating()
    server = vendor(behaviour)
    for _ in range(3):
        assert ping(workers(server, REFRESH)).outcome is Outcome.DONE
        behaviour.valid = "another"
    assert behaviour.used == ["r0", "r1", "r2"]


def test_the_next_refresh_token_is_kept_before_the_token_is_used(
    vendor: Start, workers: Callable[..., LegacyApi], ledger: Ledger
) -> None:
    """When the first request with a new token comes in, its refresh token is in the ledger, sealed."""
    behaviour, kept = Rotating(), []

    def watched(asked: Asked) -> Says:
        if asked.path != "/token":
            found = ledger.token("vendor")
            kept.append(found.content["refresh"] if found else None)
        return behaviour(asked)

    ping(workers(vendor(watched), REFRESH))
    assert kept == ["r1"]


class Dying:
    """A ledger whose process dies when it should keep a token."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def keep_token(self, *_: object, **__: object) -> bool:
        raise Killed


def test_a_crash_between_use_and_keeping_needs_a_person(
    vendor: Start, workers: Callable[..., LegacyApi], ledger: Ledger, clock: Clock
) -> None:
    """The successor is lost: nothing is sent, the check and the failed list say why, and other credentials mend it."""
    behaviour = Rotating()
    server = vendor(behaviour)
    with pytest.raises(Killed):
        ping(workers(server, REFRESH, Dying(ledger)))
    clock.forward(LEASE_S + 1)
    answered = ping(workers(server, REFRESH))
    assert answered.outcome is Outcome.NOT_DONE
    assert "/token answered 400 invalid_grant; an earlier renewal had no end" in answered.detail
    (row,) = ledger.failed_tokens()
    assert "get a new one from the vendor" in row["detail"]
    clock.forward(REFUSED_REST_S + 1)
    assert "an earlier renewal had no end" in ping(workers(server, REFRESH)).detail  # nor is it forgotten
    behaviour.refresh = "r9"
    assert ping(workers(server, REFRESH | {"refresh_token": SecretStr("r9")})).outcome is Outcome.DONE
    assert ledger.failed_tokens() == []


def test_a_crash_with_a_password_mends_itself(
    vendor: Start, workers: Callable[..., LegacyApi], ledger: Ledger, clock: Clock
) -> None:
    """Where the form can open again, a lost refresh token costs one refused request."""
    behaviour = Rotating()
    server = vendor(behaviour)
    ping(workers(server, PASSWORD))
    behaviour.valid = "another"
    with pytest.raises(Killed):
        ping(workers(server, PASSWORD, Dying(ledger)))
    clock.forward(LEASE_S + 1)
    behaviour.valid = "yet another"
    assert ping(workers(server, PASSWORD)).outcome is Outcome.DONE
    assert behaviour.used == ["r1", "r1"]


class Away(Dying):
    """A ledger that is away for a moment, just when it should keep a token."""

    fails = 1

    def keep_token(self, *arguments: Any, **named: Any) -> bool:
        if self.fails:
            self.fails -= 1
            raise LedgerUnavailable("the ledger's database: away")
        return self._ledger.keep_token(*arguments, **named)


def test_an_answer_that_is_lost_is_told_as_such(
    vendor: Start, workers: Callable[..., LegacyApi], ledger: Ledger, clock: Clock
) -> None:
    """The vendor has used the refresh token up and its answer never came: as after a crash, a person reads why."""
    behaviour, torn = Rotating(), [True]

    def tears(asked: Asked) -> Says:
        said = behaviour(asked)
        return Says(502, b"bad gateway") if asked.path == "/token" and torn and torn.pop() else said

    server = vendor(tears)
    assert "/token answered 502" in ping(workers(server, REFRESH)).detail
    assert ledger.failed_tokens() == []
    clock.forward(2)
    assert "an earlier renewal had no end" in ping(workers(server, REFRESH)).detail
    assert len(ledger.failed_tokens()) == 1


def test_a_refresh_token_is_not_used_in_the_last_moment(vendor: Start, workers: Callable[..., LegacyApi]) -> None:
    """With the call's deadline at hand its answer would come too late: the next call asks."""
    behaviour = Rotating()
    server = vendor(behaviour)
    api = workers(server, REFRESH)
    with deadline(LEAST_S - 0.5):
        answered = ping(api)
    assert answered.outcome is Outcome.NOT_DONE
    assert "too little time" in answered.detail
    assert server.asked == []
    assert ping(api).outcome is Outcome.DONE


def test_a_ledger_that_is_away_costs_no_refresh_token(
    vendor: Start, workers: Callable[..., LegacyApi], ledger: Ledger
) -> None:
    """Nothing is sent with a token that could not be kept; it is kept with the next try, and used then."""
    behaviour = Rotating()
    server = vendor(behaviour)
    api = workers(server, REFRESH, Away(ledger))
    answered = ping(api)
    assert answered.outcome is Outcome.NOT_DONE
    assert server.lines == ["POST /token"]
    assert ping(api).outcome is Outcome.DONE
    assert behaviour.used == ["r0"]


def test_a_refusal_is_not_tried_again_by_everybody(
    vendor: Start, workers: Callable[..., LegacyApi], clock: Clock
) -> None:
    """A wrong password locks accounts: after one refusal all workers rest, and then one tries."""
    behaviour = Rotating()
    behaviour.password_opens = False
    server = vendor(behaviour)
    apis = [workers(server, PASSWORD) for _ in range(4)]
    for _ in range(2):
        assert {ping(api).outcome for api in apis} == {Outcome.NOT_DONE}
    assert len(server.asked) == 1
    clock.forward(REFUSED_REST_S + 1)
    behaviour.password_opens = True
    assert {ping(api).outcome for api in apis} == {Outcome.DONE}
    assert behaviour.given == 1


def test_tokens_of_other_credentials_are_left_alone(vendor: Start, workers: Callable[..., LegacyApi]) -> None:
    """Another account never works with a token, or by a refresh token, of the one before."""
    behaviour = Rotating()
    server = vendor(behaviour)
    ping(workers(server, PASSWORD))
    assert ping(workers(server, PASSWORD | {"username": "other"})).outcome is Outcome.DONE
    assert behaviour.given == 2
    assert behaviour.used == []


def test_a_refresh_token_of_the_settings_is_not_used_without_a_ledger(vendor: Start) -> None:
    """A preview must not use up what the workers need."""
    server = vendor(Rotating())
    api = server.api(auth=OAuth2(f"{server.url}/token", REFRESH), probe="GET /ping")
    answered = ping(api)
    api.close()
    assert answered.outcome is Outcome.NOT_DONE
    assert "REVERSE_SYNC_PAYLOAD_KEY" in answered.detail
    assert server.asked == []
