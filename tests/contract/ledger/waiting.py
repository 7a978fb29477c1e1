"""Waiting for facts, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(fact: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Look until the fact holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.01)
