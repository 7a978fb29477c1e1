"""The commands around the processes: migrate, check, new-key, broker, console, demo. Each imports what it needs."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import os
import secrets
import sys
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime

import click

from worker.cli.ask import as_json, print_json
from worker.errors import ReverseSyncError
from worker.settings import BrokerSettings, Settings, WorkerSettings


@click.command()
def migrate() -> None:
    """Bring the ledger's tables to this release and make the routes known to it. Before a new release starts."""
    from worker.ledger import Ledger
    from worker.ledger.migrate import current, upgrade
    from worker.start import prepare, waiting_mappings

    settings = WorkerSettings.read()
    before = current(settings.database_url)
    after = upgrade(settings.database_url)
    was = "as before" if before == after else f"before: {before or 'none'}"
    click.echo(f"tables: {after}, {was}")
    with closing(Ledger.of(settings, connections=1)) as ledger:
        declared = prepare(settings, ledger, register=True)
        waiting = waiting_mappings(ledger, declared)
        routes = ledger.routes().values()
    click.echo(f"routes: {', '.join(f'{route.resource_type} {route.phase}' for route in routes)}")
    if waiting:
        routes_have = "route has a new mapping" if len(waiting) == 1 else "routes have new mappings"
        click.echo(f"{len(waiting)} {routes_have} ({', '.join(waiting)}), while workers run: the old stay active")
        click.echo("next: reverse-sync activate --why … once all workers run this release")


@click.command()
@click.option(
    "--process",
    "processes",
    multiple=True,
    type=click.Choice(("web", "worker", "dispatch")),
    help="Look at the settings of these processes alone: not every host has all.",
)
@click.option("--legacy", is_flag=True, help="Ask the legacy APIs alone, each by its declared harmless request.")
@click.option("--end-to-end", "end_to_end", is_flag=True, help="Write a test resource to Medplum, and see it come.")
@click.option("--type", "resource_type", metavar="TYPE", help="Of the test resource; else the first routed one.")
@as_json
def check(processes: tuple[str, ...], legacy: bool, end_to_end: bool, resource_type: str | None, as_json: bool) -> None:
    """Tell whether everything is there that the processes need; each line ok, or what to do.

    Exit code 1 if anything is not ok. Nothing is written, neither here nor there, but an access token that is kept.
    --end-to-end alone writes: a marked resource, which is never mapped, and deletes it again. It needs an
    administrator's credential, and names the cause where the notification does not come.
    """
    from worker import check as checking

    findings = []
    for finding in (
        checking.end_to_end(resource_type)
        if end_to_end
        else checking.legacy()
        if legacy
        else checking.run(processes or checking.PROCESSES)
    ):
        findings.append(finding)
        if not as_json:
            click.echo(f"{'ok ' if finding.ok else 'NOT'}  {finding.name}")
            for line in finding.advice.splitlines():
                click.echo(f"     {line}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


@click.command("new-key")
def new_key() -> None:
    """Print a new key for REVERSE_SYNC_PAYLOAD_KEY. Put it in front of the old ones: they go on opening old rows."""
    key_id = f"k{datetime.now(UTC):%Y%m%d}{secrets.token_hex(2)}"  # two keys of one day must not share an id
    click.echo(f"{key_id}:{base64.b64encode(secrets.token_bytes(32)).decode()}")


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Take this port; else the last one, else a free one.")
def broker(port: int | None) -> None:
    """Run an embedded Valkey under `var`, for the demo, tests and small installations."""
    from worker import broker as embedded

    embedded.run(Settings.read().var, port)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="It has no login: loopback or a private network.")
@click.option("--port", type=click.IntRange(1, 65535), default=8081, show_default=True)
def console(host: str, port: int) -> None:
    """Serve readiness, metrics and a page for operators."""
    from worker.console import serve

    serve(BrokerSettings.read(), host=host, port=port)


@click.command()
@click.option("--once", is_flag=True, help="End by itself, and make the sixth act's edit and replay itself.")
def demo(once: bool) -> None:
    """Watch notifications become legacy records, on this machine alone. Runs from a checkout."""
    if importlib.util.find_spec("deploy") is None or importlib.util.find_spec("deploy.demo") is None:
        raise ReverseSyncError("the demo is in the project's checkout, not in its package: run `make demo` there")
    arguments = [sys.executable, "-m", "deploy.demo", *(["--once"] if once else [])]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - Ctrl-C and the exit code are then the demo's own


COMMANDS = (migrate, check, new_key, broker, console, demo)
