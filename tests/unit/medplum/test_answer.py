"""`worker.medplum.answer`: bundles taken apart byte for byte, statuses as errors."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import httpx
import pytest

from worker.errors import BadResource, MedplumRefused, MedplumUnavailable
from worker.medplum.answer import BadPage, Crowded, QueryRefused, content_of, failure, page_of, retry_after_s


def answer(content: bytes | str, status: int = 200, **headers: str) -> httpx.Response:
    """Return an answer."""
    return httpx.Response(status, content=content, headers={name.replace("_", "-"): headers[name] for name in headers})


@pytest.mark.parametrize(
    "resource",
    [
        '{"resourceType":"Patient","id":"a"}',
        '{ "resourceType" :\n"Patient",\t"value": [1.50, 1e-7, 12345678901234567890.10 ] }',
        '{"text":"M\\u00fcller 王 😀 \\ud83d\\ude00 \\" ] } ,"}',
        '{"huge":' + "9" * 5000 + "}",
        "{}",
    ],
)
def test_bytes(resource: str) -> None:
    """A resource comes out as the bytes that came in, digits, blanks and escapes included."""
    for text in (
        '{"resourceType":"Bundle","entry":[{"fullUrl":"x","resource":%s,"search":{"mode":"match"}},{"resource":%s}]}',
        '\n{ "entry" : [ { "resource" : %s } , { "x" : [ ] , "resource" : %s } ] , "resourceType" : "Bundle" } ',
    ):
        page = page_of(answer(text % (resource, resource)), "a search")
        assert [entry.body.decode() for entry in page.entries] == [resource, resource]
        assert page.following is None


def test_reading() -> None:
    """Beside the bytes there is a reading of them, in which no number was evaluated."""
    page = page_of(answer('{"resourceType":"Bundle","entry":[{"resource":{"id":"a","n":1,"x":[1.5]}}]}'), "a search")
    assert page.entries[0].resource == {"id": "a", "n": None, "x": [None]}


@pytest.mark.parametrize("text", ['{"resourceType":"Bundle"}', '{"resourceType":"Bundle","entry":[]}'])
def test_empty(text: str) -> None:
    """A page can be empty."""
    assert page_of(answer(text), "a search").entries == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"resourceType":"OperationOutcome"}',
        b'{"resourceType":"Bundle"',
        b'{"resourceType":"Bundle"}}',
        b'{"resourceType":"Bundle","entry":{}}',
        b'{"resourceType":"Bundle","entry":[{"resource":{}}',
        b'{"resourceType":"Bundle","entry":[{"resource":{}},]}',
        b'{"resourceType":"Bundle","entry":[],"entry":[]}',
        b'{"resourceType":"Bundle","entry":[{"resource":{},"resource":{}}]}',
        b'{"resourceType":"Bundle","entry":[\xff]}',
        b'{1:"Bundle"}',
    ],
)
def test_no_bundle(content: bytes) -> None:
    """What is not a whole Bundle is asked for again later."""
    with pytest.raises(MedplumUnavailable):
        page_of(answer(content), "a search")


def test_deep() -> None:
    """A resource nested beyond reading spoils its page, and says so."""
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(BadPage):
        page_of(answer('{"resourceType":"Bundle","entry":[{"resource":' + deep + "}]}"), "a search")


def test_following() -> None:
    """Of the next link only the query counts: its origin is the one that the server believes to have."""
    link = [
        {"relation": "self", "url": "x"},
        {"relation": "next", "url": "https://elsewhere.example/P?a=1%2C2&_cursor="},
    ]
    page = page_of(answer(json.dumps({"resourceType": "Bundle", "link": link})), "a search")
    assert page.following == (("a", "1,2"), ("_cursor", ""))


def test_date() -> None:
    """A page carries Medplum's clock; a missing or broken Date is none."""
    bundle = '{"resourceType":"Bundle"}'
    assert page_of(answer(bundle, Date="Sun, 22 Nov 2026 23:00:01 GMT"), "x").date == datetime(
        2026, 11, 22, 23, 0, 1, tzinfo=UTC
    )
    assert page_of(answer(bundle), "x").date is None
    assert page_of(answer(bundle, Date="yesterday"), "x").date is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, QueryRefused),
        (403, MedplumRefused),
        (404, MedplumRefused),
        (302, MedplumRefused),
        (201, MedplumRefused),
        (408, MedplumUnavailable),
        (429, MedplumUnavailable),
        (500, MedplumUnavailable),
        (503, MedplumUnavailable),
    ],
)
def test_failure(status: int, kind: type[Exception]) -> None:
    """A status is either a matter of time or one for a person; the answer's own words stay inside."""
    error = failure(answer('{"issue":[{"details":{"text":"Canary"}}]}', status), "a search of Patient")
    assert type(error) is kind
    assert str(status) in str(error) or status == 403
    assert "Canary" not in str(error)


def throttled(diagnostics: str) -> httpx.Response:
    """Return a 429 as Medplum's rate limiter sends it."""
    return answer(json.dumps({"resourceType": "OperationOutcome", "issue": [{"diagnostics": diagnostics}]}), 429)


@pytest.mark.parametrize(
    ("response", "seconds"),
    [
        (throttled('{"_remainingPoints":0,"_msBeforeNext":1500}'), 1.5),
        (throttled("nonsense"), None),
        (throttled('{"_msBeforeNext":"soon"}'), None),
        (throttled("[1]"), None),
        (answer("", 503, Retry_After="7"), 7.0),
        (answer("", 503, Retry_After="Sun, 22 Nov 2026 23:00:01 GMT"), None),
        (answer("[]", 503), None),
        (answer("{}", 503), None),
    ],
)
def test_retry_after(response: httpx.Response, seconds: float | None) -> None:
    """How long to wait comes from Retry-After or from the rate limiter's diagnostics, or is unknown."""
    assert retry_after_s(response) == seconds


FHIR = "application/fhir+json; charset=utf-8"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"hi", "text/plain"),
        (b"hi", ""),
        (b'{"resourceType":"Binary","data":"aGk="}', FHIR),
    ],
)
def test_what_a_binary_holds(content: bytes, kind: str) -> None:
    """Its bytes, or those within the resource where that is what came."""
    assert content_of(answer(content, Content_Type=kind)) == b"hi"


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"{", b'{"resourceType":"Binary","url":"x"}', b'{"resourceType":"Binary","data":"@"}']
)
def test_a_binary_without_its_content_is_told(content: bytes) -> None:
    """A resource that only says where its content is: nobody goes there."""
    with pytest.raises(BadResource, match="without its content"):
        content_of(answer(content, Content_Type=FHIR))


def test_a_cursor_that_stands_still_is_told_by_its_outcome() -> None:
    """The 500 of too many rows in one millisecond is one of its own; any other 500 is a matter of time."""
    outcome = '{"resourceType":"OperationOutcome","issue":[{"diagnostics":"Error: Cursor fails to make progress"}]}'
    assert type(failure(answer(outcome, 500), "a search of Patient")) is Crowded
    for other in ('{"issue":[{"diagnostics":"Error: out of memory"}]}', "", '{"issue":[7]}', "[]"):
        assert type(failure(answer(other, 500), "a search of Patient")) is MedplumUnavailable
    assert type(failure(answer(outcome, 503), "a search of Patient")) is MedplumUnavailable
