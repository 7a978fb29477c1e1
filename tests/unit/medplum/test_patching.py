"""`worker.medplum.patching`: what a patch says for each way in which identifiers can stand on a resource."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from worker.errors import BadResource, MedplumRefused
from worker.medplum.patching import Operations, Put, of_identifier, version_of

SYSTEM = "https://clinic.example.com/number"
TEST = {"op": "test", "path": "/meta/versionId", "value": "v1"}
OURS = {"system": SYSTEM, "value": "17"}
OLD = {"system": SYSTEM, "value": "16", "use": "secondary"}
MRN = {"system": "https://hospital.example.com/mrn", "value": "17"}


def patch(
    identifier: Any = None, *, former: str | None = "16", others: tuple[str, ...] = (), has_none: bool = False
) -> tuple[Put, Operations]:
    resource = {"resourceType": "Patient", "id": "p1", "meta": {"versionId": "v1"}}
    body = json.dumps(resource if identifier is None else resource | {"identifier": identifier}).encode()
    return of_identifier(body, "v1", system=SYSTEM, value="17", former=former, others=others, has_none=has_none)


@pytest.mark.parametrize(
    "identifier", [[OURS], [MRN, OURS], [OLD, OURS], OURS], ids=["alone", "beside", "after an old one", "single"]
)
def test_there(identifier: Any) -> None:
    """A resource that carries the identifier needs nothing."""
    assert patch(identifier) == (Put.THERE, [])


@pytest.mark.parametrize("identifier", [None, [], [MRN], [{"value": "17"}], ["odd"]])
def test_added(identifier: Any) -> None:
    """Whatever else is there, and whatever we do not see, is appended to."""
    assert patch(identifier) == (Put.ADDED, [TEST, {"op": "add", "path": "/identifier/-", "value": OURS}])


def test_the_first_one() -> None:
    """Only where a version has refused an append, an array is made."""
    assert patch(has_none=True) == (Put.ADDED, [TEST, {"op": "add", "path": "/identifier", "value": [OURS]}])


def test_an_array_is_never_put_in_the_place_of_one_that_is_seen() -> None:
    """A version whose identifiers we see is appended to, though it has refused once."""
    assert patch([MRN], has_none=True)[1][1]["path"] == "/identifier/-"


@pytest.mark.parametrize(
    ("identifier", "change"),
    [
        ([MRN, OLD], {"op": "replace", "path": "/identifier/1/value", "value": "17"}),
        ([{"system": SYSTEM}], {"op": "add", "path": "/identifier/0/value", "value": "17"}),
        (OLD, {"op": "replace", "path": "/identifier/value", "value": "17"}),
    ],
    ids=["the former key", "no value", "single"],
)
def test_replaced(identifier: Any, change: dict[str, Any]) -> None:
    """The key that was put there before gives way, and nothing around it."""
    assert patch(identifier) == (Put.REPLACED, [TEST, change])


def test_the_keys_of_other_records_stay() -> None:
    """What stands for another record of the same resource is not an old value."""
    added = (Put.ADDED, [TEST, {"op": "add", "path": "/identifier/-", "value": OURS}])
    assert patch([OLD], former=None, others=("16",)) == added
    stale = {"system": SYSTEM, "value": "15"}
    assert patch([OLD, stale], former="15", others=("16",))[1][1]["path"] == "/identifier/1/value"


@pytest.mark.parametrize("former", [None, "15"])
def test_a_key_that_is_not_ours_to_replace_stays(former: str | None) -> None:
    """A resource that names another record under our system may have two: nothing is written, and it is said."""
    assert patch([OLD], former=former) == (Put.FOREIGN, [])
    assert patch([MRN, {"system": SYSTEM, "value": "15"}, OLD], former="15")[0] is Put.REPLACED


def test_no_room() -> None:
    """A type that takes one identifier keeps the one that it has, and the words hold no value."""
    with pytest.raises(MedplumRefused, match="room for one") as refused:
        patch(MRN)
    assert "17" not in str(refused.value)


def test_what_is_no_json_is_refused() -> None:
    """Bytes that cannot be read are never patched."""
    with pytest.raises(BadResource):
        of_identifier(b"{", "v1", system=SYSTEM, value="17")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"meta": 1}', b'{"meta": {"versionId": 7}}'])
def test_an_answer_without_a_version(content: bytes) -> None:
    """What does not tell its version is an answer all the same."""
    assert version_of(httpx.Response(200, content=content)) is None


def test_an_answer_with_a_version() -> None:
    """The version that was made stands in the answer's meta."""
    assert version_of(httpx.Response(200, content=b'{"meta": {"versionId": "v2"}}')) == "v2"
