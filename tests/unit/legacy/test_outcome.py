"""What answers mean, and what of them may be said outside."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from worker.ledger.values import Operation
from worker.legacy import Answer, Means, Outcome
from worker.legacy.outcome import (
    NotJson,
    at,
    by_status,
    code,
    declared,
    keys_of,
    named_fields,
    parsed,
)
from worker.legacy.rate import retry_after

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DONE), (201, Outcome.DONE), (204, Outcome.DONE),
        (301, Outcome.UNKNOWN), (303, Outcome.UNKNOWN),
        (400, Outcome.REFUSED), (401, Outcome.NOT_DONE), (403, Outcome.REFUSED),
        (404, Outcome.GONE), (408, Outcome.NOT_DONE), (409, Outcome.CONFLICT), (410, Outcome.GONE),
        (412, Outcome.CONFLICT), (413, Outcome.REFUSED), (422, Outcome.REFUSED), (425, Outcome.NOT_DONE),
        (429, Outcome.NOT_DONE), (500, Outcome.UNKNOWN), (501, Outcome.UNKNOWN), (502, Outcome.UNKNOWN),
        (503, Outcome.NOT_DONE), (504, Outcome.UNKNOWN), (522, Outcome.UNKNOWN),
    ],
)  # fmt: skip
def test_the_table_of_outcomes(status: int, outcome: Outcome) -> None:
    """An update's status means what the design's table says."""
    assert by_status(status, Operation.UPDATE) is outcome


def test_404_on_a_create_is_a_refusal() -> None:
    """There is no record yet that could be gone: what is missing is the place, or the parent."""
    assert by_status(404, Operation.CREATE) is Outcome.REFUSED


def test_the_first_answer_that_fits_wins_and_the_call_speaks_before_the_api() -> None:
    """Layers are asked in order; a bare status fits whatever the body says."""
    body = {"error": {"code": "gone"}, "success": False}
    call: Means = {Answer(400, has="error.code", equal="gone"): Outcome.GONE, 400: Outcome.CONFLICT}
    api: Means = {400: Outcome.REFUSED, Answer(200, has="success", equal=False): Outcome.REFUSED}
    assert declared(400, body, call, api) is Outcome.GONE
    assert declared(400, {}, call, api) is Outcome.CONFLICT
    assert declared(400, body, {}, api) is Outcome.REFUSED
    assert declared(200, body, call, api) is Outcome.REFUSED
    assert declared(200, {"success": True}, call, api) is None
    assert declared(400, body, {Answer(400, has="error.unknown"): Outcome.GONE}) is None
    assert declared(400, body, {Answer(400, has="error"): Outcome.GONE}) is Outcome.GONE
    assert declared(200, True, {Answer(200, equal=True): Outcome.DONE}) is Outcome.DONE


def test_paths_lead_through_objects_and_lists() -> None:
    """A path that leads nowhere is nothing, whatever stands in its way."""
    body = {"data": [{"id": 7}], "text": "abc"}
    assert at(body, "data.0.id") == 7
    assert at(body, "") is body
    assert [at(body, path) for path in ("data.1.id", "data.id", "text.0", "none.at.all")] == [None] * 4
    assert at(None, "a") is None


@pytest.mark.parametrize(
    "record", [None, [], "x", {}, {"id": None}, {"id": ""}, {"id": " "}, {"id": True}, {"id": 1.5}, {"id": [1]}]
)
def test_without_a_whole_key_there_is_none(record: object) -> None:
    """A key is text or a whole number; anything else does not name a record."""
    assert keys_of(record, {"id": "id"}) is None


def test_keys_keep_their_type_and_all_are_wanted() -> None:
    """An integer stays one, beyond 2³¹ too, and half of a pair is none."""
    record = {"number": 2**40, "uuid": "ab"}
    assert keys_of(record, {"number": "number", "uuid": "uuid"}) == {"number": 2**40, "uuid": "ab"}
    assert keys_of({"number": 1}, {"number": "number", "uuid": "uuid"}) is None


def test_numbers_keep_their_digits() -> None:
    """An answer's decimal is compared digit by digit later, so it never becomes a float."""
    assert parsed(b'{"dose": 1.50}') == {"dose": Decimal("1.50")}
    assert parsed(b" ") is None


@pytest.mark.parametrize("payload", [b"<html>", b"{", b"[" * 100_000, b'"\xff"', b"NaN", b"1" * 5000], ids=len)
def test_what_is_not_json_is_named_without_a_chain(payload: bytes) -> None:
    """A broken answer is no crash, and its error holds nothing of it."""
    with pytest.raises(NotJson) as refused:
        parsed(payload)
    assert refused.value.__context__ is None


def test_only_declared_codes_and_sent_field_names_go_outside() -> None:
    """A code that nobody declared could be a name, and so could a key that we never sent."""
    codes = {"error.code": ("invalid",)}
    assert code({"error": {"code": "invalid"}}, codes) == "invalid"
    assert code({"error": {"code": "Doe"}}, codes) == ""
    assert code({"error": {"code": ["invalid"]}}, codes) == ""
    body = {
        "error": {"fields": {"marital": "'WID' for Doe", "Doe": 1}, "details": [{"field": "zip"}, {"field": "Jane"}]}
    }
    sent = frozenset({"marital", "zip", "city"})
    assert named_fields(body, ("error.fields", "error.details"), sent) == ("marital", "zip")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("", None), ("soon", None), ("nan", None), ("7", 7.0), ("0.5", 0.5), ("-3", 0.0),
        ("Sun, 22 Nov 2026 10:01:00 GMT", 60.0), ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0), ("1e99", 86400.0),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds or an HTTP date, never negative, never more than a day, and nonsense is nothing."""
    assert retry_after(header, NOW) == seconds
