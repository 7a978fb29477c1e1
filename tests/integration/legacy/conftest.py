"""Vendors that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.legacy.vendor import Behaviour, Vendor


@pytest.fixture
def vendor() -> Iterator[Callable[[Behaviour], Vendor]]:
    """Start a vendor that behaves so."""
    with ExitStack() as stack:
        yield lambda behaviour: stack.enter_context(Vendor(behaviour))
