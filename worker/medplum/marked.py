"""What is ours in Medplum, by a tag in its meta: Subscriptions, and the test resources of the doctor. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from worker.errors import BadResource
from worker.strict_json import loads

__all__ = ["CHECK", "SUBSCRIPTION", "SYSTEM", "TEST_RULE", "is_marked", "is_test", "query", "tag"]

SYSTEM: Final = "urn:reverse-sync"
SUBSCRIPTION: Final = "subscription"
CHECK: Final = "end-to-end-check"

TEST_RULE: Final = "a test resource of `check --end-to-end`"
"""The rule by which such a resource is never mapped."""


def tag(code: str) -> dict[str, str]:
    """Make the tag."""
    return {"system": SYSTEM, "code": code}


def query(code: str) -> str:
    """Say how a search asks for it."""
    return f"{SYSTEM}|{code}"


def is_marked(resource: Mapping[str, Any], code: str) -> bool:
    """Tell whether a resource carries the tag."""
    meta = resource.get("meta")
    tags = meta.get("tag") if isinstance(meta, Mapping) else None
    return any(
        isinstance(one, Mapping) and one.get("system") == SYSTEM and one.get("code") == code
        for one in (tags if isinstance(tags, list) else ())
    )


def is_test(body: bytes) -> bool:
    """Tell whether this is a test resource of the doctor. Cheap where it is none: it is asked of every resource."""
    if SYSTEM.encode() not in body:
        return False
    try:
        resource = loads(body)
    except BadResource:
        return False
    return isinstance(resource, dict) and is_marked(resource, CHECK)
