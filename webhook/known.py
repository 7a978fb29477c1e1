"""What the receiver knows of the ledger: the routed types and the secrets, looked up again every few seconds.

It tells the ledger that it lives and which secrets it knows, so that Medplum is given a new one only once every
receiver would accept it. A ledger that is away changes nothing: what was known goes on being true.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol
from uuid import uuid4

from pydantic import SecretStr

from webhook.signature import Secrets
from worker.errors import LedgerOutdated, LedgerUnavailable, SettingsInvalid
from worker.ledger.subscribing import RECEIVER, KeptSecret
from worker.ledger.values import RouteRow
from worker.log import described, get
from worker.settings import ReceiverSettings

__all__ = ["LOOK_EVERY_S", "Knowing", "Known"]

LOOK_EVERY_S: Final = 3.0
NOTE_EVERY_S: Final = 12.0  # that deliveries come; a secret's last use need not be known to the second
NO_ROUTES: Final = "the ledger knows no routes: run `reverse-sync migrate` first"
NOTHING_TO_VERIFY_WITH: Final = (
    "there is nothing to verify a notification with: run `reverse-sync subscriptions apply`, which makes a secret for "
    "each Subscription (REVERSE_SYNC_PAYLOAD_KEY opens them), or set REVERSE_SYNC_WEBHOOK_SECRETS"
)

log = get(__name__)


class Knowing(Protocol):
    """What the receiver looks up in the ledger, and tells it."""

    def routes(self) -> Mapping[str, RouteRow]: ...

    def subscription_secrets(self) -> Sequence[KeptSecret]: ...

    def note_deliveries(self, *, types: Collection[str], secrets: Collection[str]) -> None: ...

    def heartbeat(self, *, instance: str, role: str, host: str, pid: int, detail: str = "") -> None: ...

    def depart(self, *, instance: str) -> None: ...


class Known:
    """What is known now. Asked on the event loop, looked up in a thread."""

    def __init__(self, ledger: Knowing, settings: ReceiverSettings) -> None:
        self._ledger = ledger
        self._given = settings.webhook_secrets
        self._instance = f"{RECEIVER}-{uuid4().hex}"
        self._came: set[str] = set()
        self._signed: set[bytes] = set()
        self._noted: dict[str, float] = {}
        self._detail = ""
        self._take(frozenset(ledger.routes()), ledger.subscription_secrets())
        if not self._types:
            raise LedgerOutdated(NO_ROUTES)
        if self.secrets.none:
            raise SettingsInvalid(NOTHING_TO_VERIFY_WITH)

    def types(self) -> Collection[str]:
        """Return the resource types that have a route."""
        return self._types

    def came(self, resource_type: str, key: bytes) -> None:
        """Note that a notification came, and the key that had signed it."""
        if resource_type in self._types:
            self._came.add(resource_type)
        self._signed.add(key)

    async def look_for_ever(self) -> None:
        """Look again every few seconds, until it is cancelled."""
        while True:
            came, signed = self._worth_noting()
            try:
                await asyncio.to_thread(self._look, came, signed)
            except LedgerUnavailable:
                pass  # what was known goes on being true
            except Exception as error:  # a look that fails must not be the last one
                log.error("what the ledger knows could not be looked up", error=described(error))  # noqa: TRY400 - nothing of its text
            await asyncio.sleep(LOOK_EVERY_S)

    def leave(self) -> None:
        """Take this receiver off the ledger's list."""
        with suppress(LedgerUnavailable):
            self._ledger.depart(instance=self._instance)

    def _look(self, came: Collection[str], signed: Collection[str]) -> None:
        self._take(frozenset(self._ledger.routes()), self._ledger.subscription_secrets())
        if came or signed:
            self._ledger.note_deliveries(types=came, secrets=signed)
        self._ledger.heartbeat(
            instance=self._instance, role=RECEIVER, host=socket.gethostname(), pid=os.getpid(), detail=self._detail
        )

    def _take(self, types: Collection[str], kept: Sequence[KeptSecret]) -> None:
        self._types = types
        self._names = {one.value.get_secret_value().encode(): one.name for one in kept}
        self.secrets = Secrets(_together(self._given, kept), strangers=[one.value for one in kept])
        self._detail = json.dumps({"secrets": sorted(self._names.values())})

    def _worth_noting(self) -> tuple[set[str], set[str]]:
        """Say what came since the last look, but for what was noted a moment ago."""
        now, came, signed = monotonic(), self._came, self._signed
        self._came, self._signed = set(), set()
        names = {self._names[key] for key in signed if key in self._names}
        fresh = {name for name in came | names if now - self._noted.get(name, -NOTE_EVERY_S) >= NOTE_EVERY_S}
        self._noted |= dict.fromkeys(fresh, now)
        self._came |= came - fresh  # told at a later look, though nothing more may come
        self._signed |= {key for key in signed if self._names.get(key) in names - fresh}
        return came & fresh, names & fresh


def _together(
    given: Mapping[str, Sequence[SecretStr]], kept: Sequence[KeptSecret]
) -> Mapping[str, Sequence[SecretStr]]:
    """Lay the secrets of those Subscriptions whose id is known beside those of the settings."""
    by_id = {name: tuple(values) for name, values in given.items()}
    for one in kept:
        if one.medplum_id is not None:
            by_id[one.medplum_id] = (*by_id.get(one.medplum_id, ()), one.value)
    return by_id
