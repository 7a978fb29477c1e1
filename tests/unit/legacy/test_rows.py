"""The table of `docs/legacy-api.md`: each row names a test, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import worker.legacy

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "legacy-api.md").read_text(encoding="utf-8")
TABLE = [line for line in PAGE.partition("## Row by row")[2].splitlines() if line.startswith("| ")][1:]
FILES = [
    *(ROOT / "tests" / "integration" / "legacy").glob("test_*.py"),
    ROOT / "tests" / "integration" / "test_gate.py",
    ROOT / "tests" / "integration" / "sync" / "test_conflicts.py",
]
TOPICS = (
    "auth", "ids", "paths", "create answers", "update", "delete", "odd answers", "lookup", "duplicates", "concurrency",
    "idempotency", "rate limits", "bodies", "clearing", "dates", "codes", "required, no FHIR source", "limits",
)  # fmt: skip


def test_every_topic_has_its_rows() -> None:
    """What exists in the wild is all there."""
    assert [topic for topic in TOPICS if f"| **{topic}**" not in PAGE] == []


def test_every_row_names_a_test_that_is_there() -> None:
    """A row whose test was renamed or taken out is found here."""
    there = {name for path in FILES for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)}
    named = [re.findall(r"`(test_\w+)`", row) for row in TABLE]
    assert len(TABLE) > 50
    assert [row for row, names in zip(TABLE, named, strict=True) if not names] == []
    assert {name for names in named for name in names} - there == set()


def test_every_public_name_is_explained() -> None:
    """Whatever a declaration may use stands on the page."""
    words = set(re.findall(r"\w+", PAGE))
    ours = {"Answered", "Collection", "Current", "Hit", "KeyPlaces", "LegacyRequest", "Listed", "Means", "Parents"}
    types = {
        "ANY",
        "Body",
        "Clear",
        "Constant",
        "Credential",
        "NoToken",
        "Scalar",
        "TokenRefused",
        "TokenStore",
        "WireValue",
    }
    assert set(worker.legacy.__all__) - ours - types - words == set()
