"""The watch: looks at each Subscription, alarms once per change of state, switches on again what was switched off.

It runs in a worker, which may read Subscription and AuditEvent; to switch one on again it has to write Subscription.
What is in doubt meanwhile becomes a window, which catch-up proves: from the last look that found all well, and then
look by look, so that catch-up stands in for a Subscription that sends nothing. It never reads a change itself, and no
alarm holds a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from worker import log
from worker.deadline import deadline
from worker.errors import BadResource, MedplumError, MedplumRefused
from worker.ledger import Ledger
from worker.ledger.subscribing import KeptSecret, Look, Subscribed, SubscriptionState
from worker.mapping import Declared
from worker.medplum import Medplum
from worker.metrics import SUBSCRIPTION_ALARMS
from worker.subscriptions.failures import Failure, failing, gave_up
from worker.subscriptions.found import Found
from worker.subscriptions.judging import judge
from worker.subscriptions.reading import CALL_S, failures, newest, ours
from worker.subscriptions.wanted import needed

__all__ = ["DOUBTS", "JOB", "MARGIN", "Watch"]

JOB: Final = "watch"
"""The name under which its last look stands among the ledger's jobs."""

MARGIN: Final = timedelta(minutes=1)
"""A window begins so long before the last good look: what changed then may not have been sent yet."""

TURN_S: Final = 40.0
"""For all calls of one turn together: a worker ends itself in which a task outlives an attempt's lease."""

SILENT_AFTER: Final = timedelta(minutes=5)
"""A version that nobody told us of for so long was not sent."""

RETIRES_AFTER: Final = timedelta(hours=1)
"""A secret that gave way to another is forgotten once it signed nothing for so long."""

_READ: Final = "the watch needs a client that may read and search Subscription and AuditEvent"
_OFF: Final = frozenset({SubscriptionState.OFF, SubscriptionState.ERROR})
DOUBTS: Final[Mapping[SubscriptionState, str]] = {
    SubscriptionState.OFF: "subscription was off",
    SubscriptionState.ERROR: "subscription was off",
    SubscriptionState.MISSING: "subscription was missing",
    SubscriptionState.CHANGED: "subscription was changed by hand",
    SubscriptionState.FAILING: "deliveries failed",
    SubscriptionState.SILENT: "subscription was silent",
}
"""Why the time until a Subscription was well again is in doubt, by the state that it was in."""

