"""The operator's side: an app of its own on a private port. It reads the ledger and changes nothing."""

from __future__ import annotations

from worker.console.app import create_app, serve

__all__ = ["create_app", "serve"]
