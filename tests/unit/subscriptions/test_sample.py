"""A test resource of each type is valid R4, about nobody, and known as one."""

from __future__ import annotations

import json

import pytest

from worker.errors import BadResource
from worker.medplum.marked import is_test
from worker.medplum.resource import model
from worker.subscriptions.sample import _LEAST, sample


@pytest.mark.parametrize("resource_type", [*_LEAST, "Location", "Basic"])
def test_each_is_valid_and_marked(resource_type: str) -> None:
    """The R4 models take it, the tag tells it, and it refers to nobody."""
    if resource_type == "Basic":  # it needs a code, which is not known here
        with pytest.raises(BadResource, match="--type"):
            sample(resource_type)
        return
    body = json.dumps(sample(resource_type)).encode()
    model(body, resource_type)
    assert is_test(body)
    assert b'"reference"' not in body


@pytest.mark.parametrize(
    "meta",
    [
        None,
        {},
        {"tag": {}},
        {"tag": [None, {"system": "urn:reverse-sync", "code": "subscription"}]},
        {"tag": [{"system": "urn:other", "code": "end-to-end-check", "display": "urn:reverse-sync"}]},
    ],
)
def test_nothing_else_is_taken_for_one(meta: object) -> None:
    """No tag, another code, another system."""
    assert not is_test(json.dumps({"resourceType": "Patient", "meta": meta, "x": "urn:reverse-sync"}).encode())


def test_a_word_in_a_text_is_no_tag() -> None:
    """Broken bytes that hold the word are none either."""
    assert not is_test(b'{"text": "urn:reverse-sync')
