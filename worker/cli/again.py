"""`reverse-sync replay REF --create-again`: records that are gone for good are given up, so that others are made."""

from __future__ import annotations

from collections.abc import Sequence

import click

from worker.cli.ask import print_json
from worker.cli.ledger import opened, operator
from worker.cli.links import systems
from worker.cli.words import count
from worker.ledger.values import Link


def create_again(references: Sequence[str], slot: str | None, *, why: str, yes: bool, as_json: bool) -> None:
    """Give up the records of these resources that are not there; each is looked for before another is made.

    Raises:
        LedgerError: one of them is there, or may be; nothing of any was given up.
    """
    from worker.links.gone import Gone

    who = operator()
    with opened() as ledger, systems() as (_, routes, asking):
        looks = Gone(ledger=ledger, routes=routes, asking=asking)
        gone = [link for reference in dict.fromkeys(references) for link in looks.of(reference, slot)]
        if not yes:
            told = "".join(f"\n  {_named(link)}" for link in gone)
            click.confirm(
                f"{count(len(gone), 'record')} will be given up, and looked for before another is made:{told}\nGo on?",
                abort=True,
                err=True,
            )
        given_up = [link for link in gone if ledger.forget_record(link.reference, link.slot, who=who, why=why)]
    if as_json:
        print_json({"given_up": [{"reference": link.reference, "slot": link.slot} for link in given_up]})
        return
    for link in given_up:
        click.echo(f"{_named(link)} is given up; {link.reference} is due, a worker takes it within seconds")


def _named(link: Link) -> str:
    slot = f" ({link.slot})" if link.slot else ""
    keys = ", ".join(f"{name} {key}" for name, key in link.keys.items())
    return f"{link.reference}: {link.collection}{slot} {keys}"
