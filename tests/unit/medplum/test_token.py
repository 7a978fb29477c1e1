"""`worker.medplum.token`: one fetch for all threads, early renewal, and patience with the endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import SecretStr

from worker.deadline import CallFailed, deadline
from worker.errors import MedplumRefused, MedplumUnavailable
from worker.medplum.token import FETCHES_A_MINUTE, Tokens

SECRET = "Canary-secret"


class Clock:
    """A clock that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Endpoint:
    """Medplum's token endpoint: counts, and answers as a test says."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: Callable[[], httpx.Response] = self.token
        self.clock = Clock()
        http = httpx.Client(base_url="http://medplum.example/", transport=httpx.MockTransport(self.handle))
        self.tokens = Tokens(http, "client", SecretStr(SECRET), self.clock)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        assert request.url.path == "/oauth2/token"
        assert request.content.decode() == f"grant_type=client_credentials&client_id=client&client_secret={SECRET}"
        return self.answer()

    def token(self) -> httpx.Response:
        return httpx.Response(200, json={"token_type": "Bearer", "access_token": f"t{self.calls}", "expires_in": 3600})


@pytest.fixture
def endpoint() -> Endpoint:
    """Return an endpoint that hands out t1, t2, …"""
    return Endpoint()


def test_one_fetch(endpoint: Endpoint) -> None:
    """Threads that need the first token together fetch it once."""
    asked, go = threading.Event(), threading.Event()

    def slowly() -> httpx.Response:
        asked.set()
        assert go.wait(10)
        return endpoint.token()

    endpoint.answer = slowly
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(endpoint.tokens.current) for _ in range(8)]
        assert asked.wait(10)
        go.set()
        assert {each.result(10) for each in waiting} == {"t1"}
    assert endpoint.calls == 1


def test_waiting_has_a_deadline(endpoint: Endpoint) -> None:
    """Who waits for another thread's fetch waits until its own deadline."""
    asked, go = threading.Event(), threading.Event()

    def slowly() -> httpx.Response:
        asked.set()
        assert go.wait(10)
        return endpoint.token()

    endpoint.answer = slowly
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(endpoint.tokens.current)
        assert asked.wait(10)
        with deadline(0.1), pytest.raises(MedplumUnavailable):
            endpoint.tokens.current()
        go.set()
        assert first.result(10) == "t1"


def test_early_renewal(endpoint: Endpoint) -> None:
    """A token is renewed before its end; while that fails, the old one serves."""
    assert endpoint.tokens.current() == "t1"
    endpoint.clock.now += 0.8 * 3600
    endpoint.answer = lambda: httpx.Response(503)
    assert endpoint.tokens.current() == "t1"
    assert endpoint.calls == 2
    endpoint.answer = endpoint.token
    endpoint.clock.now += 2
    assert endpoint.tokens.current() == "t3"


def test_end(endpoint: Endpoint) -> None:
    """A token near its end is not used any more."""
    assert endpoint.tokens.current() == "t1"
    endpoint.clock.now += 0.95 * 3600
    endpoint.answer = lambda: httpx.Response(503)
    with pytest.raises(MedplumUnavailable):
        endpoint.tokens.current()


def test_renewed(endpoint: Endpoint) -> None:
    """Threads whose token was refused get one new token between them."""
    assert endpoint.tokens.current() == "t1"
    assert [endpoint.tokens.renewed("t1") for _ in range(3)] == ["t2"] * 3
    assert endpoint.calls == 2


def test_failure_is_shared(endpoint: Endpoint) -> None:
    """A fetch that failed a moment ago is not tried again by each thread; each gets an exception of its own."""
    endpoint.answer = lambda: httpx.Response(503, headers={"Retry-After": "9"})
    raised = []
    for _ in range(3):
        with pytest.raises(MedplumUnavailable) as failure:
            endpoint.tokens.current()
        raised.append(failure.value)
    assert len({id(error) for error in raised}) == 3
    assert {error.retry_after_s for error in raised} == {9.0}
    assert endpoint.calls == 1
    endpoint.clock.now += 2
    endpoint.answer = endpoint.token
    assert endpoint.tokens.current() == "t2"


def test_rate(endpoint: Endpoint) -> None:
    """However often tokens are refused, the endpoint is asked so often in a minute and no more."""
    token = endpoint.tokens.current()
    for _ in range(FETCHES_A_MINUTE - 1):
        token = endpoint.tokens.renewed(token)
    with pytest.raises(MedplumUnavailable) as refusal:
        endpoint.tokens.renewed(token)
    assert refusal.value.retry_after_s == 60
    endpoint.clock.now += 61
    assert endpoint.tokens.renewed(token) == f"t{FETCHES_A_MINUTE + 1}"


@pytest.mark.parametrize("status", [400, 401, 403])
def test_wrong_client(endpoint: Endpoint, status: int) -> None:
    """A refused client is told which settings to mend, and never the secret."""
    endpoint.answer = lambda: httpx.Response(status, json={"error": SECRET})
    with pytest.raises(MedplumRefused, match="REVERSE_SYNC_MEDPLUM_CLIENT_SECRET") as refusal:
        endpoint.tokens.current()
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"access_token": 1}),
        httpx.Response(200, json={"access_token": "two\r\nlines"}),
        httpx.Response(200, json={"access_token": "t", "expires_in": "soon"}),
        httpx.Response(200, json={"access_token": "t", "expires_in": 0}),
        httpx.Response(200, content=b'{"access_token":"t","expires_in":NaN}'),
    ],
)
def test_nonsense(endpoint: Endpoint, answer: httpx.Response) -> None:
    """An answer without a usable token is a matter of time."""
    endpoint.answer = lambda: answer
    with pytest.raises(MedplumUnavailable):
        endpoint.tokens.current()


def test_network(endpoint: Endpoint) -> None:
    """A network failure is a matter of time."""

    def fail() -> httpx.Response:
        raise CallFailed("refused", sent=False)

    endpoint.answer = fail
    with pytest.raises(MedplumUnavailable):
        endpoint.tokens.current()
