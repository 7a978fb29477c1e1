"""The example's site: its settings must be there before a test module imports the mappings."""

from __future__ import annotations

import os

import pytest

from worker.mapping.pairs import pytest_addoption

__all__ = ["pytest_addoption"]


@pytest.hookimpl(trylast=True)  # after the shell's own settings are forgotten
def pytest_configure() -> None:
    """Name a clinic that nobody calls."""
    os.environ.setdefault("REVERSE_SYNC_SITE_CLINIC_URL", "http://clinic.example.com/api")
    os.environ.setdefault("REVERSE_SYNC_SITE_CLINIC_KEY", "clinic-key")
