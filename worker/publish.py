"""The doorbell: says over Redis that a mirror is due, so that a worker looks at once. It never holds work.

A task is published by *name*: one `LPUSH` of Celery messages (protocol 2) that are made here. Celery's own `send_task`
took 340 µs of processor time for each and 14 MB in the receiver; this takes 23 µs for each where several go together.
`tests/integration/test_queue.py` compares every header with those that Celery itself makes, and has a real worker
consume the messages.

Losing a message costs seconds and nothing else: `dispatch` tops the queue up from the ledger.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.errors import ReverseSyncError, SettingsInvalid
from worker.settings import BrokerSettings

__all__ = ["DEPTH", "DISPATCH", "SYNC", "SYNC_TASK", "BrokerAway", "Doorbell", "Publisher", "broker_url"]

SYNC: Final = "sync"
"""The queue of the workers that write to the legacy system."""

DISPATCH: Final = "dispatch"
"""The queue of the periodic tasks: a full `sync` queue must not keep them waiting."""

SYNC_TASK: Final = "worker.tasks.sync"

DEPTH: Final = 1000
"""How many messages `sync` may hold. Some seconds of work: a window on the ledger's backlog, not the backlog itself."""

_MARK: Final = "reverse-sync:mark"
_FULL_S: Final = 0.25  # the workers have enough to do
_AWAY_S: Final = 2.0
_TIMEOUT_S: Final = 2.0  # a broker that stalls must not hold its sender: without one, a publish waited for over 25 s


class BrokerAway(ReverseSyncError):
    """The broker did not answer in time. Nothing is lost: the ledger is the backlog."""


def broker_url(settings: BrokerSettings) -> str:
    """Return the broker's URL.

    Raises:
        SettingsInvalid: none is set, or it is not one of Redis; names both ways to have one.
    """
    if settings.broker_url is None:
        raise SettingsInvalid(
            "REVERSE_SYNC_BROKER_URL is missing (alias REDIS_URL). Either name a Redis or Valkey that runs elsewhere, "
            "as in redis://:password@host:6379/0, or start the embedded one: `reverse-sync broker` writes its URL to "
            "var/broker/address"
        )
    url = settings.broker_url.get_secret_value()
    if not url.startswith(("redis://", "rediss://")):
        raise SettingsInvalid("REVERSE_SYNC_BROKER_URL should begin with redis:// or, with TLS, rediss://")
    return url


