"""The Subscriptions that the routes need, and how one is written. Pure.

One for each type whose changes have to come here, and for each part of those. Interactions are not narrowed: deletes
come too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import SecretStr

from worker.ledger.values import Phase, RouteRow
from worker.mapping import Declared
from worker.medplum.marked import SUBSCRIPTION, SYSTEM, tag
from worker.subscriptions.found import ATTEMPTS, INTERACTION, SECRET, SECRETS, SUCCESS, Found

__all__ = ["ATTEMPTS_WANTED", "NEEDED_IN", "Wanted", "digests", "needed", "wanted"]

ATTEMPTS_WANTED: Final = 18
"""The most that Medplum takes: some 2.5 days, with gaps of 1, 2, 4, … seconds. By default it gives up after 15 s."""

NEEDED_IN: Final = frozenset({Phase.SHADOW, Phase.LIVE, Phase.PAUSED})
"""The phases in which changes have to come here; while a route is paused they gather."""

_REASON: Final = "reverse sync to the legacy system; made by `reverse-sync subscriptions apply`"
_OURS: Final = frozenset({ATTEMPTS, INTERACTION, SUCCESS, *SECRETS})


@dataclass(frozen=True, slots=True)
class Wanted:
    """A Subscription as it should be, but for its secret."""

    resource_type: str
    criteria: str
    endpoint: str
    token: SecretStr | None = field(repr=False)

    def members(self) -> dict[str, object]:
        """Return what `Found.members` should say."""
        return {
            "criteria": self.criteria,
            "channel type": "rest-hook",
            "endpoint": self.endpoint,
            "header": self._header(),
            "interactions": "",
            "attempts": ATTEMPTS_WANTED,
            "success codes": "",
        }

    def resource(self, secret: SecretStr) -> dict[str, Any]:
        """Write a new one."""
        return {
            "resourceType": "Subscription",
            "meta": {"tag": [tag(SUBSCRIPTION)]},
            "status": "active",
            "reason": _REASON,
            "criteria": self.criteria,
            "channel": self._channel({}),
            "extension": self._extensions((), secret),
        }

    def change(self, found: Found, secret: SecretStr) -> dict[str, object]:
        """Say which members make one that was found into this one; what else it carries stays."""
        meta = found.resource.get("meta")
        tags = meta.get("tag") if isinstance(meta, Mapping) else None
        others = [one for one in (tags if isinstance(tags, list) else ()) if one.get("system") != SYSTEM]
        extensions = found.resource.get("extension")
        error: dict[str, object] = {"error": None} if "error" in found.resource else {}
        return {
            "meta/tag": [*others, tag(SUBSCRIPTION)],
            "status": "active",
            "reason": _REASON,
            "criteria": self.criteria,
            "channel": self._channel(found.channel),
            "extension": self._extensions(extensions if isinstance(extensions, list) else (), secret),
            **error,
        }

    def _header(self) -> list[str]:
        return [] if self.token is None else [f"Authorization: {self.token.get_secret_value()}"]

    def _channel(self, given: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in given.items() if name != "header"}
        header = {"header": self._header()} if self.token is not None else {}
        return kept | {"type": "rest-hook", "endpoint": self.endpoint} | header

    @staticmethod
    def _extensions(given: Any, secret: SecretStr) -> list[dict[str, Any]]:
        kept = [one for one in given if not isinstance(one, Mapping) or one.get("url") not in _OURS]
        return [
            *kept,
            {"url": SECRET, "valueString": secret.get_secret_value()},
            {"url": ATTEMPTS, "valueInteger": ATTEMPTS_WANTED},
        ]


def needed(routes: Declared, known: Mapping[str, RouteRow]) -> dict[str, str]:
    """Say which types need a Subscription now, and the criteria of each: routes by their phase, and their parts."""
    criteria = {
        name: route.criteria or name
        for name, route in routes.items()
        if name in known and known[name].phase in NEEDED_IN
    }
    return criteria | {name: name for name in routes.parts if name in known and criteria}


def wanted(
    routes: Declared, known: Mapping[str, RouteRow], *, endpoint: str, token: SecretStr | None
) -> tuple[Wanted, ...]:
    """Say which Subscriptions should be there, by type."""
    return tuple(Wanted(name, criteria, endpoint, token) for name, criteria in sorted(needed(routes, known).items()))


def digests(members: Mapping[str, object], digest: Callable[[bytes], str]) -> dict[str, str]:
    """Tell each member by a digest: a change shows, and what stands there does not."""
    return {name: digest(canonical(name, value)) for name, value in members.items()}


def canonical(name: str, value: object) -> bytes:
    """Write a member down so that equal ones are equal bytes."""
    return json.dumps([name, value], sort_keys=True).encode()
