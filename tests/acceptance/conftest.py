"""Systems of real processes, each in a folder that is gone afterwards. A start takes seconds, so three are shared.

They end with the last test of this folder: nine idle processes take a tenth of a core from whatever comes after.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.legacies import PRACTICE
from tests.acceptance.system import System, started
from tests.contract.ledger.conftest import postgres

__all__ = ["postgres"]


@contextmanager
def _folder() -> Iterator[Path]:
    """Lend a folder with a short path."""
    path = Path(tempfile.mkdtemp(prefix="reverse-sync-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Lend a new folder."""
    with _folder() as folder:
        yield folder


@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    """Share a system in which nothing may ever fail or be held."""
    with _folder() as folder, started(folder) as system:
        yield system


@pytest.fixture(scope="package")
def practice() -> Iterator[System]:
    """Share a system whose other end is the practice, in which nothing may ever fail or be held."""
    with _folder() as folder, started(folder, legacy=PRACTICE) as system:
        yield system


@pytest.fixture(scope="package")
def troubled() -> Iterator[System]:
    """Share a system with Flower and the console, in which tests make things fail."""
    with _folder() as folder, started(folder, more=("flower", "console")) as system:
        yield system
