"""What AuditEvents tell: which events still fail, how long Medplum goes on, and what it gave up on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from worker.errors import BadResource
from worker.subscriptions.failures import SLACK, Failure, failing, failure_of, gave_up

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def event(text: str, **more: object) -> bytes:
    entity = [{"what": {"reference": "Patient/p1"}}, {"what": {"reference": "Subscription/s1"}}]
    return json.dumps(
        {"resourceType": "AuditEvent", "recorded": "2026-11-22T12:00:00.000Z", "outcomeDesc": text, "entity": entity}
        | more
    ).encode()


def failed(resource: str, attempt: int, seconds: float = 0) -> Failure:
    return Failure(resource, attempt, NOON + timedelta(seconds=seconds), 503)


def test_an_answer_and_an_error_are_read() -> None:
    """Attempt, time, resource, and either the status or the network's words."""
    assert failure_of(event("Attempt 3 received status 404")) == Failure("Patient/p1", 3, NOON, 404)
    refused = failure_of(event("Attempt 0 received error FetchError: connect ECONNREFUSED 10.0.0.1:80"))
    assert refused == Failure("Patient/p1", 0, NOON, None, "FetchError: connect ECONNREFUSED 10.0.0.1:80")


def test_the_order_of_entities_and_a_missing_one_do_no_harm() -> None:
    """The Subscription may come first, and the resource may be left out."""
    turned = [{"what": {"reference": "Subscription/s1"}}, {"what": {"reference": "Patient/p1"}}]
    for entity, resource in ((turned, "Patient/p1"), ([{}, {"what": None}], ""), (None, "")):
        read = failure_of(event("Attempt 1 received status 500", entity=entity))
        assert read is not None
        assert read.resource == resource


@pytest.mark.parametrize(
    "more", [{"outcomeDesc": "Bot ran"}, {"recorded": "noon"}, {"recorded": None}, {"recorded": 5}]
)
def test_what_tells_of_something_else_is_left_out(more: dict[str, object]) -> None:
    """Another text, or no time."""
    assert failure_of(event("Attempt 0 received status 500", **more)) is None


def test_what_is_no_resource_is_refused() -> None:
    """A list is none."""
    with pytest.raises(BadResource):
        failure_of(b"[]")


def test_an_event_fails_until_its_next_attempt_is_overdue() -> None:
    """After attempt 3 the next comes within 8 s and the slack; then it has come through, or was dropped."""
    due = NOON + timedelta(seconds=8) + SLACK
    assert failing([failed("Patient/p1", 3)], attempts=18, now=due) is not None
    assert failing([failed("Patient/p1", 3)], attempts=18, now=due + timedelta(seconds=1)) is None


def test_events_are_counted_by_their_last_attempt() -> None:
    """Three attempts of one resource are one event; Medplum gives up on the first when all its gaps are over."""
    failures = [
        failed("Patient/p1", 0, 0),
        failed("Patient/p1", 1, 1),
        failed("Patient/p1", 2, 3),
        failed("Patient/p2", 0, 3),
    ]
    told = failing(failures, attempts=4, now=NOON + timedelta(seconds=4))
    assert told is not None
    assert told.events == 2
    assert told.oldest_attempt == 2
    assert told.gives_up_at == NOON + timedelta(seconds=15)  # 1 + 2 + 4 + 8 after its first attempt


def test_the_last_attempt_that_failed_is_the_end() -> None:
    """By default attempt 4 is the fifth and last."""
    failures = [failed("Patient/p1", 3, 7), failed("Patient/p1", 4, 15), failed("Patient/p2", 3, 15)]
    assert gave_up(failures, attempts=4) == 1
    told = failing(failures, attempts=4, now=NOON + timedelta(seconds=16))
    assert told is not None
    assert told.events == 1
