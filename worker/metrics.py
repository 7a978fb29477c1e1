"""The numbers that a process counts about itself. Labels are closed sets and resource types, never anything received.

What must be true over all processes (backlog, states, dispositions) is not counted here: the console asks the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

__all__ = [
    "ACCEPT_SECONDS",
    "ATTEMPTS",
    "ATTEMPT_SECONDS",
    "NOTIFICATIONS",
    "PUBLISHED",
    "REGISTRY",
    "SUBSCRIPTION_ALARMS",
    "WRITE_BACKS",
    "ledger_exposition",
    "serve",
]

REGISTRY = CollectorRegistry()  # our own: the default one is anybody's who is imported

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0, 60.0)

NOTIFICATIONS = Counter(
    "reverse_sync_notifications",
    "Requests to POST /medplum by the status that answered them",
    ["status"],
    registry=REGISTRY,
)
ACCEPT_SECONDS = Histogram(
    "reverse_sync_accept_seconds",
    "From a notification's last byte to its commit",
    buckets=_MILLISECONDS,
    registry=REGISTRY,
)
PUBLISHED = Counter(
    "reverse_sync_dispatch_published", "Messages that dispatch topped the queue up with", registry=REGISTRY
)
ATTEMPTS = Counter(
    "reverse_sync_attempts",
    "Attempts to sync a mirror by how they ended",
    ["resource_type", "ended"],
    registry=REGISTRY,
)
ATTEMPT_SECONDS = Histogram(
    "reverse_sync_attempt_seconds", "From claim to settle", ["resource_type"], buckets=_SECONDS, registry=REGISTRY
)
WRITE_BACKS = Counter(
    "reverse_sync_write_backs",
    "Tries to put a legacy key on its Medplum resource by how they ended",
    ["resource_type", "ended"],
    registry=REGISTRY,
)
SUBSCRIPTION_ALARMS = Counter(
    "reverse_sync_subscription_alarms",
    "Changes of a Subscription's state that the watch saw, by the state that it went into",
    ["resource_type", "state"],
    registry=REGISTRY,
)


def serve(port: int, host: str = "127.0.0.1") -> Callable[[], None]:
    """Serve this process's own numbers on a private port, from a thread, and return what ends it."""
    server, thread = start_http_server(port, host, REGISTRY)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def ledger_exposition(status: Mapping[str, Any]) -> bytes:
    """Render `ledger.status()` in Prometheus's text format: the numbers that are true over all processes."""
    registry = CollectorRegistry()
    registry.register(_Ledger(status))
    return generate_latest(registry)


class _Ledger:
    """A collector over one status of the ledger."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield one metric for each entry: groups by label, single numbers plain, unknown ages left out."""
        for name, value in self._status.items():
            if isinstance(value, Mapping):
                label = _LABELS.get(name, "name")
                family = GaugeMetricFamily(f"reverse_sync_ledger_{name}", f"{name} in the ledger", labels=[label])
                for key, number in value.items():
                    family.add_metric([str(key)], float(number))
                yield family
            elif isinstance(value, (bool, int, float)):
                yield GaugeMetricFamily(f"reverse_sync_ledger_{name}", f"{name} of the ledger", value=float(value))


_LABELS = {
    "changes": "disposition",
    "mirrors": "state",
    "accepted_by_source": "source",
    "lag_seconds": "resource_type",
    "watermark_seconds": "resource_type",
    "unproven_windows": "resource_type",
}
