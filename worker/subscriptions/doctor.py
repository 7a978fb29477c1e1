"""The doctor: writes a marked test resource to Medplum, waits for its notification, deletes it, waits for the delete.

Where one does not come it names the cause: by the Subscription, and by the AuditEvents of Medplum's attempts. It leaves
nothing behind: the resource is deleted, and removed with its history where the client may and everything about it is
settled. It runs from a person's terminal, with an administrator's credential; workers never map what it writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from worker.errors import LedgerUnavailable, MedplumError
from worker.ledger import Ledger
from worker.ledger.subscribing import Notified
from worker.ledger.values import Kind as Told
from worker.ledger.values import State
from worker.medplum.admin import Admin
from worker.subscriptions.applying import knows
from worker.subscriptions.causes import (
    Cause,
    Expected,
    Kind,
    Receivers,
    by_attempts,
    by_subscription,
    nothing_sent,
)
from worker.subscriptions.failures import Failure
from worker.subscriptions.found import Found
from worker.subscriptions.reading import CALL_S, delivered, failures, marked, ours, to_endpoint
from worker.subscriptions.sample import sample

__all__ = ["Doctor", "Result"]

WITHIN_S: Final = 20.0
"""A notification comes within milliseconds; what has not come by then does not come."""

CONCLUDE_S: Final = 3.0
"""So long after the first look an attempt that failed is believed."""

LEFT_AFTER: Final = timedelta(minutes=10)
"""A test resource that is so old was left behind: no examination takes so long."""

_LOOK_EVERY_S: Final = 0.1
_AUDIT_EVERY_S: Final = 1.0
_CLOCKS_DIFFER: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was tried, and what to do if it failed; `cause` says what is wrong."""

    name: str
    ok: bool
    advice: str = ""
    cause: Kind | None = None


