"""Medplum's units: who may still ask when they run short. It counts and refuses; it never calls and never sleeps.

Medplum gives each user so many units a minute (50,000 by default) and tells with each answer how many are left. What
can wait stops early, so that live reads do not meet an empty quota.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from enum import IntEnum

import httpx

from worker.errors import MedplumUnavailable
from worker.medplum.answer import retry_after_s

__all__ = ["Priority", "Quota"]

_RATE_LIMIT = re.compile(r'"fhirInteractions"\s*;\s*r=(\d+)\s*;\s*t=(\d+)')
_TOO_MANY = 429


class Priority(IntEnum):
    """What a request is for; the later ones stop earlier."""

    LIVE = 0  # a change that is being synced
    SECOND_LOOK = 1  # an open delete hint, an absent resource, an id that was never seen
    CATCH_UP = 2
    WRITE_BACK = 3  # can wait for days


_KEPT_FOR_OTHERS = {Priority.LIVE: 0.0, Priority.SECOND_LOOK: 0.2, Priority.CATCH_UP: 0.4, Priority.WRITE_BACK: 0.6}


class Quota:
    """What is left, as the last answers told it; shared by threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limit = 0  # the most that was ever seen: what the server's setting is, nobody tells
        self._left = 0
        self._resets_at = 0.0
        self._shut_until = 0.0

    def admit(self, priority: Priority, units: int) -> None:
        """Take units for a request.

        Raises:
            MedplumUnavailable: with the time until there are units again for that priority.
        """
        with self._lock:
            now = self._clock()
            if now < self._shut_until:
                raise MedplumUnavailable("Medplum's quota is used up", retry_after_s=self._shut_until - now)
            if now < self._resets_at and self._left - units < self._limit * _KEPT_FOR_OTHERS[priority]:
                why = f"Medplum's quota is short, and {priority.name.lower().replace('_', ' ')} requests wait first"
                raise MedplumUnavailable(why, retry_after_s=self._resets_at - now)
            self._left -= units

    def note(self, response: httpx.Response) -> None:
        """Learn from an answer."""
        told = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
        with self._lock:
            now = self._clock()
            if told:
                self._left, seconds = int(told[1]), int(told[2])
                self._resets_at = now + seconds
                self._limit = max(self._limit, self._left)
            if response.status_code == _TOO_MANY:
                wait_s = retry_after_s(response)
                self._shut_until = max(self._shut_until, now + (1.0 if wait_s is None else wait_s))
