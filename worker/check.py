"""Whether a deployment can work: settings, database, broker, Medplum, legacy APIs, each asked.

It changes nothing, but for `end_to_end`, which writes a test resource to Medplum and takes it away again.

Every finding is ok or says what to do; none holds a secret or a value from a patient's record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from worker.errors import LedgerError, LedgerOutdated, ReverseSyncError
from worker.ledger import Ledger
from worker.ledger.migrate import current, head
from worker.ledger.operate import ADOPT
from worker.ledger.values import Phase
from worker.publish import Publisher, broker_url
from worker.settings import AdminSettings, BrokerSettings, ReceiverSettings, Settings, WorkerSettings

if TYPE_CHECKING:
    from worker.mapping import Routes
    from worker.medplum import Medplum

__all__ = ["PROCESSES", "Finding", "end_to_end", "legacy", "run"]

PROCESSES: Mapping[str, type[BrokerSettings]] = {
    "web": ReceiverSettings,
    "worker": WorkerSettings,
    "dispatch": BrokerSettings,
}
"""The processes whose settings differ, and what each reads."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and what to do if it is not ok."""

    name: str
    ok: bool
    advice: str = ""


def run(processes: Collection[str] = tuple(PROCESSES)) -> Iterator[Finding]:
    """Look at everything that these processes need, and yield each finding as it is known."""
    for name in PROCESSES:
        if name in processes:
            yield from _settings(name, PROCESSES[name])
    yield from _ledger()
    yield from _broker()
    if "worker" in processes:
        yield from _worker()


def _settings(process: str, cls: type[BrokerSettings]) -> Iterator[Finding]:
    try:
        broker_url(cls.read())
    except ReverseSyncError as problem:
        yield Finding(f"settings of {process}", False, str(problem))
    else:
        yield Finding(f"settings of {process}", True)


def _ledger() -> Iterator[Finding]:
    try:
        settings = Settings.read()
        revision = current(settings.database_url)
    except ReverseSyncError as problem:
        yield Finding("the ledger's database answers", False, str(problem))
        return
    yield Finding("the ledger's database answers", True)
    migrated = revision == head()
    there = f"its tables are {revision}, this release's are {head()}" if revision else "it has no tables yet"
    yield Finding(
        "the ledger's tables are this release's", migrated, "" if migrated else f"{there}: reverse-sync migrate"
    )
    if migrated:
        yield from _key(settings)
        yield from _secrets(settings)


def _key(settings: Settings) -> Iterator[Finding]:
    with closing(Ledger.of(settings, connections=1)) as ledger:
        live = sorted(name for name, row in ledger.routes().items() if row.phase is Phase.LIVE)
        seals = ledger.sealer.can_seal
    needed = f"{', '.join(live)} cannot be live without REVERSE_SYNC_PAYLOAD_KEY: reverse-sync new-key makes one"
    yield Finding(
        "bodies can be sealed", seals or not live, "" if seals else needed if live else "needed before a route is live"
    )


def _secrets(settings: Settings) -> Iterator[Finding]:
    """Ask whether a receiver here has anything to verify with; where its settings are wrong, that is told already."""
    try:
        given = bool(ReceiverSettings.read().webhook_secrets)
    except ReverseSyncError:
        return
    with closing(Ledger.of(settings, connections=1)) as ledger:
        given = given or bool(ledger.subscription_secrets())
    advice = (
        "`reverse-sync subscriptions apply` makes a secret for each Subscription; or set REVERSE_SYNC_WEBHOOK_SECRETS"
    )
    yield Finding("notifications can be verified", given, "" if given else advice)


def _broker() -> Iterator[Finding]:
    try:
        url = broker_url(BrokerSettings.read())
    except ReverseSyncError as problem:
        yield Finding("the broker answers", False, str(problem))
        return
    with closing(Publisher(url)) as publisher:
        answers = publisher.answers()
    advice = (
        "nothing answers at REVERSE_SYNC_BROKER_URL, or it refuses this password: start the broker or correct the URL"
    )
    yield Finding("the broker answers", answers, "" if answers else advice)


def _worker() -> Iterator[Finding]:
    """Ask what only a worker asks: it has the credentials for both sides."""
    from worker.mapping import load_routes
    from worker.medplum import Medplum
    from worker.start import systems

    try:
        settings = WorkerSettings.read()
        routes = load_routes(settings.routes)
    except ReverseSyncError as problem:
        yield Finding("the routes load", False, str(problem))
        return
    yield Finding(f"the routes load: {', '.join(routes)}", True)
    yield _belongs(settings, systems(settings, routes))
    with Medplum.of(settings) as medplum:
        identified = [name for name, route in routes.items() if route.identifier is not None]
        for name, ok, advice in medplum.check([*routes, *routes.parts], writes=identified):
            yield Finding(name, ok, advice)
        for name, ok, advice in _watch(settings, medplum):
            yield Finding(name, ok, advice)
    yield from _legacy(settings, routes)


