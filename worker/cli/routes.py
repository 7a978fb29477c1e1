"""The commands around routes: how far each is let in, by which mapping. What they change is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import click

from worker.cli.ask import as_json, print_json
from worker.cli.ledger import opened, operator
from worker.cli.words import count
from worker.errors import LedgerError, SettingsInvalid
from worker.ledger import Ledger
from worker.ledger.phasing import RouteState
from worker.ledger.values import Phase
from worker.settings import WorkerSettings

PHASES = [phase.value for phase in Phase]
_CALLED = {"create": "create", "update": "update", "delete": "delete", "hold": "decision for a person"}


@click.command()
@as_json
def routes(as_json: bool) -> None:
    """List the routes: phase, mapping version, and what gathers behind each."""
    code = _versions_of_this_code()
    with opened() as ledger:
        states = ledger.route_states()
    if as_json:
        print_json(
            [asdict(state) | {"phase": state.phase.value, "code": code.get(state.resource_type)} for state in states]
        )
    else:
        click.echo("\n".join(of_routes(states, code)) or "no routes: run `reverse-sync migrate`")


@click.command()
@click.argument("resource_type", metavar="TYPE")
@click.argument("phase", type=click.Choice(PHASES))
@click.option("--why", required=True, help="Recorded.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def phase(resource_type: str, phase: str, why: str, yes: bool) -> None:
    """Let a route further into the legacy system, or out of it.

    off: changes are settled as skipped · shadow: everything but the send · live · paused: changes gather ·
    retired: Medplum alone is the record now. A route that goes live has all its resources looked at; what the legacy
    system holds already is not written again. Broken off, it is run again.
    """
    who, to = operator(), Phase(phase)
    with opened() as ledger:
        state = _state(ledger, resource_type)
        if to is Phase.LIVE:
            _tell_what_would_be_sent(state)
            if not yes:
                click.confirm(f"{resource_type} goes live. Go on?", abort=True, err=True)
        before = ledger.set_phase(resource_type, to, who=who, why=why)
        click.echo(f"{resource_type} is {to}; it was {before}")
        if to is Phase.LIVE:
            asked = ledger.ask_for_all(resource_type)
            click.echo(f"{count(asked, 'resource')} due; a worker takes each within seconds")


@click.command()
@click.argument("types", nargs=-1, metavar="[TYPE]…")
@click.option("--why", required=True, help="Recorded.")
def activate(types: tuple[str, ...], why: str) -> None:
    """Make this code's mappings the active ones: of these types, or of all. Once all workers run this code.

    Workers with other mappings hand their work back. The old code's `activate` takes it back.
    """
    who, code = operator(), _versions_of_this_code(needed=True)
    unknown = sorted(set(types) - set(code))
    if unknown:
        raise LedgerError(f"this code maps no {', '.join(unknown)}: it maps {', '.join(code)}")
    with opened() as ledger:
        changed = ledger.activate({name: code[name] for name in types or code}, who=who, why=why)
    for name, old in changed.items():
        click.echo(f"{name}: {code[name]} is active; it was {old}")
    if not changed:
        click.echo("these mappings are active already")


def of_routes(states: Sequence[RouteState], code: Mapping[str, str]) -> Iterator[str]:
    """Tell of each route in two lines or three."""
    for state in states:
        mirrors = [f"{number:,} {name}" for name, number in sorted(state.mirrors.items())]
        yield f"{state.resource_type}  {state.phase}, mapping {state.active or 'none'}{_other(state, code)}"
        yield f"    {' · '.join(mirrors) or 'nothing yet'}; {count(state.links, 'legacy record')}"
        if state.shadowed:
            yield f"    would be sent: {_operations(state.shadowed)}"
        if state.compared:
            verdicts = ", ".join(f"{number:,} {name}" for name, number in sorted(state.compared.items()))
            yield f"    first live writes against their shadows: {verdicts}"
        if state.handed_back:
            handed = count(state.handed_back, "resource")
            yield f"    {handed} handed back by workers with another mapping: `reverse-sync activate`"


def _other(state: RouteState, code: Mapping[str, str]) -> str:
    mine = code.get(state.resource_type)
    if not code or mine == state.active:
        return ""
    return f"; this code has {mine}: `reverse-sync activate` once all workers run it" if mine else "; not in this code"


def _operations(numbers: Mapping[str, int]) -> str:
    more = {"hold": "decisions for a person"}
    return ", ".join(count(numbers[name], one, more.get(name, "")) for name, one in _CALLED.items() if name in numbers)


def _tell_what_would_be_sent(state: RouteState) -> None:
    said = _operations(state.shadowed) if state.shadowed else "nothing was shadowed"
    click.echo(f"would be sent: {said}")
    needing = state.mirrors.get("failed", 0) + state.mirrors.get("held", 0)
    if needing:
        click.echo(f"{count(needing, 'resource')} failed or held: reverse-sync failed")


def _state(ledger: Ledger, resource_type: str) -> RouteState:
    states = {state.resource_type: state for state in ledger.route_states()}
    if resource_type not in states:
        raise LedgerError(f"no route for {resource_type}: the routes are {', '.join(states) or 'none'}")
    return states[resource_type]


def _versions_of_this_code(*, needed: bool = False) -> dict[str, str]:
    """Tell the version of each mapping of this code; nothing where the settings of a worker are not here."""
    from worker.mapping import load_routes

    try:
        declared = load_routes(WorkerSettings.read().routes)
    except SettingsInvalid:
        if needed:
            raise
        return {}
    return {name: version for name, (_, version) in declared.types.items()}


COMMANDS = (routes, phase, activate)
