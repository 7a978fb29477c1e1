"""The Celery application: every setting with its reason. It never holds work that the ledger does not have.

Redis is a doorbell and a window on the ledger's backlog. Nothing here needs the broker to remember anything: a broker
that is emptied, killed or moved costs seconds.
"""

from __future__ import annotations

import importlib
import ssl
import sys
import warnings
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import celeryd_after_setup, celeryd_init, setup_logging
from kombu import Exchange, Queue
from kombu.transport import redis

from worker import log
from worker.errors import SettingsInvalid
from worker.publish import DISPATCH, SYNC, broker_url
from worker.settings import BrokerSettings

__all__ = ["app", "configuration"]

_BROKER_PATIENCE_S = 5.0

# Beat's messages expire sooner than the next but one: a dispatch worker that was away finds one, not an hour of them.
SCHEDULE: dict[str, dict[str, Any]] = {
    "dispatch": {"task": "worker.tasks.dispatch", "schedule": 2.0, "options": {"queue": DISPATCH, "expires": 4.0}},
    "free_leases": {
        "task": "worker.tasks.free_leases",
        "schedule": 5.0,
        "options": {"queue": DISPATCH, "expires": 10.0},
    },
    "witness": {"task": "worker.tasks.witness", "schedule": 5.0, "options": {"queue": DISPATCH, "expires": 10.0}},
    "watch": {
        "task": "worker.tasks.ask_for_watch",
        "schedule": 5.0,
        "options": {"queue": DISPATCH, "expires": 10.0},
    },
    "write_back": {
        "task": "worker.tasks.ask_for_write_back",
        "schedule": 5.0,
        "options": {"queue": DISPATCH, "expires": 10.0},
    },
    "catch_up": {
        "task": "worker.tasks.ask_for_catch_up",
        "schedule": 5.0,
        "options": {"queue": DISPATCH, "expires": 10.0},
    },
}


def configuration(url: str) -> dict[str, Any]:
    """Return Celery's settings for a broker."""
    return {
        # --- the broker
        "broker_url": url,
        "broker_use_ssl": _tls(url),
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,  # the order in which processes start is nobody's business
        "broker_connection_max_retries": None,  # for ever: a worker that gave up would need a person
        "broker_channel_error_retry": True,  # READONLY after a failover, OOM: as passing as a lost connection
        "broker_connection_timeout": _BROKER_PATIENCE_S,
        "broker_transport_options": {
            # A stalled broker blocked a sender for over 25 s while these were unset.
            "socket_timeout": _BROKER_PATIENCE_S,
            "socket_connect_timeout": _BROKER_PATIENCE_S,
            "socket_keepalive": True,
            "health_check_interval": 10,  # a half-open connection is noticed within about 20 s
            # Redis keeps no list of what is worked on and redelivers nothing: dispatch does that, from the ledger, in
            # seconds (redelivery took 95 s at best). It also saves four commands a message, and kombu 5.7 ends the
            # worker (AttributeError in Connection.close) when the broker dies while that list is not empty. So there is
            # no visibility timeout either.
            "ack_emulation": False,
            "max_connections": 100,  # each thread of the pool publishes its events on one of its own; kombu allows ten
        },
        # --- messages
        "task_serializer": "json",
        "accept_content": ["json"],  # anything else runs code, or is not ours
        "task_protocol": 2,
        "enable_utc": True,
        "timezone": "UTC",
        # The anonymous exchange: the routing key is the queue. With a named one, kombu looks into its binding tables in
        # Redis, and after FLUSHALL every message is dropped until the workers are restarted.
        "task_queues": [Queue(name, Exchange(""), routing_key=name) for name in (SYNC, DISPATCH)],
        "task_default_queue": DISPATCH,
        "task_default_exchange": "",
        "task_default_routing_key": DISPATCH,
        "task_routes": {
            "worker.tasks.sync": {"queue": SYNC},
            "worker.tasks.write_back": {"queue": SYNC},  # only there are Medplum's credentials
            "worker.tasks.watch_subscriptions": {"queue": SYNC},
            "worker.tasks.*": {"queue": DISPATCH},
        },
        "task_create_missing_queues": False,  # a misspelt queue is an error, not a place where messages gather unseen
        "task_publish_retry": False,  # beat's next message is two seconds away
        # --- results: none. Return values would stand on Flower's pages and in Redis.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        "result_backend": None,
        # --- the worker
        "worker_pool": "threads",  # the work is waiting for HTTP: 300 writes/s in 110 MB (prefork: 72/s in 400 MB)
        "worker_concurrency": 8,  # `-c` overrides; more than the legacy API takes at a time would queue at the gate
        "task_acks_late": True,  # so that what runs counts as reserved, and nothing waits inside a worker at SIGTERM
        "worker_prefetch_multiplier": 1,  # same reason; a message is 1 kB and the queue a millisecond away
        "task_reject_on_worker_lost": False,  # a task that kills its worker would come back for ever
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # a running write must end and be recorded
        "worker_enable_prefetch_count_reduction": False,  # running calls must not lower what is taken
        "worker_send_task_events": True,  # for Flower; arguments are a reference and nothing else
        "task_send_sent_event": False,  # messages are made without Celery (worker.publish)
        "worker_hijack_root_logger": False,  # worker.log formats; Celery's own format prints foreign exceptions whole
        "worker_redirect_stdouts": False,
        # --- beat
        "beat_scheduler": "celery.beat:Scheduler",  # in memory: the default keeps a shelve in the working directory
        "beat_schedule": SCHEDULE,
        "beat_max_loop_interval": 2,
    }


def _tls(url: str) -> dict[str, Any] | None:
    """Verify the broker's certificate unless its URL says otherwise; kombu's default does not verify."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or "ssl_" in parts.query:
        return None
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def _read_settings() -> BrokerSettings:
    try:
        settings = BrokerSettings.read()
        broker_url(settings)
    except SettingsInvalid as problem:
        # SystemExit and not the error itself: Celery's command line wraps errors of this module into a traceback.
        sys.exit(f"refusing to start: {problem}")
    return settings


settings = _read_settings()
app = Celery("reverse-sync")
app.conf.update(configuration(broker_url(settings)))

# What a worker has taken and not ended is in the ledger. Otherwise kombu puts it back whenever a connection ends or,
# with the broker gone, writes it to a file in /tmp. It has no option for that.
redis.Channel.do_restore = False

_process: list[str] = ["beat"]  # the only process that has no signal before its logging is set up


@celeryd_init.connect(weak=False)
def _begin_worker(sender: str, **_: Any) -> None:
    """Log as worker.log does from the first line on; a worker is called what stands before the @ of its node name."""
    importlib.import_module("worker.tasks")  # not as `imports`: beat and Flower know tasks by name and save 30 MB
    _process[:] = [sender.partition("@")[0]]
    _log_lines()
    # Celery warns of root because of messages that run code when they are read. Only JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)


@setup_logging.connect(weak=False)
def _log_lines(**_: Any) -> None:
    """Take logging away from Celery, which prints the texts of foreign exceptions: it leaves alone who answers this."""
    log.configure(settings.log_format, process=_process[0])


@celeryd_after_setup.connect(weak=False)
def _quiet_warning(**_: Any) -> None:
    """Leave out what Celery announces at each loss of the connection: another default for what is set by hand above."""
    # Not earlier: setting up its logging, Celery has just switched it on.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)