def _watch(settings: WorkerSettings, medplum: Medplum) -> list[tuple[str, bool, str]]:
    """Ask for the rights of the watch, where there is a Subscription to be watched."""
    try:
        if current(settings.database_url) != head():
            return []
        with closing(Ledger.of(settings, connections=1)) as ledger:
            watches = ledger.watches()
    except ReverseSyncError:
        return []
    lines = medplum.check(["Subscription", "AuditEvent"], writes=["Subscription"] if settings.watch_rearms else [])
    return lines[1:] if watches else []  # that Medplum lets the client in is told already


def end_to_end(resource_type: str | None = None) -> Iterator[Finding]:
    """Write a test resource to Medplum, and see its notifications come: as an administrator, from a terminal."""
    from worker.mapping import load_routes
    from worker.medplum.admin import Admin
    from worker.subscriptions.causes import Expected
    from worker.subscriptions.doctor import Doctor
    from worker.subscriptions.wanted import needed

    settings = AdminSettings.read()
    if current(settings.database_url) != head():
        raise LedgerOutdated("the ledger's tables are not those of this release: run `reverse-sync migrate`")
    with closing(Ledger.of(settings, connections=1)) as ledger, Admin.admin(settings) as admin:
        known = ledger.routes()
        types = needed(load_routes(settings.routes), known)
        runs = (name for name in types if known[name].phase is not Phase.PAUSED)
        chosen = resource_type or next(runs, None)
        if chosen is None or chosen not in types:
            raise LedgerError(f"no route of {chosen or 'any type'} is live or shadows: there are {', '.join(types)}")
        secrets = [one.value for one in ledger.subscription_secrets()] + _given_secrets()
        expected = Expected(chosen, settings.endpoint, settings.webhook_token, secrets)
        for result in Doctor(ledger=ledger, admin=admin, expected=expected).examine():
            yield Finding(result.name, result.ok, result.advice)


def _given_secrets() -> list[SecretStr]:
    """Return the secrets of a receiver's settings, where they are here."""
    try:
        return [secret for secrets in ReceiverSettings.read().webhook_secrets.values() for secret in secrets]
    except ReverseSyncError:
        return []


def legacy() -> Iterator[Finding]:
    """Send each legacy API's declared harmless request, and nothing else."""
    from worker.mapping import load_routes

    try:
        settings = WorkerSettings.read()
        routes = load_routes(settings.routes)
    except ReverseSyncError as problem:
        yield Finding("the routes load", False, str(problem))
        return
    yield from _legacy(settings, routes)


def _legacy(settings: WorkerSettings, routes: Routes) -> Iterator[Finding]:
    from worker.legacy import Outcome

    apis = {collection.api.name: collection.api for route in routes.values() for collection in route.collections}
    with ExitStack() as stack:
        ledger = _sealing(settings)
        if ledger is not None:  # a token of a check's own would use up the workers' refresh token
            stack.enter_context(closing(ledger))
        for name, api in sorted(apis.items()):
            stack.callback(api.close)
            if ledger is not None:
                api.bind(ledger)
            answered, asked = api.ping(), f"the legacy API {name} answers"
            if answered is None:
                yield Finding(asked, True, "not asked: it declares no probe")
            else:
                ok = answered.outcome is Outcome.DONE
                advice = f"{answered.detail}: correct its address or its key (REVERSE_SYNC_SITE_…)"
                yield Finding(asked, ok, "" if ok else advice)


def _sealing(settings: WorkerSettings) -> Ledger | None:
    """Open the ledger, if it is there and can keep a token sealed."""
    try:
        if current(settings.database_url) != head():
            return None
        ledger = Ledger.of(settings, connections=1)
    except ReverseSyncError:
        return None
    if ledger.sealer.can_seal:
        return ledger
    ledger.close()
    return None


def _belongs(settings: WorkerSettings, systems: Mapping[str, str]) -> Finding:
    name = "the ledger belongs to these systems"
    try:
        if current(settings.database_url) != head():
            return Finding(name, False, "not known before reverse-sync migrate")
        with closing(Ledger.of(settings, connections=1)) as ledger:
            foreign = ledger.foreign(systems)
    except ReverseSyncError as problem:
        return Finding(name, False, str(problem))
    return Finding(name, not foreign, "\n".join([*foreign, ADOPT]) if foreign else "")
