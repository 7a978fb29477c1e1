"""`worker.medplum.resource`: every recorded resource becomes a model, and what does not says so without a value."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from worker.errors import BadResource, InvalidResource
from worker.medplum.resource import META_OF_FHIR, compare, model, parse, presigned, without_signature

FOLDER = Path(__file__).parents[2] / "fixtures" / "notifications"
CANARY = "Canary-123-45-6789"


def body_of(name: str) -> bytes:
    """Return the raw body of a recorded notification."""
    return base64.b64decode(json.loads((FOLDER / f"{name}.json").read_text())["body_base64"])


RECORDED = [path.stem for path in sorted(FOLDER.glob("0*.json")) if len(body_of(path.stem)) > len("{}")]
PATIENT = "008-patient-create-unicode-contained-extensions"


def resource(**members: object) -> bytes:
    """Return a small patient's bytes."""
    return json.dumps({"resourceType": "Patient", "id": "p1", **members}).encode()


@pytest.mark.parametrize("name", RECORDED)
def test_recorded(name: str) -> None:
    """Each resource that a real server sent is taken by the models, with its own id and version."""
    body = body_of(name)
    read: Any = model(body)
    told = json.loads(body)
    assert (read.id, read.meta.versionId) == (told["id"], told["meta"]["versionId"])
    assert type(read).__name__ == told["resourceType"]


def test_recordings_are_there() -> None:
    """The test above has something to prove."""
    assert len(RECORDED) > 30


def test_meta() -> None:
    """What Medplum adds to meta is left out, in contained resources too; what FHIR knows is kept."""
    meta = {
        "versionId": "v1",
        "lastUpdated": "2026-11-22T10:30:03.303Z",
        "profile": ["http://example.com/p"],
        "tag": [{"code": "vip"}],
        "author": {"reference": CANARY},
        "project": CANARY,
        "compartment": [{"reference": CANARY}],
        "accounts": [{"reference": CANARY}],
    }
    contained = [{"resourceType": "Organization", "id": "o", "name": "O", "meta": meta}]
    read: Any = model(resource(meta=meta, contained=contained))
    for each in (read.meta, read.contained[0].meta):
        assert set(each.model_dump(exclude_none=True)) <= META_OF_FHIR | {"resource_type"}
        assert (each.versionId, each.tag[0].code) == ("v1", "vip")


