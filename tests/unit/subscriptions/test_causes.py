"""The causes that the stand-in cannot bring about, and that none of them shows a secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from worker.subscriptions.causes import Expected, Kind, Receivers, by_attempts, by_subscription, nothing_sent
from worker.subscriptions.failures import Failure
from worker.subscriptions.found import SECRET, Found

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ENDPOINT = "https://sync.example.org/medplum"
EXPECTED = Expected("Patient", ENDPOINT, SecretStr("Bearer right"), [SecretStr("a secret")])


def subscription(**more: Any) -> Found:
    resource = {
        "status": "active",
        "criteria": "Patient",
        "channel": {"type": "rest-hook", "endpoint": ENDPOINT, "header": ["Authorization: Bearer right"]},
        "extension": [{"url": SECRET, "valueString": "a secret"}],
    }
    return Found("Subscription/s1", "v1", NOON, resource | more)


def failed(status: int | None, error: str = "") -> list[Failure]:
    return [Failure("Patient/p1", 0, NOON, status, error)]


def test_one_that_is_right_has_no_cause() -> None:
    """Nothing is named."""
    assert by_subscription(subscription(), EXPECTED) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("FetchError: request to … failed, reason: connect ECONNREFUSED 10.0.0.1:443", "refused"),
        ("FetchError: request to … failed, reason: getaddrinfo ENOTFOUND sync.example.org", "host's name"),
        ("FetchError: network timeout at: …", "no answer in time"),
        ("FetchError: … reason: self-signed certificate", "certificate"),
        ("FetchError: … reason: socket hang up", "cut"),
        ("FetchError: … reason: connect EHOSTUNREACH 10.0.0.1", "no way"),
        ("TypeError: fetch failed", "no answer came"),
    ],
)
def test_a_network_that_fails_is_told_in_words(error: str, words: str) -> None:
    """Each kind says what to look at, and none repeats Medplum's text."""
    cause = by_attempts(failed(None, error), subscription(), [], Receivers(1))
    assert cause.kind is Kind.NETWORK
    assert words in cause.words
    assert "FetchError" not in cause.words


def test_a_receiver_that_does_not_know_the_secret_is_named() -> None:
    """A 401 with a right Subscription is the receiver's ignorance before it is its token."""
    cause = by_attempts(failed(401), subscription(), [], Receivers(2, ["web-1"]))
    assert cause.kind is Kind.SECRET
    assert "web-1" in cause.words


def test_a_401_where_no_receiver_lives_is_somebody_elses() -> None:
    """Whatever answers there is none of this ledger."""
    assert by_attempts(failed(401), subscription(), [], Receivers(0)).kind is Kind.ENDPOINT


@pytest.mark.parametrize(("status", "kind"), [(405, Kind.ENDPOINT), (503, Kind.LEDGER), (400, Kind.RECEIVER)])
def test_each_answer_has_its_cause(status: int, kind: Kind) -> None:
    """By the last attempt that failed."""
    assert by_attempts(failed(status), subscription(), [], Receivers(1)).kind is kind


def test_no_secret_at_all_is_named() -> None:
    """Nothing is signed then."""
    assert [cause.kind for cause in by_subscription(subscription(extension=[]), EXPECTED)] == [Kind.SECRET]


def test_a_header_that_is_missing_is_named() -> None:
    """The receivers expect one."""
    channel = {"type": "rest-hook", "endpoint": ENDPOINT}
    assert [cause.kind for cause in by_subscription(subscription(channel=channel), EXPECTED)] == [Kind.HEADER]


def test_where_everything_is_right_and_nothing_is_sent_it_is_medplums_server() -> None:
    """The only cause that cannot be seen from here is said to be one."""
    assert nothing_sent([], delivered=False).kind is Kind.UNKNOWN


def test_no_cause_shows_a_secret() -> None:
    """Neither the expected values nor those that stand there."""
    wrong = subscription(
        channel={"type": "rest-hook", "endpoint": ENDPOINT, "header": ["Authorization: Bearer: hunter2"]},
        extension=[{"url": SECRET, "valueString": "hunter3"}],
    )
    told = str(by_subscription(wrong, EXPECTED)) + repr(EXPECTED) + repr(wrong)
    for word in ("hunter", "right", "a secret"):
        assert word not in told
