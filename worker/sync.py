"""The algorithm: take one mirror, read what Medplum holds now, make the legacy record match. No Celery, no SQL, no HTTP here.

claim → read → decide → map → resolve references → for each record: announce, send, record → settle.

Every way out of an attempt is one of five ends that the ledger fences: finish, release (again later), wait, fail, hold.
Each rule is in `docs/protocol.md`; the numbers in comments are its sections.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from worker.errors import (
    BadKey,
    BadResource,
    DeleteBudgetSpent,
    InvalidResource,
    LeaseLost,
    LedgerUnavailable,
    LegacyError,
    LegacyUnavailable,
    MedplumRefused,
    MedplumUnavailable,
    Paused,
    ReverseSyncError,
    Unmappable,
    where,
)
from worker.ledger import Ledger
from worker.ledger.values import Claim, Disposition, Keys, NotClaimed, Operation, Phase, Refusal, Settlement, Wait
from worker.legacy.gate import Gate
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Mapped, Route, Routes, Skip, Unsupported, apply
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.resource import compare, model
from worker.plan import Step, plan
from worker.sending import Again, Budget, Hold, Refused, Sender
from worker.settings import WorkerSettings
from worker.start import prepare

POISON_STARTS = 4
ABSENT_LOOK_S = 60.0
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 120.0


class End(StrEnum):
    """How an attempt ended, as far as its task is concerned."""

    DONE = "done"
    AGAIN = "again"  # by itself, later
    WAITING = "waiting"  # for another resource
    FAILED = "failed"  # a person has to mend something
    HELD = "held"  # a person has to decide something
    NOTHING = "nothing"  # nobody asked, or somebody else is at it
    SUSPECT = "suspect"  # has to be run alone, in a child process


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt's end, in words that hold no patient's value."""

    kind: End
    words: str


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
            return _not_claimed(claim)
        return self._guarded(claim, Budget(self._budget_s, self._monotonic))

    def _guarded(self, claim: Claim, budget: Budget) -> Ended:
        """Run an attempt and turn whatever stops it into one of the ends."""
        try:
            if claim.starts > POISON_STARTS:
                return self._fail(claim, "poison", f"{POISON_STARTS} starts in a row had no end: it kills its process")
            return self._attempt(claim, budget)
        except Again as again:
            return self._again(
                claim, again.reason, str(again), after_s=again.after_s, until=again.until, counts=again.counts
            )
        except (MedplumUnavailable, LegacyUnavailable) as trouble:
            reason = "medplum" if isinstance(trouble, MedplumUnavailable) else "legacy"
            return self._again(claim, reason, str(trouble), after_s=trouble.retry_after_s or 0.0)
        except MedplumRefused as refused:
            return self._again(claim, "medplum refused", str(refused), after_s=BACKOFF_MOST_S)
        except (Paused, LeaseLost) as stopped:
            return self._again(
                claim, "paused" if isinstance(stopped, Paused) else "lease lost", str(stopped), counts=False
            )
        except (Hold, DeleteBudgetSpent, BadKey) as doubt:
            reason = (
                doubt.reason if isinstance(doubt, Hold) else "budget" if isinstance(doubt, DeleteBudgetSpent) else "key"
            )
            return self._hold(claim, reason, str(doubt))
        except LedgerUnavailable:
            raise
        except Exception as bug:  # a defect of ours must end the attempt, or it would look like a poisoned resource
            ours = isinstance(bug, ReverseSyncError)
            return self._fail(claim, "defect", str(bug) if ours else f"{type(bug).__name__} at {where(bug)}")

    def _attempt(self, claim: Claim, budget: Budget) -> Ended:
        self._let_old_writes_land(claim)
        route = self._routes.get(claim.resource_type)
        if route is None or claim.phase in {Phase.OFF, Phase.RETIRED}:
            return self._finish(claim, _unread(claim, f"the route is {claim.phase if route else 'not there'}"))
        started_s = budget.spent_s()
        read = self._medplum.read(claim.reference, deadline_s=budget.left_s("read"))
        read_at = claim.claimed_at + timedelta(seconds=started_s)
        match read:
            case Absent():
                return self._absent(claim, read_at)
            case Deleted():
                settlement = Settlement(
                    Disposition.UNCHANGED, read.version_id, read.last_updated, read_at, deleted=True
                )
                kept = Skip("deleted in Medplum; this route keeps what it wrote") if route.deleted == "keep" else None
                return self._apply(claim, budget, route, kept or MappedAbsent("deleted in Medplum"), settlement)
            case Present():
                self._check_whole(claim, read)
                settlement = Settlement(
                    Disposition.UNCHANGED, read.version_id, read.last_updated, read_at, author=read.author
                )
                return self._map(claim, budget, route, read, settlement)

    def _map(self, claim: Claim, budget: Budget, route: Route[Any], read: Present, settlement: Settlement) -> Ended:
        try:
            resource = model(read.body, claim.resource_type)
            result = apply(
                route, resource, Context.of(resource, zone=route.to.api.zoneinfo, medplum=self._medplum_base_url)
            )
        except Unmappable as problem:
            detail = f"{problem.line or problem.field}: {problem.why}" if problem.line or problem.field else problem.why
            return self._fail(claim, "unmappable", detail, settlement)
        except (InvalidResource, BadResource) as problem:
            return self._fail(claim, "invalid", str(problem), settlement)
        return self._apply(claim, budget, route, result, settlement)

    def _apply(
        self,
        claim: Claim,
        budget: Budget,
        route: Route[Any],
        result: Mapped | Skip | MappedAbsent | Unsupported,
        settlement: Settlement,
    ) -> Ended:
        """Turn what the mapping says into steps, take them, and settle."""
        if isinstance(result, Skip):
            return self._finish(claim, _said(settlement, Disposition.SKIPPED, result.rule))
        if isinstance(result, Unsupported):
            for link in claim.links:
                self._ledger.leave_behind(claim, link.slot, result.why)
            return self._finish(claim, _said(settlement, Disposition.SKIPPED, result.why))
        records = result.records if isinstance(result, Mapped) else ()
        steps = plan(
            records,
            claim.links,
            claim.unresolved,
            now=claim.claimed_at,
            is_written=lambda digest, record: self._ledger.sealer.matches(digest, record.canonical()),
        )
        if claim.phase is Phase.SHADOW:
            return self._finish(claim, _said(settlement, Disposition.SKIPPED, "shadow: nothing is sent"))
        missing = self._missing_parent(steps, keys := self._keys(steps))
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
        try:
            for step in steps:
                sender.take(step)
        except Refused as refused:
            return self._fail(claim, "refused", str(refused), settlement)
        except Unmappable as problem:
            return self._fail(claim, "unmappable", f"{problem.field}: {problem.why}", settlement)
        return self._finish(claim, self._disposed(claim, settlement, result, sender), sender)

    def _disposed(
        self, claim: Claim, settlement: Settlement, result: Mapped | MappedAbsent, sender: Sender
    ) -> Settlement:
        """Name what happened to the version that was read."""
        if sender.wrote:
            return _said(settlement, Disposition.APPLIED, sender.left_behind)
        if sender.left_behind:
            return _said(settlement, Disposition.SKIPPED, sender.left_behind)
        if isinstance(result, MappedAbsent) and not settlement.deleted:
            return _said(settlement, Disposition.SKIPPED, result.rule)
        if settlement.author is not None and settlement.author == self._medplum.own_author:
            return _said(settlement, Disposition.ECHO, None)
        return settlement

    def _let_old_writes_land(self, claim: Claim) -> None:
        """3c: while an announced write has no outcome, nothing more is sent before it can act no more."""
        bound = max((write.bound for write in claim.unresolved), default=None)
        if bound is not None and bound > claim.claimed_at:
            raise Again("unknown outcome", "an earlier write may still land", until=bound, counts=False)

    def _check_whole(self, claim: Claim, read: Present) -> None:
        """2: a member that the notification carried and our read lacks would be cleared in the legacy system."""
        notified = claim.notified.get(read.version_id)
        lacking = compare(notified, read.body) if notified is not None else None
        if lacking is None:
            return
        why = f"our client may not read {lacking}, which Medplum sent: widen its access policy, then resume"
        self._ledger.pause([claim.resource_type], who="reverse-sync", why=why)
        raise Hold("partial read", why)

    def _absent(self, claim: Claim, read_at: datetime) -> Ended:
        """2: absent is never believed at once, and never leads to a delete without a person."""
        if claim.absent_since is None or claim.claimed_at - claim.absent_since < timedelta(seconds=ABSENT_LOOK_S * 0.9):
            words = "Medplum shows neither the resource nor its deletion; looking again"
            self._ledger.look_later(claim, reason="absent", detail=words, after_s=ABSENT_LOOK_S)
            return Ended(End.AGAIN, words)
        if claim.links or claim.unresolved or claim.sent_by_medplum:
            return self._hold(claim, "absent", "Medplum sent it, this client may not read it, or it was expunged")
        if claim.delete_hint is not None:
            settlement = Settlement(Disposition.UNCHANGED, None, None, read_at, deleted=True, rule="never seen here")
            return self._finish(claim, settlement)
        return self._fail(claim, "absent", "another resource refers to it, and Medplum does not show it to this client")

    def _keys(self, steps: tuple[Step, ...]) -> Mapping[str, Keys]:
        """Look up the keys of every record that the steps name; a delete may stand under a parent that is deleted too."""
        named = {reference for step in steps if step.record is not None for reference in step.record.references()}
        under = {
            reference
            for step in steps
            for parents in (step.link.parents if step.link else {}, *(write.parents for write in step.unresolved))
            for reference in parents.values()
        }
        return self._ledger.keys_of(sorted(named), buried=sorted(under - named)) if named | under else {}

    def _missing_parent(self, steps: tuple[Step, ...], keys: Mapping[str, Keys]) -> str | None:
        wanted = (
            step.record.references()
            for step in steps
            if step.record is not None and (step.operation is not None or step.look)
        )
        return next(
            (reference for references in wanted for reference in sorted(references) if reference not in keys), None
        )

    def _wait(self, claim: Claim, parent: str, settlement: Settlement) -> Ended:
        words = f"waits for {parent}, which has no legacy record yet"
        if parent.partition("/")[0] not in self._routes:
            return self._fail(
                claim, "parent", f"{parent} has no route, so it will never have a legacy record", settlement
            )
        waiting = self._ledger.wait(claim, parent, words)
        if waiting is Wait.NO_RECORD:
            words = f"{parent} is settled without a legacy record: skipped, deleted, or in a circle with this one"
            self._ledger.fail(claim, reason="parent", detail=words, settlement=settlement, waiting_for=parent)
            return Ended(End.FAILED, words)
        return Ended(End.WAITING, words) if waiting is Wait.WAITS else Ended(End.AGAIN, f"{parent} has come")

    def _finish(self, claim: Claim, settlement: Settlement, sender: Sender | None = None) -> Ended:
        last = sender.last_answer() if sender is not None else None
        if not self._ledger.finish(claim, settlement, last=last):
            return Ended(End.AGAIN, "another attempt took over, or a person has to decide")
        return Ended(End.DONE, settlement.disposition)

    def _again(
        self,
        claim: Claim,
        reason: str,
        words: str,
        *,
        after_s: float = 0.0,
        until: datetime | None = None,
        counts: bool = True,
    ) -> Ended:
        if counts:
            after_s = max(after_s, backoff_s(claim.attempts))
        self._ledger.release(claim, reason=reason, detail=words, after_s=after_s, until=until, counts=counts)
        return Ended(End.AGAIN, f"{reason}: {words}")

    def _fail(self, claim: Claim, reason: str, words: str, settlement: Settlement | None = None) -> Ended:
        failed = None if settlement is None else _said(settlement, Disposition.FAILED, words)
        self._ledger.fail(claim, reason=reason, detail=words, settlement=failed)
        return Ended(End.FAILED, f"{reason}: {words}")

    def _hold(self, claim: Claim, reason: str, words: str) -> Ended:
        self._ledger.hold(claim, reason=reason, detail=words)
        return Ended(End.HELD, f"{reason}: {words}")


def backoff_s(attempts: int) -> float:
    """Draw the wait before the next try, in seconds: doubling, capped, with full jitter."""
    return random.uniform(0.0, min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempts, 20)))  # noqa: S311  no secret


def _not_claimed(refused: NotClaimed) -> Ended:
    if refused.why is Refusal.SUSPECT:
        return Ended(End.SUSPECT, "its last start had no end")
    if refused.why in {Refusal.NOT_YET, Refusal.PAUSED}:
        return Ended(End.AGAIN, f"{refused.why}{f' before {refused.until:%H:%M:%S}Z' if refused.until else ''}")
    return Ended(End.NOTHING, refused.why)


def _unread(claim: Claim, rule: str) -> Settlement:
    return Settlement(Disposition.SKIPPED, None, None, claim.claimed_at, rule=rule)


def _said(settlement: Settlement, disposition: Disposition, rule: str | None) -> Settlement:
    return Settlement(
        disposition,
        settlement.version_id,
        settlement.last_updated,
        settlement.read_at,
        deleted=settlement.deleted,
        author=settlement.author,
        rule=rule,
    )
