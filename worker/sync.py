"""The algorithm: take one mirror, read what Medplum holds now, make the legacy record match. No Celery, SQL, HTTP here.

claim → read → decide → map → resolve references → for each record: announce, send, record → settle.

Every way out of an attempt is one of five ends that the ledger fences: finish, release (again later), wait, fail, hold.
What is raised on the way is turned into one of them by the table in `ends`. Each rule is in `docs/protocol.md`; the
numbers in comments are its sections.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from worker.asking import Asking
from worker.calling import Budget
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
from worker.ledger.phasing import OTHER_VERSION, SHADOWED
from worker.ledger.values import Claim, Disposition, Keys, LinkState, NotClaimed, Phase, Settlement
from worker.legacy.gate import Gate
from worker.mapping import Absent as MappedAbsent
from worker.mapping import Context, Mapped, Part, Parts, Route, Routes, Skip, Unsupported
from worker.medplum import Absent, Deleted, Medplum, Present
from worker.medplum.marked import TEST_RULE, is_test
from worker.medplum.quota import Priority
from worker.medplum.resource import compare, model
from worker.plan import Step, lacking, plan, references
from worker.sending import Sender, half_replaced
from worker.settings import WorkerSettings
from worker.shadowing import in_words, would_be
from worker.start import prepare
from worker.write_back import WriteBacks

__all__ = ["BACKOFF_FIRST_S", "BACKOFF_MOST_S", "POISON_STARTS", "End", "Ended", "Sync", "backoff_s"]

POISON_STARTS = 4
ABSENT_LOOK_S = 60.0
OTHER_VERSION_S = (5.0, 15.0)

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
        parts: Parts = MappingProxyType({}),
        gate: Gate,
        instance: str,
        lease_s: float,
        budget_s: float,
        send_within_s: float,
        stopping: Callable[[], bool] = lambda: False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._medplum, self._routes, self._gate = ledger, medplum, routes, gate
        self._parts, self._ends = parts, Ends(ledger)
        self._write_backs = WriteBacks(ledger=ledger, medplum=medplum, routes=routes, stopping=stopping)
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
            parts=routes.parts,
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

    def write_back(self, resource_type: str) -> str:
        """Put the keys of some of a type's records on their Medplum resources. Returns what was done, in words."""
        return self._write_backs.turn(resource_type)

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
        route = self._routes.get(claim.resource_type) or self._parts.get(claim.resource_type)
        if route is None or claim.phase in {Phase.OFF, Phase.RETIRED}:
            return self._ends.finish(claim, _unread(claim, f"the route is {claim.phase if route else 'not there'}"))
        if isinstance(route, Route) and claim.active_version not in {None, route.version}:
            raise _other_version(claim)
        read_at = claim.claimed_at + timedelta(seconds=budget.spent_s())
        read = self._medplum.read(claim.reference, deadline_s=budget.left_s("read"), priority=_priority(claim))
        if isinstance(read, Absent):
            return self._absent(claim, budget, route, read_at)
        settlement = _settlement(read, read_at)
        try:
            if isinstance(route, Part):
                return self._ends.finish(claim, self._of_part(claim, route, read, settlement))
            return self._match(claim, budget, route, self._wanted(claim, budget, route, read), settlement)
        except OF_THE_VERSION as refusal:
            if _half_replaced(claim):
                return self._ends.stop(claim, half_replaced(str(refusal)))
            return self._ends.stop(claim, refusal, settlement)

    def _of_part(self, claim: Claim, part: Part[Any], read: Present | Deleted, settlement: Settlement) -> Settlement:
        """Note whose part it is: to settle it tells that resource, and whoever had it before."""
        if _is_test(claim, read):
            return settlement.said(Disposition.SKIPPED, TEST_RULE)
        owner = None
        if isinstance(read, Present):
            resource = model(read.body, claim.resource_type)
            owner = part.owned_by(resource, Context.of(resource, zone="UTC", medplum=self._medplum_base_url))
        if owner is not None:
            self._ledger.note_part(claim.reference, owner)
        whose = f"part of its {owner.partition('/')[0]}" if owner else "part of another resource"
        return settlement.said(Disposition.SKIPPED, whose)

    def _wanted(self, claim: Claim, budget: Budget, route: Route[Any], read: Present | Deleted) -> Wanted:
        """Say what the legacy system should hold of the version that was read."""
        if isinstance(read, Deleted):
            kept = Skip("deleted in Medplum; this route keeps what it wrote")
            return kept if route.deleted == "keep" else MappedAbsent("deleted in Medplum")
        if _is_test(claim, read):
            return Skip(TEST_RULE)
        self._check_whole(claim, read)
        resource = model(read.body, claim.resource_type)
        ctx = Context.of(resource, zone=route.to.api.zoneinfo, medplum=self._medplum_base_url)
        note = partial(self._ledger.note_read, claim.reference)
        asking = Asking(self._medplum, note=note, left_s=budget.left_s, priority=_priority(claim))
        return asking.mapped(route, resource, ctx)

    def _match(self, claim: Claim, budget: Budget, route: Route[Any], wanted: Wanted, settlement: Settlement) -> Ended:
        """Turn what is wanted into steps, take them, and settle."""
        if isinstance(wanted, Skip | Unsupported):
            self._shadow(claim, route, settlement, ())
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, self._left(claim, wanted, settlement)))
        steps = plan(
            wanted.records if isinstance(wanted, Mapped) else (),
            claim.links,
            claim.unresolved,
            now=claim.claimed_at,
            is_written=lambda digest, record: self._ledger.sealer.matches(digest, record.canonical()),
            moved=route.moved,
            restored="create" if claim.lets_pass("restored") else route.restored,
        )
        if claim.phase is Phase.SHADOW:
            self._shadow(claim, route, settlement, steps)
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, SHADOWED))
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
            content=self._medplum.content,
            monotonic=self._monotonic,
        )
        for step in steps:
            sender.take(step)
        disposed = self._disposed(claim, settlement, wanted, sender)
        compared = self._shadow(claim, route, settlement, steps)
        rule = "; ".join(filter(None, [disposed.rule, compared])) or None
        return self._ends.finish(claim, replace(disposed, rule=rule), last=sender.last_answer())

    def _shadow(self, claim: Claim, route: Route[Any], read: Settlement, steps: tuple[Step, ...]) -> str | None:
        """Keep what would be sent while the route shadows; the first time that it is live, compare and forget it."""
        if claim.phase is Phase.SHADOW:
            self._ledger.keep_shadows(claim, read.version_id, route.version, would_be(steps))
        elif claim.shadowed:
            return in_words(self._ledger.drop_shadows(claim, read.version_id, would_be(steps)))
        return None

    def _left(self, claim: Claim, wanted: Skip | Unsupported, settlement: Settlement) -> str:
        """Name the rule by which nothing is written; what the API cannot hold any more is left behind."""
        rule = wanted.rule if isinstance(wanted, Skip) else wanted.why
        if _half_replaced(claim) and not settlement.deleted:
            raise half_replaced(rule)  # 9: it is not as it was, and nothing would ever make it so
        for link in claim.links:
            if link.state is LinkState.HALF_REPLACED:
                self._ledger.bury(claim, link.slot)
            if isinstance(wanted, Unsupported):
                self._ledger.leave_behind(claim, link.slot, rule)
        return rule

    def _disposed(
        self, claim: Claim, settlement: Settlement, wanted: Mapped | MappedAbsent, sender: Sender
    ) -> Settlement:
        """Name what happened to the version that was read. 3g: whose it is chooses the word, and nothing else."""
        own = settlement.author is not None and settlement.author == self._medplum.own_author
        if sender.wrote:
            return replace(settlement.said(Disposition.APPLIED, sender.rule), own=own)
        if sender.left_behind:
            return settlement.said(Disposition.SKIPPED, sender.left_behind)
        if isinstance(wanted, MappedAbsent) and not settlement.deleted:
            return settlement.said(Disposition.SKIPPED, wanted.rule)
        version = settlement.version_id
        if own or (version is not None and self._ledger.is_own(claim.reference, version)):
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

    def _absent(self, claim: Claim, budget: Budget, route: Route[Any] | Part[Any], read_at: datetime) -> Ended:
        """2: absent is never believed at once, and leads to a delete only by a person or the route's own words."""
        if claim.absent_since is None or claim.claimed_at - claim.absent_since < timedelta(seconds=ABSENT_LOOK_S * 0.9):
            words = "Medplum shows neither the resource nor its deletion; looking again"
            return self._ends.look_later(claim, reason="absent", words=words, after_s=ABSENT_LOOK_S)
        settlement = Settlement(Disposition.UNCHANGED, None, None, read_at, deleted=True)
        if isinstance(route, Part):
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, "part of another resource"))
        if claim.links or claim.unresolved:
            match route.expunged:
                case "absent":
                    return self._match(claim, budget, route, MappedAbsent("expunged in Medplum"), settlement)
                case "keep":
                    kept = Skip("expunged in Medplum; this route keeps what it wrote")
                    return self._match(claim, budget, route, kept, settlement)
        if self._was_test(claim):
            return self._ends.finish(claim, settlement.said(Disposition.SKIPPED, TEST_RULE))
        if claim.links or claim.unresolved or claim.sent_by_medplum:
            raise Hold("absent", "Medplum sent it, this client may not read it, or it was expunged")
        if claim.delete_hint is None:
            raise Fail("absent", "another resource refers to it, and Medplum does not show it to this client")
        return self._ends.finish(claim, settlement.said(Disposition.UNCHANGED, "never seen here"))

    def _was_test(self, claim: Claim) -> bool:
        """Tell whether it is a test resource of the doctor, who has removed it with its history."""
        if claim.links or claim.unresolved:
            return False
        told = any(is_test(body) for body in claim.notified.values())
        return told or self._ledger.was_settled_by(claim.reference, TEST_RULE)

    def _keys(self, steps: tuple[Step, ...]) -> Mapping[str, Keys]:
        """Look up the keys of every record that the steps name; a delete may stand under one that is deleted too."""
        named, under = references(steps)
        return self._ledger.keys_of(sorted(named), buried=sorted(under - named)) if named | under else {}

    def _wait(self, claim: Claim, parent: str, settlement: Settlement) -> Ended:
        """8: wait for a record that this one stands on, unless there will never be one."""
        if parent.partition("/")[0] not in self._routes:
            raise Fail("parent", f"{parent} has no route, so it will never have a legacy record")
        return self._ends.wait(claim, parent, settlement)


