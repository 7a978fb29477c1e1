"""The commands around Medplum's Subscriptions: plan, apply, status, remove, rotate-secret.

All but `status` need an administrator's credential, which no process of the service has. None prints a secret.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from worker.cli.ask import as_json, print_json
from worker.cli.ledger import opened, operator
from worker.cli.words import ago, count, span
from worker.errors import LedgerError, SettingsInvalid
from worker.ledger.subscribing import KeptSecret, Subscribed, SubscriptionState
from worker.settings import AdminSettings

if TYPE_CHECKING:  # it comes to FHIR's models, which cost half a second: only who needs them pays
    from worker.subscriptions.applying import Desk, Seen

_BEFORE = {
    "create": "would be made",
    "change": "would be changed",
    "keep": "is as it should be",
    "refuse": "REFUSED",
    "extra": "ours, and no route needs it: `subscriptions remove --extra`",
    "double": "ours, the second of its type: every change comes twice: `subscriptions remove --extra`",
}
_AFTER = _BEFORE | {"create": "made", "change": "changed"}
_WATCH = "watch"  # the job's name in the ledger


@click.group()
def subscriptions() -> None:
    """Keep Medplum's Subscriptions as the routes need them."""


@subscriptions.command("plan")
def plan() -> None:
    """Tell what `apply` would do. Changes nothing. Exit code 1 if there is something to do."""
    with _desk() as desk:
        seen = desk.look()
    click.echo("\n".join(_of_plan(seen, _BEFORE)))
    raise SystemExit(1 if seen.to_do or seen.refused else 0)


@subscriptions.command("apply")
def apply() -> None:
    """Make and change Subscriptions: one for each type that a route needs, marked as ours.

    Those of others are left alone. Broken off, it is run again.
    """
    operator()
    with _desk() as desk:
        seen = desk.look()
        desk.apply(seen)
    click.echo("\n".join(_of_plan(seen, _AFTER)))
    raise SystemExit(1 if seen.refused else 0)


@subscriptions.command("rotate-secret")
@click.argument("types", nargs=-1, metavar="[TYPE]…")
def rotate_secret(types: tuple[str, ...]) -> None:
    """Give Subscriptions new secrets: of these types, or all. The old ones stay accepted until nothing uses them."""
    operator()
    with _desk() as desk:
        rotated = desk.rotate(types)
    click.echo(f"new secrets for {', '.join(rotated)}; the old ones are retired once they signed nothing for an hour")


