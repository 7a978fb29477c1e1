"""The commands for people who write mappings: new-mapping writes files, preview shows what would be sent.

Neither writes to Medplum or to the legacy system.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli.ask import as_json
from worker.cli.ledger import opened, operator
from worker.errors import RoutesInvalid, SettingsInvalid
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from fhir_core.fhirabstractmodel import FHIRAbstractModel

    from worker.previewing import Told

LOOKED_AT_MOST = 200
PAGE = 100
SEARCH_DEADLINE_S = 20.0


@click.command("new-mapping")
@click.argument("resource_type", metavar="TYPE")
@click.option(
    "--tests",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tests/mappings"),
    show_default=True,
    help="The folder where the test and its fixtures go.",
)
@click.option(
    "--from",
    "files",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Look at these resources (a file each) rather than at those in Medplum.",
)
def new_mapping(resource_type: str, tests: Path, files: tuple[Path, ...]) -> None:
    """Begin a mapping: a module, a fixture pair and its test, with the elements that resources of TYPE really carry.

    Names of elements are all that is taken from them; the values of the fixture are made up.
    """
    from worker.mapping import load_routes
    from worker.scaffold.elements import seen
    from worker.scaffold.files import begin

    settings = WorkerSettings.read()
    model = _model(resource_type)
    if resource_type in load_routes(settings.routes):
        raise RoutesInvalid(f"{settings.routes} has a mapping for {resource_type} already")
    resources = _of_files(files) if files else _of_medplum(settings, resource_type)
    elements = seen(each for each in resources if each.get("resourceType") == resource_type)
    beginning = begin(settings.routes, model, elements, tests=tests)
    beginning.write()
    click.echo(f"looked at {elements.looked_at} of {resource_type}; wrote")
    for path in beginning.files:
        click.echo(f"  {path}")
    update = f"pytest -p worker.mapping.pairs {tests} --update"
    click.echo(f"next: say in the first what of it is kept, then: {update}, and read what that wrote")


def _model(resource_type: str) -> type[FHIRAbstractModel]:
    from worker.mapping import r4

    if resource_type not in r4.__all__:
        raise SettingsInvalid(f"{resource_type} is not among the R4 models of worker.mapping.r4: add its line there")
    model: type[FHIRAbstractModel] = getattr(r4, resource_type)
    return model


def _of_files(files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    from worker.medplum.resource import parse

    return (parse(file.read_bytes()) for file in files)


def _of_medplum(settings: WorkerSettings, resource_type: str) -> Iterator[dict[str, Any]]:
    """Yield the newest resources of a type."""
    from worker.medplum import Medplum, Present

    with closing(Medplum.of(settings)) as medplum:
        query = {"_sort": "-_lastUpdated", "_count": str(PAGE)}
        pages = medplum.search(resource_type, query, deadline_s=SEARCH_DEADLINE_S)
        entries = itertools.chain.from_iterable(page.entries for page in itertools.islice(pages, 2))
        for entry in itertools.islice(entries, LOOKED_AT_MOST):
            if isinstance(entry, Present):
                yield json.loads(entry.body)


@click.command()
@click.argument("what", metavar="REF|FILE")
@click.option("--against-legacy", is_flag=True, help="Read each record, and show where it differs.")
@as_json
def preview(what: str, against_legacy: bool, as_json: bool) -> None:
    """Show the requests that would go out for a resource, for what they would wait, or why there are none.

    Nothing is sent. REF is a reference like Patient/1f0c: it is read from Medplum, keys come from the ledger, and that
    somebody looked is recorded, because this shows values. FILE holds a resource, or a Bundle as fixture pairs do.
    """
    from worker.cli import previewed

    file = Path(what)
    if not file.is_file():
        told = _of_reference(what, against_legacy=against_legacy)
    elif against_legacy:
        raise click.UsageError("a FILE has no legacy record: --against-legacy goes with a reference")
    else:
        told = _of_file(file)
    if as_json:
        click.echo(json.dumps(asdict(told), ensure_ascii=False, default=str))
    else:
        click.echo("\n".join(previewed.of(told)))


def _of_file(file: Path) -> Told:
    from worker.mapping import load_routes
    from worker.previewing import of_bundle

    settings = WorkerSettings.read()
    return of_bundle(file.read_bytes(), load_routes(settings.routes), medplum_base_url=settings.medplum_base_url)


def _of_reference(reference: str, *, against_legacy: bool) -> Told:
    from worker.legacy.gate import Gate
    from worker.links.asking import Asking
    from worker.mapping import load_routes
    from worker.medplum import Medplum
    from worker.previewing import Previewing

    settings, who = WorkerSettings.read(), operator()
    routes = load_routes(settings.routes)
    with Medplum.of(settings) as medplum, opened() as ledger:
        if ledger.sealer.can_seal:  # a token of a preview's own would use up the workers' refresh token
            for api in {collection.api for route in routes.values() for collection in route.collections}:
                api.bind(ledger)
        legacy = Asking(medplum, Gate.of(settings)).legacy
        previewing = Previewing(ledger, medplum, legacy, routes, settings.medplum_base_url)
        return previewing.of(reference, who=who, against_legacy=against_legacy)


COMMANDS = (new_mapping, preview)
