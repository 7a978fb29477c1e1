"""What has to hold before anything is synced: the routes load, the ledger is theirs, and bodies can be sealed."""

from __future__ import annotations

from worker.errors import SettingsInvalid
from worker.ledger import Ledger
from worker.ledger.values import Phase
from worker.mapping import Routes, load_routes
from worker.settings import WorkerSettings


def systems(settings: WorkerSettings, routes: Routes) -> dict[str, str]:
    """Name the systems that a ledger belongs to: the Medplum server with its client, and each legacy API."""
    apis = {collection.api for route in routes.values() for collection in route.collections}
    legacy = {f"legacy:{api.name}": api.base_url for api in apis}
    return {"medplum": f"{settings.medplum_base_url} as {settings.medplum_client_id}", **legacy}


def prepare(settings: WorkerSettings, ledger: Ledger, *, register: bool = False) -> Routes:
    """Load the routes and check that they and the ledger go together; `register` makes them known to it first.

    Raises:
        RoutesInvalid: names file and line.
        LedgerForeign: names both systems.
        SettingsInvalid: a route is not known to the ledger, or is live and bodies cannot be sealed.
    """
    routes = load_routes(settings.routes)
    ledger.belong_to(systems(settings, routes))
    if register:
        ledger.register_routes({name: (route.phase, route.version) for name, route in routes.items()})
    unknown = sorted(set(routes) - set(ledger.routes()))
    if unknown:
        raise SettingsInvalid(f"the ledger does not know the routes {', '.join(unknown)}: run `reverse-sync migrate`")
    live = sorted(name for name, row in ledger.routes().items() if row.phase is Phase.LIVE)
    if live and not ledger.sealer.can_seal:
        raise SettingsInvalid(
            f"{', '.join(live)} cannot be live without REVERSE_SYNC_PAYLOAD_KEY: what is sent must be kept sealed "
            "until its outcome is known (an id and a key: `reverse-sync new-key`)"
        )
    return routes
