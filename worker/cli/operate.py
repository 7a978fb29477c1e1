"""The commands by which a person acts: replay, pause, resume, adopt. Each is recorded with who, when and why."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from worker.cli import again
from worker.cli.ask import as_json, print_json
from worker.cli.ledger import opened, operator
from worker.cli.words import count
from worker.errors import LedgerError
from worker.ledger import Ledger, Selection
from worker.settings import WorkerSettings

_AGO = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType[datetime]):
    """A time, or how long ago it was."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if ago := _AGO.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        try:
            return datetime.fromisoformat(value).astimezone(UTC)  # without a zone it is the terminal's own
        except ValueError:
            self.fail("say how long ago, as in 30m, 2h or 3d, or a time, as in 2026-11-22T14:00Z", param, ctx)


@click.command()
@click.argument("references", nargs=-1, metavar="[REF]…")
@click.option("--all", "everything", is_flag=True, help="All that failed or is held, as far as the next options let.")
@click.option("--type", "resource_type", metavar="TYPE", help="With --all: of this resource type.")
@click.option("--reason", metavar="REASON", help="With --all: with this reason, as `failed` shows it.")
@click.option("--since", type=Moment(), help="With --all: that stand there since then, as in 2h or 2026-11-22T14:00Z.")
@click.option("--create-again", is_flag=True, help="The legacy records of REF… are gone for good: make new ones.")
@click.option("--slot", metavar="SLOT", help="With --create-again: of this one among a resource's records.")
@click.option("--why", help="Recorded with the action.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def replay(
    references: tuple[str, ...],
    everything: bool,
    resource_type: str | None,
    reason: str | None,
    since: datetime | None,
    create_again: bool,
    slot: str | None,
    why: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Try resources again, whatever is known of their legacy records.

    Says first how many there are. What was announced without an answer keeps its bound: a replay never overtakes a
    write that may still land. --create-again refuses a record that can be read and is there; where the API can look
    records up, it is looked for once more before another is made.
    """
    if everything == bool(references):
        raise click.UsageError("say which: references like Patient/1f0c, or --all")
    if references and (resource_type or reason or since):
        raise click.UsageError("--type, --reason and --since narrow --all down")
    if create_again:
        again.create_again(_named(references), slot, why=_needed(why), yes=yes, as_json=as_json)
        return
    if slot is not None:
        raise click.UsageError("--slot goes with --create-again")
    selection = Selection(references, resource_type, reason, since)
    who = operator()
    with opened() as ledger:
        chosen = ledger.replayable(selection)
        _refuse_unknown(references, chosen)
        if not chosen:
            _tell_replayed((), as_json=as_json, ledger=ledger)
            return
        if not yes:
            click.confirm(
                f"{_counted(chosen)} will be read from Medplum and written again. Go on?", abort=True, err=True
            )
        _tell_replayed(ledger.replay(selection, who=who, why=why), as_json=as_json, ledger=ledger)


def _named(references: Sequence[str]) -> Sequence[str]:
    if not references:
        raise click.UsageError("--create-again is for named references, never for --all")
    return references


def _needed(why: str | None) -> str:
    if not why:
        raise click.UsageError("--create-again needs --why: it is recorded")
    return why


def _refuse_unknown(references: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(references) - set(known))
    if unknown:
        raise LedgerError(f"the ledger does not know {', '.join(unknown)}: nothing was replayed")


def _counted(references: Sequence[str]) -> str:
    types = Counter(reference.partition("/")[0] for reference in references)
    by_type = ", ".join(f"{number:,} {name}" for name, number in sorted(types.items()))
    return f"{count(len(references), 'resource')} ({by_type})"


def _tell_replayed(replayed: Sequence[str], *, as_json: bool, ledger: Ledger) -> None:
    if as_json:
        print_json({"replayed": list(replayed)})
    elif not replayed:
        click.echo("nothing to replay")
    else:
        click.echo(f"{_counted(replayed)} due again; a worker takes each within seconds")
        _tell_paused(ledger)


@click.command()
@click.argument("types", nargs=-1, metavar="[TYPE]…")
@click.option("--why", required=True, help="Recorded, and shown as long as it is paused.")
def pause(types: tuple[str, ...], why: str) -> None:
    """Write nothing of these resource types any more, or of none at all. Effective within two seconds.

    What runs in that moment ends. Notifications go on being accepted and gather.
    """
    who = operator()
    with opened() as ledger:
        _refuse_unrouted(ledger, types)
        ledger.pause(types, who=who, why=why)
        _tell_paused(ledger)


@click.command()
@click.argument("types", nargs=-1, metavar="[TYPE]…")
@click.option("--why", required=True, help="Recorded.")
def resume(types: tuple[str, ...], why: str) -> None:
    """End the pauses of these resource types, or every pause."""
    who = operator()
    with opened() as ledger:
        if not types and ledger.paused_as_set_back():
            raise LedgerError("the ledger was set back in time: `reverse-sync recovered --why …` ends this pause")
        ended = ledger.resume(types, who=who, why=why)
        click.echo(f"{count(ended, 'pause')} ended" if ended else "that was not paused")
        _tell_paused(ledger)


def _refuse_unrouted(ledger: Ledger, types: Sequence[str]) -> None:
    routes = ledger.routes()
    unknown = sorted(set(types) - set(routes))
    if unknown:
        raise LedgerError(f"no route for {', '.join(unknown)}: the routes are {', '.join(routes) or 'none'}")


def _tell_paused(ledger: Ledger) -> None:
    for standing in ledger.paused():
        scope = "everything" if standing.scope == "*" else standing.scope
        click.echo(f"{scope} is paused, by {standing.who}: {standing.why}")


@click.command()
@click.option("--why", required=True, help="Recorded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(why: str, yes: bool) -> None:
    """Let this ledger belong to the Medplum and legacy systems of the settings from now on.

    For a server that got another address, or a restored one. What the ledger knows of the old systems' records is then
    believed of the new ones: never for another system with other records.
    """
    from worker.mapping import load_routes
    from worker.start import systems

    settings = WorkerSettings.read()
    named = systems(settings, load_routes(settings.routes))
    who = operator()
    for name, value in sorted(named.items()):
        click.echo(f"{name}: {value}", file=sys.stderr)
    if not yes:
        click.confirm("The ledger's keys and versions are those of these systems?", abort=True, err=True)
    with opened() as ledger:
        ledger.adopt_systems(named, who=who, why=why)
    click.echo("the ledger belongs to these systems now")


COMMANDS = (replay, pause, resume, adopt)
