"""The page of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFINED = re.compile(r"^def (test_\w+)", re.MULTILINE)
NAMED = re.compile(r"`(test_\w+)`")


def test_every_proof_on_the_page_of_promises_exists() -> None:
    """A promise whose proof was renamed or removed is found at once."""
    named = set(NAMED.findall((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")))
    files = (ROOT / "tests").rglob("test_*.py")
    defined = {name for file in files for name in DEFINED.findall(file.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert named - defined == set()
