"""The administrator's desk: makes Medplum's Subscriptions those that the routes need, and gives them other secrets.

A secret is kept in the ledger and known to every receiver before Medplum signs with it, and an old one is accepted
until the watch retires it: broken off anywhere, nothing is refused, and the same command goes on from there. Each
change is made under a test of the version that was read. Another's Subscription is never touched.
"""

from __future__ import annotations

import json
import secrets as random_source
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import SecretStr

from worker.errors import LedgerError, MedplumUnavailable
from worker.ledger import Ledger
from worker.ledger.subscribing import KeptSecret, Look, Subscribed, SubscriptionState
from worker.medplum.admin import Admin
from worker.subscriptions.found import Found
from worker.subscriptions.judging import judge
from worker.subscriptions.planning import Doing, Step, plan
from worker.subscriptions.reading import CALL_S, ours, to_endpoint
from worker.subscriptions.wanted import Wanted, digests
from worker.subscriptions.watching import DOUBTS, MARGIN

__all__ = ["Desk", "Seen", "knows"]

KNOWN_WITHIN_S: Final = 30.0
"""A receiver that lives looks every three seconds; one that does not know a secret after so long is in trouble."""

_LOOK_EVERY_S: Final = 0.2
_TRIES: Final = 4
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Seen:
    """What is there, and what has to be done."""

    steps: tuple[Step, ...]
    strangers: tuple[Found, ...]  # another's, that send to our endpoint as well, or carry our tag

    @property
    def to_do(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.doing in {Doing.CREATE, Doing.CHANGE})

    @property
    def refused(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.doing is Doing.REFUSE)


