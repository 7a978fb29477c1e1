"""`webhook.notification`: every recorded notification, and what contradicts itself."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from webhook import notification
from webhook.notification import Headers
from worker.errors import BadResource
from worker.ledger.values import Hint

RECORDED = Path(__file__).parents[2] / "fixtures" / "notifications"
INDEX = json.loads((RECORDED / "index.json").read_text())["captures"]
WITH_BODY = [entry for entry in INDEX if entry["signature_valid"] is not False]
ID = "292d4ff1-4205-4e7c-8bb1-c74831efefe8"
REFERENCE = f"Patient/{ID}"
CANARY = "ZZCANARYZZ"

Pairs = list[tuple[bytes, bytes]]


def read(pairs: Pairs, data: bytes) -> Hint:
    """Read a notification with these headers."""
    return notification.read(Headers(pairs), data)


def resource(**members: Any) -> dict[str, Any]:
    """Make a small resource; a member that is None is left out."""
    made = {"resourceType": "Patient", "id": ID, "meta": {"versionId": "v1", "lastUpdated": "2026-11-22T10:30:03.303Z"}}
    return {name: value for name, value in (made | members).items() if value is not None}


def body(**members: Any) -> bytes:
    """Make the body of a small resource."""
    return json.dumps(resource(**members)).encode()


def interaction(*words: str, deleted: str | None = None) -> Pairs:
    """Make the two headers that tell what happened."""
    headers = [(b"x-medplum-interaction", word.encode()) for word in words]
    return headers + ([(b"x-medplum-deleted-resource", deleted.encode())] if deleted is not None else [])


@pytest.mark.parametrize("entry", WITH_BODY, ids=lambda entry: entry["file"])
def test_a_recorded_notification_is_read_as_what_it_was(entry: dict[str, Any]) -> None:
    """Reference, version, time, author, trace id and Subscription are those that the recording's index lists."""
    recorded = json.loads((RECORDED / entry["file"]).read_text())
    headers = [(name.lower().encode(), value.encode()) for name, value in recorded["headers"]]
    data = base64.b64decode(recorded["body_base64"])
    hint = read(headers, data)
    assert hint.reference == entry["resource"]
    assert hint.version_id == entry["versionId"]
    assert hint.author == entry["author"]
    assert hint.trace_id == entry["trace_id"]
    assert hint.last_updated == (entry["lastUpdated"] and datetime.fromisoformat(entry["lastUpdated"]))
    assert hint.body == (None if entry["versionId"] is None else data)
    if entry["interaction"] in {"create", "update", "delete"}:
        assert hint.interaction == entry["interaction"]
        assert hint.subscription == entry["subscription"]


@pytest.mark.parametrize("words", [(), ("fake",), ("create", "update"), ("delete", "delete"), ("DELETE",), ("",)])
def test_an_interaction_that_is_not_told_once_and_plainly_leaves_it_to_the_body(words: tuple[str, ...]) -> None:
    """Missing, unknown or doubled: a resource is an update, an empty body with a named resource is a delete hint."""
    assert read(interaction(*words), body()).interaction == "update"
    hint = read(interaction(*words, deleted=REFERENCE), b"{}")
    assert (hint.reference, hint.version_id, hint.interaction) == (REFERENCE, None, "delete")


def test_a_delete_that_carries_its_resource_is_a_hint_at_that_version() -> None:
    """Both headers name what the body is: nothing contradicts, and the read decides whether it lives."""
    hint = read(interaction("delete", deleted=REFERENCE), body())
    assert (hint.reference, hint.version_id, hint.interaction) == (REFERENCE, "v1", "update")


def test_times_are_utc_whatever_their_offset() -> None:
    """An instant with an offset is the same moment in UTC."""
    hint = read([], body(meta={"versionId": "v", "lastUpdated": "2026-11-22T12:30:03.5+02:00"}))
    assert hint.last_updated == datetime(2026, 11, 22, 10, 30, 3, 500_000, tzinfo=UTC)
    assert hint.last_updated.utcoffset() == datetime.now(UTC).utcoffset()


