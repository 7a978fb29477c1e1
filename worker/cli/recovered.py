"""`reverse-sync recovered`: a person says that something was restored, and since when. Recorded with who and why."""

from __future__ import annotations

from datetime import datetime

import click

from worker.cli.ledger import opened, operator
from worker.cli.links import identified, rebuilt, systems
from worker.cli.operate import Moment
from worker.cli.words import count
from worker.ledger import Ledger
from worker.recovered import Recovering, blind_collections, in_words

_UNPROVEN = "catch-up reads it by itself, or at once with `reverse-sync catch-up`; `reverse-sync status` shows the rest"


@click.command()
@click.option(
    "--since", type=Moment(), help="The ledger was restored to this time; else it is told by its last attempt."
)
@click.option(
    "--accept", is_flag=True, help="Alone: the ledger is right as it stands. With --done: whatever is in doubt."
)
@click.option("--legacy", type=Moment(), help="The legacy system was restored to this time.")
@click.option("--medplum", type=Moment(), help="Medplum was restored to this time.")
@click.option("--done", is_flag=True, help="All is well again: creates need no look-up any more.")
@click.option("--why", required=True, help="Recorded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def recovered(
    since: datetime | None,
    accept: bool,
    legacy: datetime | None,
    medplum: datetime | None,
    done: bool,
    why: str,
    yes: bool,
) -> None:
    """Go on after a restore: of the ledger, or with --legacy or --medplum of one of the others.

    After the ledger was set back, everything is paused. This starts the recovered mode: links are rebuilt from the
    identifiers in Medplum, no digest is believed, every create is looked up first; then the pause ends. --done ends
    the mode. Times are like 2h or 2026-11-22T14:00Z.
    """
    if sum((since is not None, accept and not done, legacy is not None, medplum is not None, done)) > 1:
        raise click.UsageError("one at a time: --since, --accept, --legacy, --medplum or --done (with --accept or not)")
    with opened() as ledger:
        recovering = Recovering(ledger, operator(), why, tell=lambda line: click.echo(line, err=True))
        if done:
            _done(recovering, anyway=accept)
        elif accept:
            _accept(ledger, recovering, yes=yes)
        elif legacy is not None:
            _legacy(recovering, legacy, yes=yes)
        elif medplum is not None:
            _medplum(recovering, medplum, yes=yes)
        else:
            _set_back(ledger, recovering, recovering.since_when(since), yes=yes)


def _set_back(ledger: Ledger, recovering: Recovering, since: datetime, *, yes: bool) -> None:
    _ask(f"The ledger has forgotten what happened since {_moment(since)}?", yes=yes)
    with systems() as (settings, routes, asking):
        types = identified(routes, ())

        def rebuild() -> None:
            report = rebuilt(ledger, settings, routes, asking, types, who=recovering.who, why=recovering.why)
            click.echo("\n".join(report.lines(applied=True)))

        windows = recovering.ledger_set_back(since, rebuild if types else lambda: click.echo(_NO_IDENTIFIER))
    click.echo(f"recovered mode since {_moment(since)}: every create is looked up first; --done ends it")
    if windows:
        click.echo(f"{count(windows, 'window')} of time not proven yet: {_UNPROVEN}")
    _tell_pauses(ledger)


_NO_IDENTIFIER = "no route puts its keys on Medplum's resources: lost links come back by find alone, or by links import"


def _accept(ledger: Ledger, recovering: Recovering, *, yes: bool) -> None:
    _ask("The ledger as it stands has forgotten nothing?", yes=yes)
    ledger.accept_ledger(who=recovering.who, why=recovering.why)
    click.echo("the ledger is accepted as it stands")
    _tell_pauses(ledger)


def _legacy(recovering: Recovering, since: datetime, *, yes: bool) -> None:
    from worker.mapping import load_routes
    from worker.settings import WorkerSettings

    blind = blind_collections(load_routes(WorkerSettings.read().routes))
    if blind:
        click.echo(
            f"no identity is declared for {', '.join(blind)}: a record there is not told to be ours before a write"
        )
    _ask(f"Every record that was written since {_moment(since)} is written again?", yes=yes)
    _tell_looks(recovering.legacy_restored(since))


def _medplum(recovering: Recovering, since: datetime, *, yes: bool) -> None:
    _ask(f"Every resource that was settled since {_moment(since)} is read again?", yes=yes)
    _tell_looks(recovering.medplum_restored(since))
    click.echo(f"the time since {_moment(since)} is not proven yet: {_UNPROVEN}")
    click.echo(
        "every resource with a legacy record is read back as well: what was made since then is not in Medplum now"
    )


def _done(recovering: Recovering, *, anyway: bool) -> None:
    left = recovering.done(anyway=anyway)
    click.echo("the recovered mode is over" + (f"; left in doubt: {', '.join(in_words(left))}" if left else ""))


def _tell_looks(looks: int) -> None:
    click.echo(f"{count(looks, 'resource')} will be looked at again, at a low rate; --done ends the recovered mode")


def _tell_pauses(ledger: Ledger) -> None:
    for pause in ledger.paused():
        click.echo(
            f"{'everything' if pause.scope == '*' else pause.scope} is still paused, by {pause.who}: {pause.why}"
        )


def _ask(question: str, *, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


COMMANDS = (recovered,)
