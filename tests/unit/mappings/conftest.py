"""The example's site: its settings must be there before a test module imports the mappings, and nowhere else."""

from __future__ import annotations

import importlib

import pytest

from worker.mapping.pairs import pytest_addoption

__all__ = ["pytest_addoption"]

SITE = {"URL": "http://clinic.example.com/api", "KEY": "clinic-key"}  # a clinic that nobody calls


def pytest_configure() -> None:
    """Import the clinic once under these settings: its module reads them when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        _set(patch)
        importlib.import_module("worker.mappings.clinic")


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settings for tests that import the mappings anew."""
    _set(monkeypatch)


def _set(patch: pytest.MonkeyPatch) -> None:
    for name, value in SITE.items():
        patch.setenv(f"REVERSE_SYNC_SITE_CLINIC_{name}", value)