def test_decimals() -> None:
    """A decimal keeps its digits."""
    read: Any = model(
        b'{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":1.50}}'
    )
    assert str(read.valueQuantity.value) == "1.50"
    assert isinstance(read.valueQuantity.value, Decimal)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (resource(birthDate=CANARY), "birthDate"),
        (resource(gender=[CANARY]), "gender"),
        (resource(name=[{"family": {"x": CANARY}}]), "name[0].family"),
        (resource(name=CANARY), "name"),
        (resource(**{CANARY: CANARY}), "?"),
        (resource(unknown=CANARY), "unknown"),
        (resource(deceasedBoolean=True, deceasedDateTime="2020-01-01"), "Patient"),
        (resource(contained=[{"resourceType": CANARY}]), "contained[0].resourceType"),
        (resource(contained=[{"resourceType": "Bot", "name": CANARY}]), "contained[0].resourceType"),
        (resource(contained=[{"resourceType": "HumanName", "family": CANARY}]), "contained[0].resourceType"),
        (resource(contained=[{"resourceType": {"x": CANARY}}]), "contained[0].resourceType"),
        (resource(contained=[CANARY]), "contained[0].resourceType"),
        (resource(resourceType=CANARY), "resourceType"),
        (resource(resourceType="HumanName", family=CANARY), "resourceType"),
        (resource(resourceType="Resource"), "resourceType"),
        (resource(resourceType="ClientApplication", secret=CANARY), "resourceType"),
    ],
)
def test_invalid(body: bytes, field: str) -> None:
    """A resource that the models refuse names its fields, in words without a value and without a chain."""
    with pytest.raises(InvalidResource) as refusal:
        model(body)
    assert field in refusal.value.fields
    assert CANARY not in str(refusal.value) + repr(refusal.value.fields)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize(
    "bad", [CANARY, [CANARY], {"x": CANARY}, 1e300, -1, True, None, [], {}, [[CANARY]], {"resourceType": CANARY}]
)
def test_damage(bad: object) -> None:
    """Whatever stands in whichever place, the answer is a model or a named problem without a value."""
    whole = json.loads(body_of(PATIENT))
    refusals = []
    for place in places(whole):
        damaged = json.loads(json.dumps(whole))
        *way, last = place
        at = damaged
        for step in way:
            at = at[step]
        at[last] = bad
        try:
            model(json.dumps(damaged).encode())
        except (InvalidResource, BadResource) as refusal:
            refusals.append(str(refusal) + repr(getattr(refusal, "fields", "")))
    assert len(refusals) > 10
    assert not [words for words in refusals if CANARY in words]


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """List the path of everything below a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for step, inner in steps for path in [(*at, step), *places(inner, (*at, step))]]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"resourceType":1}', b'{"a":1,"a":2}', b"\xff", b"[" * 100_000])
def test_bad(body: bytes) -> None:
    """Bytes that are not one resource are refused."""
    with pytest.raises(BadResource):
        model(body)
    with pytest.raises(BadResource):
        parse(body)


def test_other_type() -> None:
    """A resource of another type than expected is refused."""
    with pytest.raises(BadResource, match="not Practitioner"):
        model(resource(), "Practitioner")


def test_import() -> None:
    """The models are loaded when the first one is asked for, not before."""
    code = "import sys, worker.medplum, worker.medplum.resource; print('fhir.resources' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout == "False\n"


@pytest.mark.parametrize(
    ("notified", "read", "path"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "meta": {"author": 1}}, {"a": 1}, None),
        ({"a": 1}, {"b": 1}, "a"),
        ({"a": {"b": [{"c": 1}, {"c": 2}]}}, {"a": {"b": [{"c": 1}, {"d": 2}]}}, "a.b[1].c"),
        ({"a": ["x", "y"]}, {"a": ["x"]}, "a[1]"),
        ({"a": {"b": 1}}, {"a": 1}, "a"),
        ({"a": [1]}, {"a": {"b": 1}}, "a"),
        ({"a": [None, {"id": "g2"}]}, {"a": [None, {"id": "g2"}]}, None),
        ({"a": [None, {"id": "g2"}]}, {"a": [None, None]}, "a[1]"),
        ({"a": False, "b": 0, "c": ""}, {"a": False, "b": 0, "c": ""}, None),
        ({"a": False}, {}, "a"),
        ({"a": 1}, {"a": 1, "b": 2}, None),
        ({"a": {CANARY: 1}}, {"a": {}}, "a.?"),
    ],
)
def test_compare(notified: object, read: object, path: str | None) -> None:
    """The first member is named that a read lacks; what it has besides is no loss."""
    assert compare(json.dumps(notified).encode(), json.dumps(read, indent=1).encode()) == path


def test_compare_attempts() -> None:
    """Two attempts of one event differ in the presigned URL alone, and lack nothing."""
    first, second = (body_of(f"02{number}-documentreference-create-attempt{number - 5}") for number in (5, 7))
    assert first != second
    assert compare(first, second) is None
    assert compare(second, first) is None


@pytest.mark.parametrize(
    ("notified", "read"), [(b"[", b"{}"), (b"{}", b"[]"), (b"{}", b"\xff"), (b"[" * 99_999, b"{}")]
)
def test_compare_nonsense(notified: bytes, read: bytes) -> None:
    """What is not an object is a named problem."""
    with pytest.raises(BadResource):
        compare(notified, read)


@pytest.mark.parametrize(
    ("url", "signed"),
    [
        ("https://storage.medplum.com/binary/b1/v1?Expires=1&Key-Pair-Id=K&Signature=S", True),
        ("https://bucket.s3.amazonaws.com/b1/v1?X-Amz-Algorithm=A&X-Amz-Signature=S", True),
        ("https://account.blob.core.windows.net/b1/v1?se=1&sig=S", True),
        ("https://example.com/image?id=1", False),
        ("https://example.com/Signature", False),
        ("Binary/b1", False),
        ("data:text/plain,x?Signature=1", False),
        ("", False),
    ],
)
def test_presigned(url: str, signed: bool) -> None:
    """Only a signed URL loses its query: elsewhere the query can be what it names."""
    assert presigned(url) is signed
    assert without_signature(url) == (url.partition("?")[0] if signed else url)


def test_presigned_recording() -> None:
    """The URLs of two attempts name the same Binary."""
    bodies = [json.loads(body_of(f"02{number}-documentreference-create-attempt{number - 5}")) for number in (5, 7)]
    first, second = (body["content"][0]["attachment"]["url"] for body in bodies)
    assert first != second
    assert without_signature(first) == without_signature(second)
