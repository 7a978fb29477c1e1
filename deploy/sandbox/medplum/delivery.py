"""Rest-hook deliveries: twenty at a time over all Subscriptions, retried, given up, recorded as AuditEvents.

A delivery is a row until it is settled, so a restart sends what was under way once more. It decides only what is sent
and when; what a request looks like stands in `subscription.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from .faults import Faults
from .hook import HookFailed, Hooks
from .resources import presigned
from .store import Job, Store, Version
from .subscription import Register, Subscription, hook_headers

__all__ = ["Auditor", "Deliveries", "Event"]

_LANES = 20
_PRESIGNED_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class Event:
    """A change that Subscriptions may hear of."""

    type: str
    id: str
    version_id: str
    interaction: str
    trace_id: str


class Auditor(Protocol):
    """Writes down what became of an attempt; the repository does."""

    def audit(self, job: Job, *, delivered: bool, text: str) -> None:
        """Store an AuditEvent."""

    def switch_off(self, subscription: str, reason: str) -> None:
        """Set a Subscription to `off` with this error."""


class Deliveries:
    """The queue and its lanes."""

    def __init__(self, store: Store, register: Register, faults: Faults, base_url: str) -> None:
        self.faults = faults
        self.auditor: Auditor | None = None
        self.counted: Counter[str] = Counter()
        self._store, self._register, self._base_url = store, register, base_url
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._generation = 0
        self._mute_deletes = False
        self._events_failed: Counter[str] = Counter()
        self._random = random.Random(20)  # noqa: S311 - faults, not secrets
        self._free = asyncio.Event()
        self._free.set()

    # in

    def announce(self, event: Event, subscriptions: list[Subscription]) -> None:
        """Keep a delivery for each Subscription, within the transaction of the change."""
        for subscription in subscriptions:
            if self._mute_deletes and event.interaction == "delete":
                continue
            if event.type in self.faults.drop_types or self._random.random() < self.faults.drop_rate:
                self.counted["lost"] += 1
                continue
            copies = 2 if self._random.random() < self.faults.duplicate_rate else 1
            for _ in range(copies):
                late = self.faults.delay_seconds + self._random.random() * self.faults.reorder_seconds
                self.add(
                    Job(
                        *(subscription.id, event.type, event.id, event.version_id, event.interaction, event.trace_id),
                        due_at=time.time() + late if late else 0.0,
                    )
                )

    def add(self, job: Job) -> None:
        """Keep one delivery and queue it after the commit."""
        kept = replace(job, seq=self._store.add_job(job))
        self._store.after_commit(lambda: self._schedule(kept))

    @contextmanager
    def without_deletes(self, mute: bool) -> Iterator[None]:
        """Announce no delete meanwhile, if so: its notification went out before."""
        self._mute_deletes = mute
        try:
            yield
        finally:
            self._mute_deletes = False

    def presigned(self, body: bytes) -> bytes:
        """Return the body with presigned attachment URLs, valid an hour from now."""
        expires = int(time.time()) + _PRESIGNED_SECONDS
        return presigned(body, self._base_url, expires)

    def pending(self) -> int:
        """Count what is not settled, deliveries under way included."""
        return int(self._store.scalar("SELECT count(*) FROM delivery"))

    def forget_all(self) -> None:
        """Let go of everything queued, after the rows are gone."""
        self._generation += 1
        self._events_failed.clear()
        self.counted.clear()
        while not self._queue.empty():
            self._queue.get_nowait()

    def hold(self, held: bool) -> None:
        """Stop taking deliveries from the queue, or go on."""
        (self._free.clear if held else self._free.set)()

    def _schedule(self, job: Job) -> None:
        wait = job.due_at - time.time()
        if wait <= 0:
            self._queue.put_nowait(job)
            return
        generation = self._generation

        def later() -> None:
            if generation == self._generation:
                self._queue.put_nowait(job)

        asyncio.get_running_loop().call_later(wait, later)

    # out

    async def run(self) -> None:
        """Send what the file still holds, then whatever comes."""
        hooks = Hooks()
        for job in self._store.jobs():
            self._schedule(job)
        try:
            async with asyncio.TaskGroup() as lanes:
                for _ in range(_LANES):
                    lanes.create_task(self._lane(hooks))
        finally:
            hooks.close()

    async def _lane(self, hooks: Hooks) -> None:
        while True:
            await self._free.wait()
            job = await self._queue.get()
            generation = self._generation
            await self._free.wait()
            if generation == self._generation:
                await self._attempt(hooks, job, generation)

    async def _attempt(self, hooks: Hooks, job: Job, generation: int) -> None:
        subscription = self._register.get(job.subscription)
        body = None if subscription is None else self._body(job)
        if subscription is None or body is None:
            self._settle(job, "dropped")
            return
        if job.secret is not None:
            subscription = replace(subscription, secret=job.secret)
        try:
            headers = hook_headers(subscription, job.interaction, f"{job.type}/{job.id}", body, job.trace_id)
        except ValueError:  # a channel header without a colon: nothing is sent, nothing is recorded
            self._settle(job, "dropped")
            return
        try:
            status: int | None = await hooks.post(subscription.endpoint, headers, body)
            text = f"Attempt {job.attempt} received status {status}"
        except HookFailed as failure:
            status, text = None, f"Attempt {job.attempt} received error {failure}"
        if generation == self._generation:
            self._record(job, subscription, status, text)

    def _body(self, job: Job) -> bytes | None:
        """Return what to send now, or None where Medplum gives the event up."""
        if job.body is not None:
            return job.body
        if job.interaction == "delete":
            return b"{}"
        version = self._version(job)
        return None if version is None else self.presigned(version.body)

    def _version(self, job: Job) -> Version | None:
        current = self._store.current(job.type, job.id)
        if not job.forced:
            if current is None or current.deleted:
                return None
            if job.attempt and current.version_id != job.version_id:
                return None
        return self._store.version(job.type, job.id, job.version_id)

    def _record(self, job: Job, subscription: Subscription, status: int | None, text: str) -> None:
        delivered = status is not None and subscription.delivered(status)
        with self._store.transaction():
            if self.auditor is not None:
                self.auditor.audit(job, delivered=delivered, text=text)
            if delivered:
                self._events_failed.pop(job.subscription, None)
                self._settle(job, "delivered")
            else:
                self.counted["failed_attempts"] += 1
                self._failed(job, subscription, text)

    def _failed(self, job: Job, subscription: Subscription, text: str) -> None:
        if job.attempt < subscription.retries:
            due_at = time.time() + 2**job.attempt * self.faults.retry_scale
            again = replace(job, attempt=job.attempt + 1, due_at=due_at)
            self._store.postpone(again.seq, again.attempt, again.due_at)
            self._store.after_commit(lambda: self._schedule(again))
            return
        self._settle(job, "given_up")
        self._events_failed[job.subscription] += 1
        limit = self.faults.switch_off_after
        if self.auditor is not None and limit is not None and self._events_failed[job.subscription] >= limit:
            self.auditor.switch_off(job.subscription, text)

    def _settle(self, job: Job, how: str) -> None:
        self._store.settle_job(job.seq)
        self.counted[how] += 1
