"""The commands that answer questions: status, show, failed, alive. They change nothing.

Only `show --words` opens what is sealed, and records who looked.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from worker.cli import story, words
from worker.cli.ledger import opened, operator
from worker.errors import LedgerError

ALIVE_WITHIN_S = 20.0  # as the ledger has it: a heartbeat older than this frees the leases of its process
ROLES = ("worker", "dispatch", "beat", "console", "alone")

as_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


def print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


@click.command()
@as_json
def status(as_json: bool) -> None:
    """Tell where everything stands, and what to do next.

    Exit code 1 if what was accepted does not add up.
    """
    with opened() as ledger:
        told: dict[str, Any] = ledger.status()
        told["paused"] = [
            {"scope": pause.scope, "who": pause.who, "why": pause.why, "since": pause.at.isoformat()}
            for pause in ledger.paused()
        ]
        told["recovering"] = words.of_modes(ledger.modes())
        told["worker_seconds"] = ledger.alive(role="worker")
        told["compared"] = ledger.last_reconciled()
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(words.of_status(told)))
    sys.exit(0 if told["identity_holds"] else 1)


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--words", "with_words", is_flag=True, help="Open what the API said and both sides; recorded.")
@as_json
def show(reference: str, with_words: bool, as_json: bool) -> None:
    """Tell one resource's story: why it stands where it does, what happened, what will happen next and when.

    REF is a reference like Patient/1f0c. The legacy API's own words can hold values, this patient's and others':
    --words needs the payload key, and records who looked at them.
    """
    with opened() as ledger:
        told = ledger.show(reference)
        if told is not None and with_words:
            told["words"] = ledger.words(reference, who=operator())
            told["sides"] = ledger.sides(reference, who=operator())
        if told is not None:
            told["recovering"] = words.of_modes(ledger.modes())
        paused = [pause.scope for pause in ledger.paused()]
    if told is None:
        raise LedgerError(f"the ledger knows nothing of {reference}: no notification of it ever came here")
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(story.of(told, paused=paused)))


@click.command()
@as_json
def failed(as_json: bool) -> None:
    """List what needs a person: failed (mend something) and held (decide something), the longest first."""
    with opened() as ledger:
        told = [*ledger.failed(), *ledger.failed_tokens()]
    if as_json:
        print_json(told)
    else:
        click.echo("\n".join(words.of_failed(told)))


@click.command()
@click.argument("process", type=click.Choice(ROLES))
@click.option(
    "--within", "within_s", type=click.FloatRange(min=0), default=ALIVE_WITHIN_S, help="Seconds.", show_default=True
)
@as_json
def alive(process: str, within_s: float, as_json: bool) -> None:
    """Tell the age of the youngest heartbeat of a kind of process, for health checks.

    Exit code 1 if there is none, or an older one. Beat has none: its sign of life is the last dispatch. The receiver
    has /livez instead.
    """
    with opened() as ledger:
        age_s = ledger.status()["last_dispatch_seconds"] if process == "beat" else ledger.alive(role=process)
    lives = age_s is not None and age_s <= within_s
    if as_json:
        print_json({"process": process, "heartbeat_seconds": age_s, "alive": lives})
    else:
        said = "never said that it lives" if age_s is None else f"said {words.ago(age_s)} that it lives"
        click.echo(f"{process}: {'alive' if lives else 'not alive'}; {said}")
    sys.exit(0 if lives else 1)


COMMANDS = (status, show, failed, alive)