@subscriptions.command("remove")
@click.argument("types", nargs=-1, metavar="[TYPE]…")
@click.option("--extra", is_flag=True, help="Those of ours that no route needs, and the second ones of a type.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(types: tuple[str, ...], extra: bool, yes: bool) -> None:
    """Delete Subscriptions of ours: their types are not told of changes any more."""
    operator()
    if bool(types) == extra:
        raise LedgerError("name the types, or say --extra")
    if not yes:
        what = "those that no route needs" if extra else ", ".join(types)
        click.confirm(f"Medplum will not tell of changes any more: {what}. Go on?", abort=True, err=True)
    with _desk() as desk:
        gone = desk.remove(types, extra=extra)
    click.echo("\n".join(f"{one}  deleted" for one in gone) or "nothing of ours was there")


@subscriptions.command("status")
@as_json
def status(as_json: bool) -> None:
    """Tell how each Subscription stands, by the last look of the watch. Exit code 1 if one is in trouble."""
    with opened() as ledger:
        rows, kept = ledger.subscriptions(), ledger.subscription_secrets()
        receivers, last = len(ledger.receivers()), ledger.last_job(_WATCH)
    if as_json:
        print_json([_as_json(row, kept) for row in rows])
    else:
        now = datetime.now(UTC)
        lines = [line for row in rows for line in _of_row(row, kept, now)]
        click.echo("\n".join(lines) or "none yet: reverse-sync subscriptions apply")
        click.echo(f"{count(receivers, 'receiver')} alive; last look of the watch: {last or 'never'}")
    raise SystemExit(0 if all(row.look.state is SubscriptionState.OK for row in rows) else 1)


@contextmanager
def _desk() -> Iterator[Desk]:
    """Open the ledger and Medplum as its administrator."""
    from worker.mapping import load_routes
    from worker.medplum.admin import Admin
    from worker.subscriptions.applying import Desk
    from worker.subscriptions.wanted import wanted

    settings = AdminSettings.read()
    routes = load_routes(settings.routes)
    with opened() as ledger:
        if not ledger.sealer.can_seal:
            raise SettingsInvalid(
                "REVERSE_SYNC_PAYLOAD_KEY is missing: secrets are kept sealed (`reverse-sync new-key`)"
            )
        known = ledger.routes()
        if not known:
            raise LedgerError("the ledger knows no routes: run `reverse-sync migrate` first")
        needed = wanted(routes, known, endpoint=settings.endpoint, token=settings.webhook_token)
        with Admin.admin(settings) as admin:
            yield Desk(ledger=ledger, admin=admin, wanted=needed, endpoint=settings.endpoint, say=click.echo)


def _of_plan(seen: Seen, words: Mapping[str, str]) -> Iterator[str]:
    if not seen.steps:
        yield "no route is live, in shadow or paused: no Subscription is needed"
    for step in seen.steps:
        named = f"  {step.found.reference}" if step.found is not None else ""
        yield f"{step.resource_type}{named}  {words[step.doing.value]}"
        for difference in step.words:
            yield f"    {difference}"
    for one in seen.strangers:
        why = "another deployment's: it sends elsewhere" if one.ours else "not ours, and sends to our endpoint as well"
        yield f"{one.resource_type}  {one.reference}  {why}: left alone"


def _of_row(row: Subscribed, kept: Sequence[KeptSecret], now: datetime) -> Iterator[str]:
    look = row.look

    def of_age(moment: datetime) -> str:
        return ago((now - moment).total_seconds())

    named = f"Subscription/{row.medplum_id}" if row.medplum_id else "none"
    yield f"{row.resource_type}  {named}  {look.state} since {of_age(row.since)}"
    if look.reason:
        yield f"    {look.reason}"
    if look.gives_up_at is not None:
        left = span((look.gives_up_at - now).total_seconds())
        yield f"    {count(look.failing, 'event')} failing, Medplum gives up on the first in {left}"
    heard = of_age(row.last_delivery_at) if row.last_delivery_at is not None else "never"
    looked = of_age(row.looked_at) if row.looked_at is not None else "never"
    yield f"    last delivery {heard}; looked at {looked}"
    mine = [one for one in kept if one.resource_type == row.resource_type]
    for one in mine if len(mine) > 1 else ():
        used = f"last used {of_age(one.used_at)}" if one.used_at is not None else "not used yet"
        given = "in Medplum" if one.set_at is not None else "known to receivers alone: `subscriptions rotate-secret`"
        yield f"    secret {one.name}: {given}, {used}"


def _as_json(row: Subscribed, kept: Sequence[KeptSecret]) -> dict[str, Any]:
    moments = {
        "since": row.since,
        "sure_until": row.sure_until,
        "looked_at": row.looked_at,
        "last_delivery_at": row.last_delivery_at,
        "gives_up_at": row.look.gives_up_at,
    }
    return {
        "type": row.resource_type,
        "subscription": row.medplum_id,
        "state": row.look.state.value,
        "reason": row.look.reason,
        "failing": row.look.failing,
        "oldest_attempt": row.look.oldest_attempt,
        **{name: None if moment is None else moment.isoformat() for name, moment in moments.items()},
        "secrets": [one.name for one in kept if one.resource_type == row.resource_type],
    }


COMMANDS = (subscriptions,)
