"""`reverse-sync links`: records taken over by a file, links rebuilt from Medplum, links given out. Dry by default."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.ask import as_json, print_json
from worker.cli.ledger import opened, operator
from worker.errors import LedgerError
from worker.ledger import Ledger
from worker.ledger.crosswalk import LinkRow
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.links import Report
    from worker.links.asking import Asking
    from worker.mapping import Routes

_ROWS_AT_A_TIME = 1000

apply_option = click.option("--apply/--dry-run", "apply_it", default=False, help="Write; else only say what would be.")
why_option = click.option("--why", help="Recorded with the action; needed with --apply.")


@click.group()
def links() -> None:
    """Say which legacy record is whose: from a file, from Medplum's identifiers, into a file."""


@links.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@apply_option
@why_option
@as_json
def import_(file: Path, apply_it: bool, why: str | None, as_json: bool) -> None:
    """Take over records that the legacy system already has: linked, not created again.

    FILE is CSV in UTF-8 with a header: reference (Patient/1f0c) or identifier (system|value), a column for each key
    (key.uuid; key.number:int where the API gives a number), parent.NAME for each link that fills a path; collection,
    slot and type where they are not plain. Lines that are refused are listed; the others are linked. To run it again
    goes on where it was broken off. Exit code 1 if a line was refused.
    """
    from worker.links import Sheet
    from worker.links.taking import Taking

    who = _who(apply_it, why)
    with opened() as ledger, systems() as (_, routes, asking):
        keys = {key for route in routes.values() for collection in route.collections for key in collection.keys}
        sheet = Sheet.open(file, keys)
        taking = Taking(ledger=ledger, routes=routes, asking=asking, tell=_progress)
        named: dict[str, object] = {"columns": list(sheet.columns)}
        report = _judged(ledger, who, why, "links import", named, lambda action: taking.run(sheet, action=action))
    _tell(report, applied=apply_it, as_json=as_json)


@links.command()
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Of this resource type; else of all.")
@apply_option
@why_option
@as_json
def rebuild(types: tuple[str, ...], apply_it: bool, why: str | None, as_json: bool) -> None:
    """Restore links from the legacy keys that the resources in Medplum carry as identifiers.

    Each record is read back from the legacy system and linked if it is its resource's. What cannot be told is listed,
    and with --apply held, because a create would make a second record. A link that is there is never changed.
    Exit code 1 if something was refused.
    """
    who = _who(apply_it, why)
    with opened() as ledger, systems() as (settings, routes, asking):
        chosen = identified(routes, types)
        report = rebuilt(ledger, settings, routes, asking, chosen, who=who, why=why)
    _tell(report, applied=apply_it, as_json=as_json)


@links.command()
@click.option("--type", "resource_type", metavar="TYPE", help="Of this resource type; else of all.")
def export(resource_type: str | None) -> None:
    """Print the links as CSV that `links import` takes again. It points at patients: keep it as their data."""
    from worker.links.sheet import columns_of, write

    with opened() as ledger:
        columns = columns_of(_rows(ledger, resource_type))
        write(_rows(ledger, resource_type), columns, sys.stdout)


def identified(routes: Routes, types: Sequence[str]) -> list[str]:
    """List the types whose routes put keys on Medplum's resources; of `types` each must be one.

    Raises:
        LedgerError: names a type that is none.
    """
    able = [name for name, route in routes.items() if route.identifier is not None]
    if unable := sorted(set(types) - set(able)):
        raise LedgerError(f"no route with an identifier for {', '.join(unable)}: there are {', '.join(able) or 'none'}")
    return [name for name in able if not types or name in types]


def rebuilt(
    ledger: Ledger,
    settings: WorkerSettings,
    routes: Routes,
    asking: Asking,
    types: Sequence[str],
    *,
    who: str | None,
    why: str | None,
) -> Report:
    """Rebuild links, or with nobody who does it only judge."""
    from worker.links.rebuilding import Rebuilding

    rebuilding = Rebuilding(
        ledger=ledger,
        routes=routes,
        asking=asking,
        medplum_base_url=settings.medplum_base_url,
        tell=_progress,
    )
    named: dict[str, object] = {"types": list(types)}
    return _judged(ledger, who, why, "links rebuild", named, lambda action: rebuilding.run(types, action=action))


@contextmanager
def systems() -> Iterator[tuple[WorkerSettings, Routes, Asking]]:
    """Open what links are checked against, and give connections back."""
    from worker.legacy.gate import Gate
    from worker.links.asking import Asking
    from worker.mapping import load_routes
    from worker.medplum import Medplum

    settings = WorkerSettings.read()
    routes = load_routes(settings.routes)
    with Medplum.of(settings) as medplum:
        yield settings, routes, Asking(medplum, Gate.of(settings), tell=_progress)


def _judged(
    ledger: Ledger,
    who: str | None,
    why: str | None,
    action: str,
    arguments: dict[str, object],
    run: Callable[[int | None], Report],
) -> Report:
    """Run something, and where somebody does it record that before its first effect, and what came of it."""
    if who is None:
        return run(None)
    began = ledger.begin_action(who=who, action=action, why=why, arguments=arguments)
    report = run(began)
    ledger.end_action(began, report.as_counts())
    return report


def _who(apply_it: bool, why: str | None) -> str | None:
    if apply_it and not why:
        raise click.UsageError("--apply needs --why: it is recorded")
    return operator() if apply_it else None


def _rows(ledger: Ledger, resource_type: str | None) -> Iterator[LinkRow]:
    after = 0
    while rows := ledger.links_after(after, resource_type=resource_type, limit=_ROWS_AT_A_TIME):
        yield from rows
        after = rows[-1].id


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(line, err=True)


def _tell(report: Report, *, applied: bool, as_json: bool) -> None:
    refused = report.as_counts()["refused"]
    if as_json:
        listed = [{"where": where, "why": why} for where, why in report.refusals]
        print_json({"applied": applied, **report.as_counts(), "refusals": listed})
    else:
        click.echo("\n".join(report.lines(applied=applied)))
        if not applied:
            click.echo("nothing was written: --apply --why … does it")
    sys.exit(1 if refused else 0)


COMMANDS = (links,)
