"""What has to hold before anything is synced: the routes load, the ledger is theirs, and bodies can be sealed.

And which version of each mapping is active: `docs/mapping-versions.md`.
"""

from __future__ import annotations

from worker import log
from worker.errors import SettingsInvalid
from worker.ledger import Ledger
from worker.ledger.values import Phase
from worker.mapping import Declared, Routes, load_routes
from worker.settings import WorkerSettings

WORKER_LIVES_S = 20.0  # as the ledger has it: a heartbeat older than this frees the leases of its process
OURSELVES = "reverse-sync"

_log = log.get(__name__)


def systems(settings: WorkerSettings, routes: Routes) -> dict[str, str]:
    """Name the systems that a ledger belongs to: the Medplum server with its client, and each legacy API."""
    apis = {collection.api for route in routes.values() for collection in route.collections}
    legacy = {f"legacy:{api.name}": api.base_url for api in apis}
    return {"medplum": f"{settings.medplum_base_url} as {settings.medplum_client_id}", **legacy}


def waiting_mappings(ledger: Ledger, routes: Declared) -> dict[str, str]:
    """Name the types that this code maps by another version than the active one, with this code's version."""
    known = ledger.routes()
    return {
        name: version
        for name, (_, version) in routes.types.items()
        if name in known and known[name].mapping_version != version
    }


def register_routes(ledger: Ledger, routes: Declared) -> None:
    """Make routes known to the ledger. A new mapping of a known type is activated only if no worker lives.

    While one does, it may map by the old version: a person activates the new one when all run it.
    """
    ledger.register_routes(routes.types)
    waiting, heard_s = waiting_mappings(ledger, routes), ledger.alive(role="worker")
    if waiting and (heard_s is None or heard_s > WORKER_LIVES_S):
        ledger.activate(waiting, who=OURSELVES, why="migrate: no worker was alive")


def prepare(settings: WorkerSettings, ledger: Ledger, *, register: bool = False) -> Declared:
    """Load the routes and check that they and the ledger go together; `register` makes them known to it first.

    Raises:
        RoutesInvalid: names file and line.
        LedgerForeign: names both systems.
        SettingsInvalid: a route is not known to the ledger, or is live and bodies cannot be sealed.
    """
    routes = load_routes(settings.routes)
    ledger.belong_to(systems(settings, routes))
    if register:
        register_routes(ledger, routes)
    unknown = sorted(set(routes.types) - set(ledger.routes()))
    if unknown:
        raise SettingsInvalid(f"the ledger does not know the routes {', '.join(unknown)}: run `reverse-sync migrate`")
    if waiting := waiting_mappings(ledger, routes):
        _log.warning("mappings are not active: their changes wait for `reverse-sync activate`", types=sorted(waiting))
    live = sorted(name for name, row in ledger.routes().items() if row.phase is Phase.LIVE)
    if live and not ledger.sealer.can_seal:
        raise SettingsInvalid(
            f"{', '.join(live)} cannot be live without REVERSE_SYNC_PAYLOAD_KEY: what is sent must be kept sealed "
            "until its outcome is known (an id and a key: `reverse-sync new-key`)"
        )
    if ledger.sealer.can_seal:
        for api in {collection.api for route in routes.values() for collection in route.collections}:
            api.bind(ledger)
    return routes