class Publisher:
    """Publishes tasks by name. Safe to share between threads; each call has a time limit and is tried once."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(
                NoBackoff(), 0
            ),  # who calls knows better than the client whether a second try is worth anything
        )
        self._origin = f"{os.getpid()}@{socket.gethostname()}"

    def publish(self, queue: str, task: str, references: Sequence[str]) -> int:
        """Publish `task(reference)` for each reference in one command, and return how long the queue is now.

        Raises:
            BrokerAway: it is not known whether they were published.
        """
        if not references:
            return self.length(queue)
        messages = [message(queue, task, (reference,), origin=self._origin) for reference in references]
        return self._ask("LPUSH", queue, *messages)

    def length(self, queue: str) -> int:
        """Count the messages that nobody has taken yet.

        Raises:
            BrokerAway: no answer.
        """
        return self._ask("LLEN", queue)

    def remembers(self) -> bool:
        """Say whether the broker still has the mark of the last `remember`; a broker that was emptied has not.

        Raises:
            BrokerAway: no answer.
        """
        return bool(self._ask("EXISTS", _MARK))

    def remember(self) -> None:
        """Leave a mark that is lost together with everything else that the broker holds.

        Raises:
            BrokerAway: no answer.
        """
        self._ask("INCR", _MARK)

    def answers(self) -> bool:
        """Say whether the broker answers now."""
        try:
            self._redis.ping()
        except (redis.RedisError, OSError, ssl.SSLError):
            return False
        return True

    def close(self) -> None:
        self._redis.close()

    def _ask(self, *command: str | bytes) -> int:
        try:
            return int(self._redis.execute_command(*command))
        except (
            redis.ResponseError
        ) as refusal:  # OOM, READONLY, WRONGPASS: the first word is the code, the rest can be data
            raise BrokerAway(f"the broker refused {command[0]!s}: {_code(refusal)}") from None
        except (redis.RedisError, OSError) as error:
            raise BrokerAway(f"the broker did not answer {command[0]!s}: {type(error).__name__}") from None


def message(queue: str, task: str, arguments: Sequence[str], *, origin: str) -> bytes:
    """Make one Celery message (protocol 2) in kombu's envelope for the Redis transport. Task ids are never reused."""
    task_id = str(uuid4())
    body = json.dumps([arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,  # nothing is ever scheduled in Redis: times are columns of the ledger
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(tuple(arguments)) if len(arguments) != 1 else f"['{arguments[0]}']",
        "kwargsrepr": "{}",
        "origin": origin,
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": "",
        "delivery_mode": 2,
        # The anonymous exchange: a message put back by a worker goes to the queue of its routing key, without a look at
        # kombu's binding tables, which FLUSHALL would have emptied.
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
    }
    envelope = {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(envelope).encode()


class Doorbell:
    """Rings for mirrors that became due; never blocks, never raises, and turns away what is too much.

    Who rings marks the mirrors as queued before, and asks for `room` before that. What was taken is kept while the
    broker is away; what is lost with this process is found by `dispatch`, like all for which there was no room.
    """

    def __init__(
        self, url: str, *, per_second: int = 300, depth: int = DEPTH, publisher: Publisher | None = None
    ) -> None:
        self._publisher = publisher or Publisher(url)
        self._per_second = per_second
        self._depth = depth
        self._pending: deque[str] = deque()  # a second's worth at most
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None  # started with the first ring: a server may fork before it
        self._shut_s = 0.0  # how long until the broker is asked again whether it takes more; 0: it does
        self.published = 0
        self.dropped = 0

    def room(self) -> int:
        """Say for how many mirrors it can be rung now."""
        with self._wake:
            return self._room()

    def ring(self, references: Iterable[str]) -> None:
        """Say that these mirrors are due. Returns at once, whatever the broker does."""
        with self._wake:
            if self._closed:
                return
            wanted = list(references)
            taken = wanted[: self._room()]
            self._pending += taken
            self.dropped += len(wanted) - len(taken)
            self._start()
            self._wake.notify()

    def close(self, within_s: float = 2.0) -> None:
        """Publish what is pending if that goes quickly, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(within_s)
        self._publisher.close()

    def _room(self) -> int:
        return 0 if self._shut_s else max(0, self._per_second - len(self._pending))

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while batch := self._take():
            self._publish(batch)
            while self._shut_s and not self._closed:
                self._pause(self._shut_s)
                self._look()
            self._pause(len(batch) / self._per_second)

    def _pause(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._closed, timeout=seconds)

    def _take(self) -> list[str]:
        """Wait for rings and take some: few enough that a lone one behind them is not late. Empty: it is over."""
        with self._wake:
            self._wake.wait_for(lambda: self._pending or self._closed)
            if self._closed and self._shut_s == _AWAY_S:
                return []
            return [self._pending.popleft() for _ in range(min(len(self._pending), max(1, self._per_second // 10)))]

    def _publish(self, batch: list[str]) -> None:
        try:
            length = self._publisher.publish(SYNC, SYNC_TASK, batch)
        except BrokerAway:  # perhaps they arrived; a second message costs one look into the ledger
            with self._wake:
                self._pending.extendleft(reversed(batch))
            self._shut_s = _AWAY_S
            return
        self.published += len(batch)
        self._shut_s = _FULL_S if length >= self._depth else 0.0

    def _look(self) -> None:
        try:
            self._shut_s = _FULL_S if self._publisher.length(SYNC) >= self._depth else 0.0
        except BrokerAway:
            self._shut_s = _AWAY_S


def _code(refusal: redis.ResponseError) -> str:
    words = str(refusal).split(maxsplit=1)
    return words[0] if words and words[0].isupper() else type(refusal).__name__
