"""The algorithm: take one mirror, read what Medplum holds now, make the legacy record match. No Celery, SQL, HTTP here.

claim → read → decide → map → resolve references → for each record: announce, send, record → settle.

Every way out of an attempt is one of five ends that the ledger fences: finish, release (again later), wait, fail, hold.
What is raised on the way is turned into one of them by the table in `ends`. Each rule is in `docs/protocol.md`; the
numbers in comments are its sections.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from worker.ends import (
    BACKOFF_FIRST_S,
    BACKOFF_MOST_S,
    OF_THE_VERSION,
    Again,
    End,
    Ended,
    Ends,
    Fail,
    Hold,
    backoff_s,
    not_claimed,
)
from worker.errors import LedgerUnavailable
from worker.ledger import Ledger
from worker.ledger.values import Claim, Disposition, Keys, NotClaimed, Phase, Settlement
from worker.legacy.gate import Gate
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Mapped, Route, Routes, Skip, Unsupported, apply
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.quota import Priority
from worker.medplum.resource import compare, model
from worker.plan import Step, lacking, plan, references
from worker.sending import Budget, Sender
from worker.settings import WorkerSettings
from worker.start import prepare

__all__ = ["BACKOFF_FIRST_S", "BACKOFF_MOST_S", "POISON_STARTS", "End", "Ended", "Sync", "backoff_s"]

POISON_STARTS = 4
ABSENT_LOOK_S = 60.0

Wanted = Mapped | Skip | MappedAbsent | Unsupported


class Sync:
    """Makes the legacy records of one resource at a time match Medplum. Used by many threads."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        medplum: Medplum,
        medplum_base_url: str,
        routes: Routes,
        gate: Gate,
        instance: str,
        lease_s: float,
        budget_s: float,
        send_within_s: float,
        stopping: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._medplum, self._routes, self._gate = ledger, medplum, routes, gate
        self._ends = Ends(ledger)
        self._medplum_base_url = medplum_base_url
        self._instance, self._lease_s, self._budget_s, self._send_within_s = instance, lease_s, budget_s, send_within_s
        self._stopping, self._monotonic = stopping, monotonic

    @classmethod
    def open(cls, settings: WorkerSettings, *, ledger: Ledger, instance: str, stopping: threading.Event) -> Sync:
        """Wire a sync for one process.

        Raises:
            SettingsInvalid, LedgerForeign: the settings, the routes and the ledger do not go together.
        """
        routes = prepare(settings, ledger)
        return cls(
            ledger=ledger,
            medplum=Medplum.of(settings),
            medplum_base_url=settings.medplum_base_url,
            routes=routes,
            gate=Gate.of(settings),
            instance=instance,
            lease_s=settings.lease_seconds,
            budget_s=settings.budget_seconds,
            send_within_s=settings.send_within_seconds,
            stopping=stopping.is_set,
        )

    def close(self) -> None:
        """Give connections back."""
        self._medplum.close()

    def run(self, reference: str, *, alone: bool = False) -> Ended:
        """Try once to sync one mirror.

        Raises:
            LedgerUnavailable: nothing is known of the attempt; its lease ends by itself and the mirror is due again.
        """
        if self._stopping():
            return Ended(End.AGAIN, "this worker is stopping")
        claim = self._ledger.claim(reference, instance=self._instance, lease_s=self._lease_s, alone=alone)
        if isinstance(claim, NotClaimed):
            return not_claimed(claim)
        try:
            return self._attempt(claim, Budget(self._budget_s, self._monotonic))
        except LedgerUnavailable:
            raise
        except Exception as trouble:
            return self._ends.stop(claim, trouble)

    def _attempt(self, claim: Claim, budget: Budget) -> Ended:
        """Read what Medplum holds now, and make the legacy records match it."""
        if claim.starts > POISON_STARTS:
            raise Fail("poison", f"{POISON_STARTS} starts in a row had no end: it kills its process")
        _let_old_writes_land(claim)
        route = self._routes.get(claim.resource_type)
        if route is None or claim.phase in {Phase.OFF, Phase.RETIRED}:
            return self._ends.finish(claim, _unread(claim, f"the route is {claim.phase if route else 'not there'}"))
        read_at = claim.claimed_at + timedelta(seconds=budget.spent_s())
        read = self._medplum.read(claim.reference, deadline_s=budget.left_s("read"), priority=_priority(claim))
        if isinstance(read, Absent):
            return self._absent(claim, read_at)
        settlement = _settlement(read, read_at)
        try:
            return self._match(claim, budget, route, self._wanted(claim, route, read), settlement)
        except OF_THE_VERSION as refusal:
            return self._ends.stop(claim, refusal, settlement)

    def _wanted(self, claim: Claim, route: Route[Any], read: Present | Deleted) -> Wanted:
        """Say what the legacy system should hold of the version that was read."""
        if isinstance(read, Deleted):
            kept = Skip("deleted in Medplum; this route keeps what it wrote")
            return kept if route.deleted == "keep" else MappedAbsent("deleted in Medplum")
        self._check_whole(claim, read)
        resource = model(read.body, claim.resource_type)
        return apply(route, resource, Context.of(resource, zone=route.to.api.zoneinfo, medplum=self._medplum_base_url))

    def _match(self, claim: Claim, budget: Budget, route: Route[Any], wanted: Wanted, settlement: Settlement) -> Ended:
        """Turn what is wanted into steps, take them, and settle."""
        if isinstance(wanted, Skip | Unsupported):
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, self._left(claim, wanted)))
        if claim.phase is Phase.SHADOW:
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, "shadow: nothing is sent"))
        steps = plan(
            wanted.records if isinstance(wanted, Mapped) else (),
            claim.links,
            claim.unresolved,
            now=claim.claimed_at,
            is_written=lambda digest, record: self._ledger.sealer.matches(digest, record.canonical()),
        )
        keys = self._keys(steps)
        missing = lacking(steps, keys)
        if missing is not None:
            return self._wait(claim, missing, settlement)
        sender = Sender(
            ledger=self._ledger,
            gate=self._gate,
            claim=claim,
            route=route,
            version_id=settlement.version_id,
            keys=keys,
            budget=budget,
            send_within_s=self._send_within_s,
            stopping=self._stopping,
            monotonic=self._monotonic,
        )
        for step in steps:
            sender.take(step)
        return self._ends.finish(claim, self._disposed(settlement, wanted, sender), last=sender.last_answer())

    def _left(self, claim: Claim, wanted: Skip | Unsupported) -> str:
        """Name the rule by which nothing is written; what the API cannot hold any more is left behind."""
        if isinstance(wanted, Skip):
            return wanted.rule
        for link in claim.links:
            self._ledger.leave_behind(claim, link.slot, wanted.why)
        return wanted.why

    def _disposed(self, settlement: Settlement, wanted: Mapped | MappedAbsent, sender: Sender) -> Settlement:
        """Name what happened to the version that was read."""
        if sender.wrote:
            return settlement.said(Disposition.APPLIED, sender.left_behind)
        if sender.left_behind:
            return settlement.said(Disposition.SKIPPED, sender.left_behind)
        if isinstance(wanted, MappedAbsent) and not settlement.deleted:
            return settlement.said(Disposition.SKIPPED, wanted.rule)
        if settlement.author is not None and settlement.author == self._medplum.own_author:
            return settlement.said(Disposition.ECHO)
        return settlement

    def _check_whole(self, claim: Claim, read: Present) -> None:
        """2: a member that the notification carried and our read lacks would be cleared in the legacy system."""
        notified = claim.notified.get(read.version_id)
        hidden = compare(notified, read.body) if notified is not None else None
        if hidden is None:
            return
        why = f"our client may not read {hidden}, which Medplum sent: widen its access policy, then resume"
        self._ledger.pause([claim.resource_type], who="reverse-sync", why=why)
        raise Hold("partial read", why)

    def _absent(self, claim: Claim, read_at: datetime) -> Ended:
        """2: absent is never believed at once, and never leads to a delete without a person."""
        if claim.absent_since is None or claim.claimed_at - claim.absent_since < timedelta(seconds=ABSENT_LOOK_S * 0.9):
            words = "Medplum shows neither the resource nor its deletion; looking again"
            return self._ends.look_later(claim, reason="absent", words=words, after_s=ABSENT_LOOK_S)
        if claim.links or claim.unresolved or claim.sent_by_medplum:
            raise Hold("absent", "Medplum sent it, this client may not read it, or it was expunged")
        if claim.delete_hint is None:
            raise Fail("absent", "another resource refers to it, and Medplum does not show it to this client")
        settlement = Settlement(Disposition.UNCHANGED, None, None, read_at, deleted=True, rule="never seen here")
        return self._ends.finish(claim, settlement)

    def _keys(self, steps: tuple[Step, ...]) -> Mapping[str, Keys]:
        """Look up the keys of every record that the steps name; a delete may stand under one that is deleted too."""
        named, under = references(steps)
        return self._ledger.keys_of(sorted(named), buried=sorted(under - named)) if named | under else {}

    def _wait(self, claim: Claim, parent: str, settlement: Settlement) -> Ended:
        """8: wait for a record that this one stands on, unless there will never be one."""
        if parent.partition("/")[0] not in self._routes:
            raise Fail("parent", f"{parent} has no route, so it will never have a legacy record")
        return self._ends.wait(claim, parent, settlement)


def _let_old_writes_land(claim: Claim) -> None:
    """3c: while an announced write has no outcome, nothing more is sent before it can act no more."""
    bound = max((write.bound for write in claim.unresolved), default=None)
    if bound is not None and bound > claim.claimed_at:
        raise Again("unknown outcome", "an earlier write may still land", until=bound, counts=False)


def _priority(claim: Claim) -> Priority:
    """2: looks that nobody asked for, and ids that a forged delete can name at will, come after live reads."""
    return Priority.SECOND_LOOK if claim.never_seen or not claim.asked else Priority.LIVE


def _unread(claim: Claim, rule: str) -> Settlement:
    return Settlement(Disposition.SKIPPED, None, None, claim.claimed_at, rule=rule)


def _settlement(read: Present | Deleted, read_at: datetime) -> Settlement:
    """Say what was read; *unchanged* stands until something is done."""
    deleted = isinstance(read, Deleted)
    author = None if isinstance(read, Deleted) else read.author
    return Settlement(
        Disposition.UNCHANGED, read.version_id, read.last_updated, read_at, deleted=deleted, author=author
    )
