"""`reverse-sync catch-up` and `sweep`: a person has Medplum read now, for what no notification told of. Recorded."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from worker.cli.ask import as_json, print_json
from worker.cli.ledger import opened, operator
from worker.cli.operate import Moment
from worker.cli.words import count
from worker.errors import LedgerError
from worker.ledger import Ledger
from worker.ledger.windows import Window
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.catch_up import CatchUp, Found

_TURN_S = 2.0
_WAIT_S = 0.5
_TRIES = 5  # turns in a row in which Medplum gave nothing
_STEPS = 1000  # of a progress bar

type_option = click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Of this resource type, more than once for several; else all.",
)


@dataclass(slots=True)
class _Read:
    """What was read of one type."""

    rows: int = 0
    found: int = 0
    trouble: str = ""
    proven_to: datetime | None = None
    unproven: tuple[Window, ...] = field(default_factory=tuple)
    young: dict[int, datetime] = field(default_factory=dict)  # by window: it was read, and is proven by a later reading

    def told(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "found": self.found,
            "proven_to": None if self.proven_to is None else self.proven_to.isoformat(),
            "unproven": [_window(window) for window in self.unproven],
            "trouble": self.trouble or None,
        }


@click.command("catch-up")
@type_option
@click.option("--since", type=Moment(), help="Read from this time on, whatever is proven: a first fill, for one.")
@click.option("--from-watermark", is_flag=True, help="Read what is not proven; without --since this is what happens.")
@click.option("--dry-run", is_flag=True, help="Only count what would become changes.")
@as_json
def catch_up(
    types: tuple[str, ...], since: datetime | None, from_watermark: bool, dry_run: bool, as_json: bool
) -> None:
    """Find by search what no notification told of, and have it synced.

    Workers do the same by themselves every minute. Broken off, it goes on from where it was. While some hundred
    resources are due it waits for the workers, so that live changes never stand behind it. WHEN is like 2h or
    2026-11-22T14:00Z. Exit code 1 if some time could not be read.
    """
    if since is not None and from_watermark:
        raise click.UsageError("one of them: --since or --from-watermark")
    if since is not None and since > datetime.now(UTC):
        raise click.UsageError("--since is in the future")
    who = operator()
    with opened() as ledger, _catching(ledger) as catching:
        chosen = _chosen(ledger, types)
        if dry_run:
            _tell_counted([_counted(catching, each, since, as_json=as_json) for each in chosen], as_json=as_json)
            return
        named = {"types": list(chosen), "since": None if since is None else since.isoformat()}
        action = ledger.begin_action(who=who, action="catch-up", why=None, arguments=named)
        ledger.ask_for_catch_up(chosen, since)
        read = {each: _caught_up(ledger, catching, each, as_json=as_json) for each in chosen}
        ledger.end_action(action, {each: one.found for each, one in read.items()})
    _tell_read(read, as_json=as_json)


@click.command()
@type_option
@as_json
def sweep(types: tuple[str, ...], as_json: bool) -> None:
    """Read every resource that has a legacy record back from Medplum, and have synced what is not as it was.

    It finds what no search by time shows: expunged resources, and those that went out of the client's sight. Workers do
    the same by themselves over REVERSE_SYNC_SWEEP_DAYS. Broken off, it goes on from where it was.
    """
    from worker.catch_up.sweeping import Sweeping
    from worker.medplum import Medplum

    who, settings = operator(), WorkerSettings.read()
    with opened() as ledger, Medplum.of(settings) as medplum:
        chosen = _chosen(ledger, types)
        action = ledger.begin_action(who=who, action="sweep", why=None, arguments={"types": list(chosen)})
        ledger.begin_sweep(chosen)
        sweeping = Sweeping.of(settings, ledger=ledger, medplum=medplum)
        read = {each: _swept(ledger, sweeping, each, as_json=as_json) for each in chosen}
        ledger.end_action(action, {each: one.found for each, one in read.items()})
    if as_json:
        print_json(
            {each: {"read": one.rows, "found": one.found, "trouble": one.trouble or None} for each, one in read.items()}
        )
    else:
        for each, one in read.items():
            click.echo(f"{each}: {one.rows:,} links read back, {count(one.found, 'change')} found{_but(one.trouble)}")
    sys.exit(1 if any(one.trouble for one in read.values()) else 0)


@contextmanager
def _catching(ledger: Ledger) -> Iterator[CatchUp]:
    from worker.catch_up import CatchUp
    from worker.medplum import Medplum

    settings = WorkerSettings.read()
    with Medplum.of(settings) as medplum:
        yield CatchUp.of(settings, ledger=ledger, medplum=medplum, instance=f"catch-up-{os.getpid()}")


def _chosen(ledger: Ledger, types: Sequence[str]) -> tuple[str, ...]:
    known = ledger.types_caught_up()
    if unknown := sorted(set(types) - set(known)):
        raise LedgerError(f"no route that runs for {', '.join(unknown)}: there are {', '.join(known) or 'none'}")
    return tuple(each for each in known if not types or each in types)


def _caught_up(ledger: Ledger, catching: CatchUp, resource_type: str, *, as_json: bool) -> _Read:
    """Take turns until nothing of a type is to be read now."""
    read, tries = _Read(), 0
    with _bar(resource_type, as_json=as_json) as show:
        while True:
            turn = catching.turn(resource_type, for_s=_TURN_S, by_a_person=True)
            assert turn is not None  # noqa: S101  by a person it stands back for nobody
            read.rows, read.found = read.rows + turn.rows, read.found + turn.found
            read.trouble = turn.trouble
            tries = tries + 1 if turn.trouble and not turn.pages else 0
            show(_share_read(ledger, resource_type), turn.full)
            waits = turn.full or bool(turn.trouble)
            if tries >= _TRIES or not (waits or ledger.next_window(resource_type)):
                break
            if waits:
                time.sleep(_WAIT_S)
    read.proven_to = ledger.watermark(resource_type)
    read.unproven = tuple(window for window in ledger.unread_windows(resource_type) if window.reason is not None)
    for window in read.unproven:
        provable = catching.provable_from(window)
        if provable is not None and provable > datetime.now(UTC) and window.position is None:
            read.young[window.id] = provable
    return read


def _share_read(ledger: Ledger, resource_type: str) -> float:
    """Say how much of a type's time is read, by where its first window stands: nobody tells how many rows there are."""
    from worker.catch_up import Position

    window = ledger.next_window(resource_type)
    if window is None:
        return 1.0
    position, ends = Position.of(window.position, window.from_at), window.to_at or datetime.now(UTC)
    span_s = max(1.0, (ends - window.from_at).total_seconds())
    share = min(1.0, max(0.0, (position.at - window.from_at).total_seconds() / span_s))
    return 0.9 + share / 10 if position.deleted else share * 0.9


