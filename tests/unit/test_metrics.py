"""`worker.metrics`: what is exported, under which names, and how it is served."""

from __future__ import annotations

import socket

import httpx

from worker import metrics


def test_a_ledgers_status_becomes_gauges() -> None:
    """Groups have their label, ages that nobody knows yet are left out, and truth is 1 or 0."""
    status = {"accepted": 3, "changes": {"open": 2, "applied": 1}, "identity_holds": True, "oldest_open_seconds": None}
    status |= {"lag_seconds": {"Patient": 4.5}, "watermark_seconds": {"Patient": 300.0}, "routes": [{"accepted": 3}]}
    said = metrics.ledger_exposition(status).decode()
    assert "reverse_sync_ledger_accepted 3.0" in said
    assert 'reverse_sync_ledger_changes{disposition="open"} 2.0' in said
    assert "reverse_sync_ledger_identity_holds 1.0" in said
    assert 'reverse_sync_ledger_lag_seconds{resource_type="Patient"} 4.5' in said
    assert 'reverse_sync_ledger_watermark_seconds{resource_type="Patient"} 300.0' in said
    assert "routes" not in said
    assert "oldest_open_seconds" not in said


def test_a_processs_own_numbers_are_served_on_a_port() -> None:
    """`serve` answers with this process's registry until it is told to stop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    metrics.PUBLISHED.inc(0)
    stop = metrics.serve(port)
    try:
        said = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    finally:
        stop()
    assert "reverse_sync_dispatch_published_total" in said


def test_every_name_begins_with_the_projects() -> None:
    """Nothing of ours is mixed up with the metrics of others."""
    assert all(family.name.startswith("reverse_sync_") for family in metrics.REGISTRY.collect())