class Doctor:
    """One examination."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        admin: Admin,
        expected: Expected,
        within_s: float = WITHIN_S,
        conclude_s: float = CONCLUDE_S,
        settled_within_s: float = WITHIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._admin, self._expected = ledger, admin, expected
        self._within_s, self._conclude_s, self._settled_within_s = within_s, conclude_s, settled_within_s
        self._clock = clock

    def examine(self) -> Iterator[Result]:
        """Try the way of a change from Medplum into the ledger, and yield each result as it is known.

        Raises:
            MedplumError, BadResource: nothing could be tried.
        """
        name = self._expected.resource_type
        resource = sample(name)
        found = self._subscription()
        shown = by_subscription(found, self._expected)
        silent = [cause for cause in shown if cause.silent]
        if found is None or silent:
            for cause in silent:
                yield _failed(f"Medplum sends {name}", cause)
            return
        yield Result(f"{found.reference} is active and sends {name}", True)
        self._sweep()
        begin, since = self._clock(), datetime.now(UTC) - _CLOCKS_DIFFER
        made = self._admin.create(resource, deadline_s=CALL_S)
        reference = f"{name}/{made['id']}"
        try:
            yield from self._try(reference, found, shown, begin, since)
        finally:
            left = self._clean(reference)
        yield left

    def _try(
        self, reference: str, found: Found, shown: Sequence[Cause], begin: float, since: datetime
    ) -> Iterator[Result]:
        name = self._expected.resource_type
        came = self._wait(reference, Told.VERSION, found, since)
        took_s = self._clock() - begin
        if came is None:
            yield _failed(f"the notification of a new {name} comes", self._why(reference, found, shown, since))
            return
        yield _through("the notification of a new resource came", came, found, took_s)
        begin = self._clock()
        self._admin.delete(reference, deadline_s=CALL_S)
        gone = self._wait(reference, Told.DELETE, found, since)
        took_s = self._clock() - begin
        if gone is None:
            yield _failed(f"the notification of a deleted {name} comes", self._why(reference, found, shown, since))
            return
        yield _through("the notification of its deletion came", gone, found, took_s)
        for cause in shown:  # it came through all the same
            yield Result(f"{cause.kind}: not as expected here", True, cause.words)

    # what is there

    def _subscription(self) -> Found | None:
        """Find the Subscription that should tell: that of the ledger, else one that sends to our endpoint."""
        name = self._expected.resource_type
        row = next((row for row in self._ledger.subscriptions() if row.resource_type == name), None)
        ids = {row.medplum_id} if row is not None and row.medplum_id is not None else set()
        named = [one for one in ours(self._admin, ids=ids) if one.id in ids]
        others = [one for one in to_endpoint(self._admin, self._expected.endpoint) if one.resource_type == name]
        active = [one for one in others if one.active]
        return next(iter([*named, *active, *(others if not ids else [])]), None)

    def _wait(self, reference: str, told: Told, found: Found, since: datetime) -> Notified | None:
        """Wait for a notification in the ledger; not longer than it takes to see an attempt at it fail."""
        begin, audited = self._clock(), 0.0
        while (waited_s := self._clock() - begin) < self._within_s:
            came = self._came(reference, told)
            if came is not None:
                return came
            if waited_s > self._conclude_s and self._clock() - audited > _AUDIT_EVERY_S:
                audited = self._clock()
                if self._attempts(reference, found, since):
                    return self._came(reference, told)
            time.sleep(_LOOK_EVERY_S)
        return None

    def _came(self, reference: str, told: Told) -> Notified | None:
        return next((one for one in self._ledger.notified(reference) if one.kind is told), None)

    # why it did not come

    def _why(self, reference: str, found: Found, shown: Sequence[Cause], since: datetime) -> Cause:
        failed = self._attempts(reference, found, since)
        if failed:
            return by_attempts(failed, found, shown, self._receivers(found))
        narrowed = [cause for cause in shown if cause.kind is Kind.INTERACTIONS]
        taken = delivered(self._admin, found.id, reference, since=since)
        came = self._ledger.notified(reference)
        return nothing_sent([*narrowed, *shown], delivered=taken and not narrowed and not came)

    def _attempts(self, reference: str, found: Found, since: datetime) -> list[Failure]:
        told, _ = failures(self._admin, found.id, since=since)
        return [one for one in told if one.resource == reference]

    def _receivers(self, found: Found) -> Receivers:
        """Say which receivers live, and which of them do not know the secret that Medplum signs with."""
        names = {
            one.name for one in self._ledger.subscription_secrets() if one.value.get_secret_value() == found.secret
        }
        alive = self._ledger.receivers()
        return Receivers(len(alive), [name for name, said in alive.items() if not names <= knows(said)])

    # nothing is left behind

    def _clean(self, reference: str) -> Result:
        """Delete the resource, and remove its history once everything about it is settled here."""
        try:
            self._admin.delete(reference, deadline_s=CALL_S)
        except MedplumError as trouble:
            return Result("the test resource is deleted", False, f"{reference} is still there: {trouble}; delete it")
        told = self._ledger.notified(reference)
        if told and not self._settled(reference):
            said = f"{reference} is deleted; no worker has settled it here yet, so its history stays in Medplum"
            return Result("the test resource is deleted", True, said)
        try:
            expunged = self._admin.expunge(reference, deadline_s=CALL_S)
        except MedplumError:
            expunged = False
        if expunged:
            return Result("the test resource is deleted, with its history", True)
        return Result("the test resource is deleted", True, f"the client may not remove the history of {reference}")

    def _sweep(self) -> None:
        """Delete what an examination that was killed has left behind."""
        for one in marked(self._admin, self._expected.resource_type):
            if one.last_updated < datetime.now(UTC) - LEFT_AFTER:
                self._admin.delete(one.reference, deadline_s=CALL_S)

    def _settled(self, reference: str) -> bool:
        """Wait until its mirror is current and every change of it settled; a late hint would find nothing."""
        begin = self._clock()
        while self._clock() - begin < self._settled_within_s:
            try:
                told = self._ledger.show(reference)
            except LedgerUnavailable:
                return False
            if told is not None and told["mirror"].get("state") == State.CURRENT and _no_open(told["changes"]):
                return True
            time.sleep(_LOOK_EVERY_S)
        return False


def _no_open(changes: Sequence[dict[str, object]]) -> bool:
    kinds = {change["kind"] for change in changes}
    return Told.DELETE.value in kinds and all(change["disposition"] is not None for change in changes)


def _failed(name: str, cause: Cause) -> Result:
    return Result(name, False, f"{cause.kind}: {cause.words}", cause.kind)


def _through(what: str, came: Notified, found: Found, took_s: float) -> Result:
    words = f"{what} within {took_s * 1000:.0f} ms, signed and with its headers, through"
    if came.subscription in {found.id, None}:
        return Result(f"{words} {found.reference}", True)
    return Result(f"{words} Subscription/{came.subscription}", True, f"another one than {found.reference}")
