"""`reverse-sync reconcile`: both sides compared. It changes neither; --repair marks what is not as it should be due."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from worker.cli.ledger import opened, operator
from worker.cli.links import systems
from worker.cli.operate import Moment
from worker.errors import LedgerError

if TYPE_CHECKING:
    from worker.ledger import Ledger
    from worker.ledger.reconciling import Run
    from worker.links.asking import Asking
    from worker.mapping import Routes
    from worker.reconcile.passes import Arguments, Progress
    from worker.reconcile.report import Report
    from worker.settings import WorkerSettings

VALUES_MOST = 50
_BAR = 20


@click.command()
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Of this resource type; else of all.")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Only N resources of each type, drawn by chance."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="S", help="Draws another sample, the same each time."
)
@click.option(
    "--since",
    metavar="WHEN",
    callback=lambda ctx, param, said: (said, Moment().convert(said, param, ctx)) if said else None,
    help="Only what changed since then, as in 2h or 2026-11-22T14:00Z.",
)
@click.option("--repair", is_flag=True, help="Give what the sync can mend to the sync: marked due, no more believed.")
@click.option("--why", help="Recorded; needed with --repair.")
@click.option("--values", is_flag=True, help="Show the values of fields that differ, as they are now; recorded.")
@click.option("--anew", is_flag=True, help="Begin again, where a run with the same arguments was broken off.")
@click.option("--concurrency", type=click.IntRange(1, 32), default=4, show_default=True, help="Legacy calls at a time.")
@click.option(
    "--fresh",
    "fresh_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="What changed in Medplum so lately is taken to be on its way.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="All findings, a line each.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), help="One page, with a picture.")
def reconcile(
    types: tuple[str, ...],
    sample: int | None,
    seed: int,
    since: tuple[str, datetime] | None,
    repair: bool,
    why: str | None,
    values: bool,
    anew: bool,
    concurrency: int,
    fresh_s: float,
    as_json: bool,
    csv_file: Path | None,
    html_file: Path | None,
) -> None:
    """Compare every resource and every link with the legacy records, as they are read back.

    Says for each record: equal, differs (which fields), missing, extra, duplicate, unreadable; and apart from these
    what is in flight, and what waits for a person already. Neither system is written to. A run that is broken off goes
    on where it was when the same command is given again.

    --repair marks what the sync can mend due, and believes nothing any more of what was written to it. Run it again to
    see what became of that. Exit code 1 if something is not as it should be.
    """
    if repair and not why:
        raise click.UsageError("--repair needs --why: it is recorded")
    if values and as_json:
        raise click.UsageError("--values are for a person's terminal: leave --json out")
    from worker.reconcile.passes import Arguments, compared_types

    who = operator()
    with opened() as ledger, systems() as (settings, routes, asking):
        chosen, left_out = compared_types(ledger, routes, types)
        if not chosen:
            raise LedgerError("no route to compare: " + "; ".join(f"{name}: {said}" for name, said in left_out.items()))
        since_said, moment = since or ("", None)
        arguments = Arguments(chosen, sample, seed, moment, since_said, repair)
        if ledger.sealer.can_seal:  # a token of this command's own would use up the workers' refresh token
            for api in {collection.api for route in routes.values() for collection in route.collections}:
                api.bind(ledger)
        run = _begun(ledger, routes, arguments, who=who, why=why, anew=anew)
        run = _compared(
            ledger, settings, routes, asking, run, arguments, who=who, why=why, threads=concurrency, fresh_s=fresh_s
        )
        told = _reported(ledger, run, routes, left_out)
        _write(ledger, told, as_json=as_json, csv_file=csv_file, html_file=html_file)
        if values:
            _show_values(ledger, settings, routes, asking, told, who=who)
    sys.exit(1 if told.drift else 0)


def _begun(ledger: Ledger, routes: Routes, arguments: Arguments, *, who: str, why: str | None, anew: bool) -> Run:
    """Find the run that goes on, or begin one."""
    from worker.reconcile.passes import beginning

    said = arguments.told(routes)
    unfinished = None if anew else ledger.unfinished_run(said)
    if unfinished is not None:
        click.echo(
            f"run {unfinished.id} of {unfinished.started_at:%Y-%m-%d %H:%M:%S} UTC was broken off and goes on: "
            "--anew begins again",
            err=True,
        )
        return unfinished
    action = None
    if arguments.repair:
        named = {"types": list(arguments.types), "sample": arguments.sample, "since": said["since"]}
        action = ledger.begin_action(who=who, action="reconcile", why=why, arguments=named)
    return ledger.begin_run(said, beginning(ledger, arguments), who=who, action=action)


def _compared(
    ledger: Ledger,
    settings: WorkerSettings,
    routes: Routes,
    asking: Asking,
    run: Run,
    arguments: Arguments,
    *,
    who: str,
    why: str | None,
    threads: int,
    fresh_s: float,
) -> Run:
    from dataclasses import replace

    from worker.reconcile.comparing import Comparing
    from worker.reconcile.looking import TRIES
    from worker.reconcile.passes import Reconciliation

    share = min(route.to.api.concurrency for name, route in routes.items() if name in arguments.types) // 2
    comparing = Comparing(
        ledger=ledger,
        routes=routes,
        asking=replace(asking, tries=TRIES),
        medplum_base_url=settings.medplum_base_url,
        threads=max(1, min(threads, share)),  # never more than half of what the API takes: changes come first
        fresh_s=fresh_s,
    )
    with _progress() as progress:
        reconciliation = Reconciliation(
            ledger=ledger, routes=routes, asking=asking, comparing=comparing, who=who, why=why, progress=progress
        )
        return reconciliation.run(run, arguments)


def _reported(ledger: Ledger, run: Run, routes: Routes, left_out: dict[str, str]) -> Report:
    from worker.reconcile.report import report

    return report(ledger, run, routes, left_out)


def _write(ledger: Ledger, told: Report, *, as_json: bool, csv_file: Path | None, html_file: Path | None) -> None:
    from worker.cli import reconciled
    from worker.reconcile.page import render
    from worker.reconcile.report import findings

    now = datetime.now(UTC)
    if csv_file is not None:
        with csv_file.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(reconciled.CSV)
            lines.writerows(reconciled.row(kept) for kept in findings(ledger, told.run))
    if html_file is not None:
        html_file.write_text(render(told, findings(ledger, told.run), now=now), encoding="utf-8")
    if as_json:
        _print_json(ledger, told, sys.stdout)
    else:
        click.echo("\n".join(reconciled.of(told, findings(ledger, told.run), now=now)))


def _print_json(ledger: Ledger, told: Report, out: TextIO) -> None:
    """Print the report with all findings, one at a time: there can be more of them than memory."""
    from worker.reconcile.report import findings

    head = json.dumps({**asdict(told), "drift": told.drift}, ensure_ascii=False, default=_iso)
    out.write(f'{head[:-1]}, "findings": [')
    for number, kept in enumerate(findings(ledger, told.run)):
        line = {"at": _iso(kept.at), **asdict(kept.finding)}
        out.write(("," if number else "") + "\n" + json.dumps(line, ensure_ascii=False))
    out.write("]}\n")


def _iso(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _show_values(
    ledger: Ledger, settings: WorkerSettings, routes: Routes, asking: Asking, told: Report, *, who: str
) -> None:
    """Show what differing fields hold, read again now: the ledger keeps no values of them. Each look is recorded."""
    from itertools import islice

    from worker.cli import previewed
    from worker.ledger.reconciling import Verdict
    from worker.previewing import Previewing
    from worker.reconcile.report import findings

    previewing = Previewing(ledger, asking.medplum, asking.legacy, routes, settings.medplum_base_url)  # type: ignore[arg-type]
    references = dict.fromkeys(
        kept.finding.reference for kept in findings(ledger, told.run, Verdict.DIFFERS) if kept.finding.reference
    )
    for reference in islice(references, VALUES_MOST):
        click.echo("")
        click.echo("\n".join(previewed.of(previewing.of(reference, who=who, against_legacy=True))))
    if len(references) > VALUES_MOST:
        click.echo(f"and {len(references) - VALUES_MOST:,} more: reverse-sync preview REF --against-legacy")


class _Bar:
    """A line on a terminal that says how far a run has come."""

    def __init__(self) -> None:
        self.shown = False

    def __call__(self, what: str, done: int, of: int | None) -> None:
        part = "" if not of else f"[{'#' * (_BAR * min(done, of) // of):<{_BAR}}] "
        total = "" if not of else f" of {of:,}"
        click.echo(f"\r\033[K{part}{what}: {done:,}{total}", nl=False, err=True)
        self.shown = True


@contextmanager
def _progress() -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        if bar.shown:
            click.echo("\r\033[K", nl=False, err=True)


COMMANDS = (reconcile,)