class Desk:
    """One administrator's session."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        admin: Admin,
        wanted: Sequence[Wanted],
        endpoint: str,
        say: Callable[[str], None],
        known_within_s: float = KNOWN_WITHIN_S,
    ) -> None:
        self._ledger, self._admin, self._wanted, self._say = ledger, admin, tuple(wanted), say
        self._endpoint = endpoint
        self._known_within_s = known_within_s

    def look(self) -> Seen:
        """Read what is there and compare it with what should be.

        Ours are those that the ledger names, and those with our tag that send to our endpoint: with the same tag and
        another endpoint they belong to another deployment.

        Raises:
            MedplumError, LedgerError: nothing is known.
        """
        rows = {row.resource_type: row for row in self._ledger.subscriptions()}
        ids = {row.medplum_id for row in rows.values() if row.medplum_id is not None}
        tagged = ours(self._admin, ids=ids)
        mine = [one for one in tagged if one.id in ids or one.endpoint == self._endpoint]
        steps = plan(self._wanted, mine, rows, self._ledger.subscription_secrets())
        known = {one.id for one in mine}
        there = {one.id: one for one in [*tagged, *to_endpoint(self._admin, self._endpoint)]}
        return Seen(steps, tuple(one for one in there.values() if one.id not in known))

    def apply(self, seen: Seen) -> None:
        """Do what has to be done, and note in the ledger what is there.

        Raises:
            LedgerError: a receiver does not come to know a new secret; nothing was changed in Medplum.
            MedplumError: what was done so far is noted; apply again.
        """
        secrets = self._secrets_for([step.resource_type for step in seen.to_do])
        for step in seen.steps:
            if step.wanted is not None and step.doing in {Doing.CREATE, Doing.CHANGE, Doing.KEEP}:
                self._apply(step, step.wanted, secrets.get(step.resource_type))

    def rotate(self, types: Collection[str] = ()) -> list[str]:
        """Give Subscriptions new secrets; the old ones stay accepted until the watch retires them. Returns the types.

        Raises:
            LedgerError: a receiver does not come to know the new secret; Medplum signs with the old one.
            MedplumError: the types that were not done sign with the old one; rotate again goes on with the new one.
        """
        steps = {step.resource_type: step for step in self.look().steps if step.doing in {Doing.KEEP, Doing.CHANGE}}
        unknown = sorted(set(types) - set(steps))
        if unknown or not steps:
            raise LedgerError(f"no Subscription of ours for {', '.join(unknown) or 'any type'}: apply them first")
        chosen = [name for name in steps if not types or name in types]
        secrets = self._secrets_for(chosen, new=True)
        for name in chosen:
            step = steps[name]
            assert step.wanted is not None  # noqa: S101 - of those that are kept or changed each is wanted
            self._apply(Step(Doing.CHANGE, name, step.found, step.wanted, ("secret",)), step.wanted, secrets[name])
        return chosen

    def remove(self, types: Collection[str] = (), *, extra: bool = False) -> list[str]:
        """Delete Subscriptions of ours: of these types, or (`extra`) those that no route needs and the second ones.

        Returns what was deleted. A secret is forgotten with its Subscription.
        """
        steps = self.look().steps
        chosen = [
            step
            for step in steps
            if step.found is not None
            and (step.doing in {Doing.EXTRA, Doing.DOUBLE} if extra else step.resource_type in types)
        ]
        for step in chosen:
            if step.found is not None:
                self._admin.delete(step.found.reference, deadline_s=CALL_S)
        gone = {step.resource_type for step in chosen if step.doing is not Doing.DOUBLE}
        for name in sorted(gone | (set() if extra else set(types))):
            self._ledger.unsubscribed(name)
        return [f"{step.resource_type}  {step.found.reference}" for step in chosen if step.found is not None]

    # one Subscription

    def _apply(self, step: Step, wanted: Wanted, secret: KeptSecret | None) -> None:
        """Make one as it should be, and note it. What was in doubt before becomes a window."""
        row, found = self._row(step.resource_type), step.found
        look = self._judged(row, found)
        if (
            step.doing is Doing.KEEP
            and row is not None
            and look.state is SubscriptionState.OK
            and not _stood_still(row)
        ):
            self._signs(found, secret)
            return
        if row is not None and look.state is not SubscriptionState.OK and not _stood_still(row):
            self._ledger.note_look(row.resource_type, look, sure_until=None)  # broken off from here on, it is known
            row = self._row(step.resource_type)
        if found is None:
            assert secret is not None  # noqa: S101 - `_secrets_for` made one
            medplum_id = str(self._admin.create(wanted.resource(secret.value), deadline_s=CALL_S)["id"])
        else:
            medplum_id = found.id
            if step.doing is Doing.CHANGE:
                assert secret is not None  # noqa: S101 - as above
                self._change(wanted, found, secret)
        self._doubt(row)
        fingerprints = digests(wanted.members(), self._ledger.sealer.digest)
        self._ledger.subscribed(wanted.resource_type, medplum_id=medplum_id, fingerprints=fingerprints)
        self._signs(found, secret)

    def _row(self, resource_type: str) -> Subscribed | None:
        return next((row for row in self._ledger.subscriptions() if row.resource_type == resource_type), None)

    def _judged(self, row: Subscribed | None, found: Found | None) -> Look:
        """Say whether somebody changed it since it was applied, whether the watch has seen that or not."""
        if row is None:
            return Look(SubscriptionState.OK)
        secrets = [one for one in self._ledger.subscription_secrets() if one.resource_type == row.resource_type]
        return judge(found, row.fingerprints, secrets, self._ledger.sealer.matches)

    def _signs(self, found: Found | None, secret: KeptSecret | None) -> None:
        """Note which secret Medplum signs with."""
        known = self._ledger.subscription_secrets()
        there = [one for one in known if found is not None and one.value.get_secret_value() == found.secret]
        for one in [secret] if secret is not None else there:
            self._ledger.subscription_secret_set(one.name)

    def _change(self, wanted: Wanted, found: Found, secret: KeptSecret) -> None:
        """Change one in place; where somebody else was faster, on top of what they made of it."""
        for _ in range(_TRIES):
            members = wanted.change(found, secret.value)
            if self._admin.change(found.reference, found.version_id, members, deadline_s=CALL_S) is not None:
                return
            again = [one for one in ours(self._admin, ids={found.id}) if one.id == found.id]
            if not again:
                raise MedplumUnavailable(f"{found.reference} was deleted meanwhile: apply again")
            found = again[0]
        raise MedplumUnavailable(f"somebody else changed {found.reference} each time: apply again")

    def _doubt(self, row: Subscribed | None) -> None:
        """Open a window from the last look that found all well until now, where it was not well."""
        if row is None or row.look.state is SubscriptionState.OK:
            return
        since = (row.sure_until or row.since) - MARGIN
        until = self._ledger.doubt_until_now(row.resource_type, since, DOUBTS[row.look.state])
        self._say(f"{row.resource_type}: from {since:%Y-%m-%d %H:%M:%S}Z to {until:%H:%M:%S}Z is in doubt: catch-up")

    # secrets

    def _secrets_for(self, types: Collection[str], *, new: bool = False) -> Mapping[str, KeptSecret]:
        """Give the newest secret of each type, made where there is none; known to every receiver before it is given.

        `new`: one that Medplum does not sign with yet; the one of a rotation that was broken off is taken up.
        """
        kept = {one.resource_type: one for one in self._ledger.subscription_secrets()}  # the newest of each comes last
        for name in types:
            if name not in kept or (new and kept[name].set_at is not None):
                self._ledger.keep_subscription_secret(name, SecretStr(random_source.token_urlsafe(_SECRET_BYTES)))
        kept = {one.resource_type: one for one in self._ledger.subscription_secrets() if one.resource_type in types}
        lacking = sorted(set(types) - set(kept))
        if lacking:
            raise LedgerError(f"the secrets of {', '.join(lacking)} do not open: is REVERSE_SYNC_PAYLOAD_KEY the same?")
        self._wait_until_known({one.name for one in kept.values()})
        return kept

    def _wait_until_known(self, names: Collection[str]) -> None:
        """Wait until every receiver that lives says that it knows these secrets. One that starts reads them first."""
        until = time.monotonic() + self._known_within_s
        while ignorant := [one for one, said in self._ledger.receivers().items() if not set(names) <= knows(said)]:
            if time.monotonic() > until:
                raise LedgerError(
                    f"the receiver {ignorant[0]} does not know the new secret, so Medplum was not given it: see its "
                    "log (does it have REVERSE_SYNC_PAYLOAD_KEY?), or wait 20 s if it is gone; then run this again"
                )
            time.sleep(_LOOK_EVERY_S)


def _stood_still(row: Subscribed) -> bool:
    """Tell whether, by the last look, it sent nothing, or not what it should: applied, it is well again."""
    return row.look.state not in {SubscriptionState.OK, SubscriptionState.FAILING, SubscriptionState.SILENT}


def knows(said: str) -> frozenset[str]:
    """Read what a receiver says of itself."""
    try:
        return frozenset(json.loads(said)["secrets"])
    except (ValueError, KeyError, TypeError):
        return frozenset()