def _swept(ledger: Ledger, sweeping: Any, resource_type: str, *, as_json: bool) -> _Read:
    """Take batches until a type's round is over."""
    read, tries = _Read(), 0
    with _bar(resource_type, as_json=as_json) as show:
        while not ledger.sweep_rounds()[resource_type]["ended"] and tries < _TRIES:
            ends_at = time.monotonic() + _TURN_S
            swept = sweeping.run(resource_type, goes_on=lambda ends_at=ends_at: time.monotonic() < ends_at)
            read.rows, read.found, read.trouble = read.rows + swept.read, read.found + swept.found, swept.trouble
            tries = tries + 1 if swept.trouble and not swept.read else 0
            stands = ledger.sweep_rounds()[resource_type]
            show(min(1.0, stands["read"] / max(1, stands["total"])), swept.full)
            if swept.full or swept.trouble:
                time.sleep(_WAIT_S)
    return read


@contextmanager
def _bar(resource_type: str, *, as_json: bool) -> Iterator[Callable[[float, bool], None]]:
    """Show on a terminal how far a type is, and whether it waits for what is due; say nothing elsewhere."""
    if as_json or not sys.stderr.isatty():
        yield lambda share, waits: None
        return
    with click.progressbar(
        length=_STEPS,
        label=resource_type,
        file=sys.stderr,
        item_show_func=lambda waits: "waits for what is due" if waits else None,
    ) as bar:

        def show(share: float, waits: bool) -> None:
            bar.update(max(0, int(share * _STEPS) - bar.pos), waits)

        yield show
        bar.update(_STEPS - bar.pos)


def _counted(catching: CatchUp, resource_type: str, since: datetime | None, *, as_json: bool) -> Found:
    rows = 0

    def tell(more: int) -> None:
        nonlocal rows
        rows = more
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{resource_type}: {rows:,} rows", err=True, nl=False)

    found = catching.count(resource_type, since, tell)
    if rows and not as_json and sys.stderr.isatty():
        click.echo("", err=True)
    return found


def _tell_counted(found: Sequence[Found], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {one.resource_type: {"rows": one.rows, "changes": one.changes, "left": list(one.left)} for one in found}
        )
    else:
        for one in found:
            click.echo(f"{one.resource_type}: {one.rows:,} rows, {count(one.changes, 'change')} would be found")
            for moment in one.left:
                click.echo(f"    cannot be read whole: {moment}")
        click.echo("nothing was written: without --dry-run it is")
    sys.exit(1 if any(one.left for one in found) else 0)


def _tell_read(read: dict[str, _Read], *, as_json: bool) -> None:
    if as_json:
        print_json({each: one.told() for each, one in read.items()})
    else:
        for each, one in read.items():
            proven = "nothing is proven yet" if one.proven_to is None else f"proven up to {_moment(one.proven_to)}"
            click.echo(f"{each}: {one.rows:,} rows, {count(one.found, 'change')} found; {proven}{_but(one.trouble)}")
            for window in one.unproven:
                click.echo(f"    not proven: {_span(window)}: {window.reason}{_young(one.young.get(window.id))}")
    sys.exit(1 if any(one.trouble for one in read.values()) else 0)


def _window(window: Window) -> dict[str, Any]:
    ends = None if window.to_at is None else window.to_at.isoformat()
    return {"from": window.from_at.isoformat(), "to": ends, "reason": window.reason}


def _span(window: Window) -> str:
    begins, ends = window.from_at, window.to_at or window.from_at
    return f"{begins:%Y-%m-%d %H:%M:%S.%f} UTC" if begins == ends else f"{_moment(begins)} to {_moment(ends)}"


def _young(provable: datetime | None) -> str:
    return "" if provable is None else f"; it was read, and the workers prove it after {_moment(provable)}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _but(trouble: str) -> str:
    return f"; broken off: {trouble}" if trouble else ""


COMMANDS = (catch_up, sweep)