def _half_replaced(claim: Claim) -> bool:
    return any(link.state is LinkState.HALF_REPLACED for link in claim.links)


def _let_old_writes_land(claim: Claim) -> None:
    """3c: while an announced write has no outcome, nothing more is sent before it can act no more."""
    bound = max((write.bound for write in claim.unresolved), default=None)
    if bound is not None and bound > claim.claimed_at:
        raise Again("unknown outcome", "an earlier write may still land", until=bound, counts=False)


def _priority(claim: Claim) -> Priority:
    """2: looks that nobody asked for, and ids that a forged delete can name at will, come after live reads."""
    return Priority.SECOND_LOOK if claim.never_seen or not claim.asked else Priority.LIVE


def _other_version(claim: Claim) -> Again:
    """Old and new workers never rewrite each other's records: whoever maps by another version hands the mirror back."""
    why = f"the active mapping of {claim.resource_type} is not the one of this worker: see `reverse-sync routes`"
    return Again(OTHER_VERSION, why, after_s=random.uniform(*OTHER_VERSION_S), counts=False)  # noqa: S311  no secret


def _unread(claim: Claim, rule: str) -> Settlement:
    return Settlement(Disposition.SKIPPED, None, None, claim.claimed_at, rule=rule)


def _is_test(claim: Claim, read: Present | Deleted) -> bool:
    """Tell whether the doctor made it. What has a legacy record is no test resource, whatever its tags say."""
    return isinstance(read, Present) and not claim.links and not claim.unresolved and is_test(read.body)


def _settlement(read: Present | Deleted, read_at: datetime) -> Settlement:
    """Say what was read; *unchanged* stands until something is done."""
    deleted = isinstance(read, Deleted)
    author = None if isinstance(read, Deleted) else read.author
    return Settlement(
        Disposition.UNCHANGED, read.version_id, read.last_updated, read_at, deleted=deleted, author=author
    )