GAVE_UP: Final = "Medplum gave up on deliveries"

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What one turn of the watch has read of all Subscriptions."""

    found: Mapping[str, Found]
    secrets: Sequence[KeptSecret]
    criteria: Mapping[str, str]
    at: datetime


class Watch:
    """The watch of one process."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        medplum: Medplum,
        routes: Declared,
        rearms: bool = True,
        silent_after: timedelta = SILENT_AFTER,
        retires_after: timedelta = RETIRES_AFTER,
        within_s: float = TURN_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger, self._medplum, self._routes = ledger, medplum, routes
        self._rearms, self._silent_after, self._retires_after = rearms, silent_after, retires_after
        self._within_s, self._clock = within_s, clock
        self._said: set[str] = set()

    def turn(self) -> str:
        """Look at every Subscription once. Returns what was seen, in words.

        Raises:
            LedgerUnavailable: what was not noted is seen again in the next turn.
        """
        with deadline(self._within_s):
            return self._turn()

    def _turn(self) -> str:
        rows = {row.resource_type: row for row in self._ledger.subscriptions()}
        if not rows:
            return "no Subscription is watched: reverse-sync subscriptions apply"
        criteria = needed(self._routes, self._ledger.routes())
        at = self._clock()
        try:
            ids = {row.medplum_id for row in rows.values() if row.medplum_id is not None}
            found = {one.id: one for one in ours(self._medplum, ids=ids)}
        except (MedplumError, BadResource) as trouble:
            return self._blind(trouble)
        sight = _Sight(found, self._ledger.subscription_secrets(), criteria, at)
        for name, row in rows.items():
            if name not in criteria and row.look.state is not SubscriptionState.OK:
                self._ledger.note_look(name, Look(SubscriptionState.OK, "no route needs it"), sure_until=None)
        states = [self._watch(name, rows.get(name), sight) for name in sorted(criteria)]
        self._retire(sight)
        troubled = [state for state in states if state is not SubscriptionState.OK]
        words = f"looked at {len(states)}, {len(troubled)} in trouble" if troubled else f"all {len(states)} are well"
        self._ledger.job_done(JOB, words)
        return words

    def _watch(self, resource_type: str, row: Subscribed | None, sight: _Sight) -> SubscriptionState:
        """Look at one, note how it stands, and alarm if that is new."""
        mine = sight.found.get(row.medplum_id or "") if row is not None else None
        secrets = [one for one in sight.secrets if one.resource_type == resource_type]
        known = row.fingerprints if row is not None else {}
        look = judge(mine, known, secrets, self._ledger.sealer.matches)
        if look.state is SubscriptionState.OK and row is not None and mine is not None:
            try:
                look = self._deliveries(row, mine, sight)
            except (MedplumError, BadResource) as trouble:
                _log.warning("what became of deliveries is not known now", type=resource_type, error=trouble)
                return row.look.state  # nothing is noted, so nothing counts as well
        if look.state is SubscriptionState.OK:
            self._well(resource_type, row, until=sight.at)
            return look.state
        self._note(resource_type, look, sure_until=None)
        if look.state in _OFF and mine is not None and self._rearms and self._rearm(mine):
            self._well(resource_type, self._again(resource_type), until=self._clock())
            return SubscriptionState.OK
        if row is not None and look.state is not SubscriptionState.FAILING:
            self._doubt(resource_type, row, DOUBTS[look.state], until=sight.at)  # catch-up stands in, look by look
            self._note(resource_type, look, sure_until=sight.at)
        return look.state

    def _note(self, resource_type: str, look: Look, *, sure_until: datetime | None) -> None:
        """Note trouble, and alarm if it is new."""
        if self._ledger.note_look(resource_type, look, sure_until=sure_until):
            SUBSCRIPTION_ALARMS.labels(resource_type, look.state.value).inc()
            _log.error("a Subscription is in trouble", type=resource_type, state=look.state.value, why=look.reason)

    def _well(self, resource_type: str, row: Subscribed | None, *, until: datetime) -> None:
        """Note that all is well; the time since it last was becomes a window, if it was not."""
        if row is not None and row.look.state is not SubscriptionState.OK:
            self._doubt(resource_type, row, DOUBTS[row.look.state], until=until)
        if self._ledger.note_look(resource_type, Look(SubscriptionState.OK), sure_until=until):
            _log.warning("a Subscription is well again", type=resource_type)

    def _again(self, resource_type: str) -> Subscribed | None:
        return next((row for row in self._ledger.subscriptions() if row.resource_type == resource_type), None)

    def _doubt(self, resource_type: str, row: Subscribed, reason: str, *, until: datetime) -> None:
        since = (row.sure_until or row.since) - MARGIN
        self._ledger.doubt(resource_type, since, until, reason)
        _log.warning("a time is in doubt, and catch-up will prove it", type=resource_type, since=since, reason=reason)

    def _deliveries(self, row: Subscribed, mine: Found, sight: _Sight) -> Look:
        """Say whether what it sends comes through."""
        since = (row.sure_until or row.since) - MARGIN
        try:
            failed, complete = failures(self._medplum, mine.id, since=since)
        except MedplumRefused as refused:
            self._once(f"the watch cannot see deliveries that fail: {refused}; {_READ}")
            failed, complete = [], True
        if gave_up([one for one in failed if one.at > since + MARGIN], attempts=mine.attempts):
            self._doubt(row.resource_type, row, GAVE_UP, until=sight.at)
        still = self._unheard(failed)
        return _failing(still, mine, sight.at, complete=complete) or (
            _OK if failed else self._silent(row, sight) or _OK
        )

    def _unheard(self, failed: Collection[Failure]) -> list[Failure]:
        """Leave out events of resources that were heard of since: Medplum gave way to a newer version, or got through.

        It writes nothing where it drops an event, and its next attempt can be a day away.
        """
        heard = self._ledger.last_heard(frozenset(one.resource for one in failed))
        return [one for one in failed if one.resource not in heard or heard[one.resource] < one.at]

    def _silent(self, row: Subscribed, sight: _Sight) -> Look | None:
        """Say whether Medplum has a version that it should have told us of long ago, and did not.

        Asked is the search for the newest, so that a type in which nothing happens is never called silent. Where the
        criteria leaves some out, nobody can tell.
        """
        name = row.resource_type
        if sight.criteria[name] != name:
            return None
        last = newest(self._medplum, name)
        was_silent = row.look.state is SubscriptionState.SILENT
        if last is None:
            return None
        if last.last_updated > sight.at - self._silent_after:
            return row.look if was_silent else None
        heard = row.last_delivery_at is not None and row.last_delivery_at >= last.last_updated
        old = not was_silent and last.last_updated <= row.since
        if heard or old or self._ledger.was_notified(last.reference, last.version_id):
            return None
        minutes = int(self._silent_after.total_seconds() // 60)
        return Look(
            SubscriptionState.SILENT,
            f"Medplum has a version of {last.last_updated:%Y-%m-%d %H:%M:%S}Z, and did not send it within {minutes} "
            "min: reverse-sync check --end-to-end finds out why",
        )

    def _rearm(self, mine: Found) -> bool:
        """Switch one on again that was switched off."""
        error: dict[str, object] = {"error": None} if "error" in mine.resource else {}
        try:
            version = self._medplum.change(
                mine.reference, mine.version_id, {"status": "active", **error}, deadline_s=CALL_S
            )
        except MedplumRefused:
            self._once(
                "the workers' client may not write Subscription, so what is switched off stays off: let its "
                "AccessPolicy, or run `reverse-sync subscriptions apply` each time"
            )
            return False
        except MedplumError as trouble:
            _log.warning("a Subscription could not be switched on again now", type=mine.resource_type, error=trouble)
            return False
        if version is not None:
            _log.warning("a Subscription was switched on again", type=mine.resource_type, subscription=mine.id)
        return version is not None

    def _retire(self, sight: _Sight) -> None:
        """Forget secrets that nothing is signed with any more. One that stands in Medplum stays, however that came."""
        in_use = {one.secret for one in sight.found.values()}
        keep = [one.name for one in sight.secrets if one.value.get_secret_value() in in_use]
        for name, resource_type in self._ledger.retire_subscription_secrets(
            unused_for=self._retires_after, keep=keep
        ).items():
            _log.warning("a secret was retired: nothing is signed with it any more", type=resource_type, secret=name)

    def _blind(self, trouble: Exception) -> str:
        words = f"the Subscriptions cannot be read: {trouble}"
        self._once(f"{words}; {_READ}")
        self._ledger.job_done(JOB, words)
        return words

    def _once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            _log.error(words)


_OK: Final = Look(SubscriptionState.OK)


def _failing(failed: Collection[Failure], mine: Found, at: datetime, *, complete: bool) -> Look | None:
    """Tell of events that fail now; values of a record never stand in what Medplum notes of an attempt's answer."""
    now = failing(failed, attempts=mine.attempts, now=at)
    if now is None:
        return None
    last = now.latest
    answer = f"was answered {last.status}" if last.status is not None else "was not answered"
    number = now.events if complete else f"at least {now.events}"
    return Look(
        SubscriptionState.FAILING,
        f"{number} not delivered; the last attempt {answer}",
        now.events,
        now.oldest_attempt,
        now.gives_up_at,
    )