@pytest.mark.parametrize("author", [None, 7, {}, {"reference": 7}, {"reference": CANARY + " Doe"}, {"display": CANARY}])
def test_an_odd_author_is_no_author(author: object) -> None:
    """The author only chooses a word later: it is never a reason to refuse, and never carries other text along."""
    assert read([], body(meta={"versionId": "v", "author": author})).author is None


def test_ids_out_of_headers_are_ids_or_nothing() -> None:
    """A trace id or Subscription id that does not look like one, or comes twice, is left out."""
    odd = [(b"x-trace-id", b"a b"), (b"x-medplum-subscription", b"s1"), (b"x-medplum-subscription", b"s2")]
    hint = read(odd, body())
    assert (hint.trace_id, hint.subscription) == (None, None)


@pytest.mark.parametrize(
    ("headers", "data", "why"),
    [
        ([], b"[]", "should be a JSON object"),
        ([], b'"text"', "should be a JSON object"),
        ([], b"", "not JSON"),
        ([], b"{}", "X-Medplum-Deleted-Resource is missing"),
        (interaction("delete"), b"{}", "X-Medplum-Deleted-Resource is missing"),
        (interaction("update", deleted=REFERENCE), b"{}", "does not say delete"),
        (interaction("delete", deleted="Patient"), b"{}", "should be Type/id"),
        (interaction("delete", deleted="Patient/.."), b"{}", "should be Type/id"),
        (interaction("delete", deleted="Patient/a/b"), b"{}", "should be Type/id"),
        (interaction("delete", deleted="patient/a"), b"{}", "should be Type/id"),
        (interaction("delete", deleted="Patient/" + "a" * 65), b"{}", "should be Type/id"),
        (interaction("delete", deleted=REFERENCE) * 2, b"{}", "comes twice"),
        (interaction("delete", deleted="Patient/other"), body(), "another resource"),
        (interaction("update", deleted="Patient/other"), body(), "another resource"),
        (interaction("delete"), body(), "says delete and the body is a resource"),
        ([], body(resourceType=None), "resourceType is missing"),
        ([], body(resourceType=f"{CANARY} x"), "resourceType does not have the form"),
        ([], body(resourceType=7), "resourceType does not have the form"),
        ([], body(id=None), "id is missing"),
        ([], body(id=f"{CANARY}/x"), "id does not have the form"),
        ([], body(id="a" * 65), "id does not have the form"),
        ([], body(id="."), "id does not have the form"),
        ([], body(id=".."), "id does not have the form"),
        ([], body(id="a\n"), "id does not have the form"),
        ([], body(id=7), "id does not have the form"),
        ([], body(meta=None), "meta is missing"),
        ([], body(meta=[CANARY]), "meta is missing"),
        ([], body(meta={}), "meta.versionId is missing"),
        ([], body(meta={"versionId": 1}), "meta.versionId does not have the form"),
        ([], body(meta={"versionId": f"{CANARY}'"}), "meta.versionId does not have the form"),
        ([], body(meta={"versionId": "v", "lastUpdated": CANARY}), "meta.lastUpdated does not have the form"),
        ([], body(meta={"versionId": "v", "lastUpdated": "2026-11-22"}), "meta.lastUpdated does not have the form"),
        ([], body(meta={"versionId": "v", "lastUpdated": "2026-13-22T10:00:00Z"}), "meta.lastUpdated is not a time"),
        (
            [],
            body(meta={"versionId": "v", "lastUpdated": "0001-01-01T00:00:00+10:00"}),
            "meta.lastUpdated is not a time",
        ),
    ],
)
def test_what_contradicts_or_lacks_something_is_refused_by_name(headers: Pairs, data: bytes, why: str) -> None:
    """The complaint names the header or member, and repeats no value."""
    with pytest.raises(BadResource, match=why) as refusal:
        read(headers, data)
    assert CANARY not in str(refusal.value)
    assert REFERENCE not in str(refusal.value)
