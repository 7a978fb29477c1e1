"""A Subscription as Medplum has it. Pure; it shows no secret in any text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from worker.errors import BadResource
from worker.medplum import Present
from worker.medplum.marked import SUBSCRIPTION, is_marked
from worker.strict_json import loads

__all__ = ["ATTEMPTS", "INTERACTION", "SECRET", "SECRETS", "SUCCESS", "Found", "of"]

_MEDPLUM: Final = "https://medplum.com/fhir/StructureDefinition/subscription-"
SECRET: Final = "https://www.medplum.com/fhir/StructureDefinition/subscription-secret"  # noqa: S105 - the name of an extension
SECRETS: Final = frozenset({SECRET, "https://www.medplum.com/fhir/StructureDefinition-subscriptionSecret"})
ATTEMPTS: Final = _MEDPLUM + "max-attempts"
INTERACTION: Final = _MEDPLUM + "supported-interaction"
SUCCESS: Final = _MEDPLUM + "success-codes"

ATTEMPTS_BY_DEFAULT: Final = 4


@dataclass(frozen=True, slots=True)
class Found:
    """One Subscription that was read."""

    reference: str
    version_id: str
    last_updated: datetime
    resource: Mapping[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        return self.reference.partition("/")[2]

    @property
    def ours(self) -> bool:
        """Tell whether it carries our tag."""
        return is_marked(self.resource, SUBSCRIPTION)

    @property
    def resource_type(self) -> str:
        return self.criteria.partition("?")[0]

    @property
    def criteria(self) -> str:
        return str(self.resource.get("criteria", ""))

    @property
    def status(self) -> str:
        return str(self.resource.get("status", ""))

    @property
    def active(self) -> bool:
        return self.status == "active"

    @property
    def channel(self) -> Mapping[str, Any]:
        channel = self.resource.get("channel")
        return channel if isinstance(channel, Mapping) else {}

    @property
    def endpoint(self) -> str:
        return str(self.channel.get("endpoint", ""))

    @property
    def headers(self) -> tuple[str, ...]:
        given = self.channel.get("header")
        return tuple(str(one) for one in given) if isinstance(given, list) else ()

    @property
    def secret(self) -> str:
        return str(self.extension(*SECRETS) or "")

    @property
    def interaction(self) -> str:
        """Name the only interaction that is sent; "" for all."""
        return str(self.extension(INTERACTION) or "")

    @property
    def attempts(self) -> int:
        """Say how often Medplum tries again after the first time."""
        told = self.extension(ATTEMPTS)
        try:
            return int(str(told))
        except ValueError:
            return ATTEMPTS_BY_DEFAULT

    def extension(self, *urls: str) -> object:
        """Return the value of the first extension with one of these URLs: only the first counts."""
        given = self.resource.get("extension")
        for one in given if isinstance(given, list) else ():
            if isinstance(one, Mapping) and one.get("url") in urls:
                return next((value for name, value in one.items() if name.startswith("value")), None)
        return None

    def members(self) -> dict[str, object]:
        """Return what was applied and may have been changed since; the secret is judged on its own."""
        return {
            "criteria": self.criteria,
            "channel type": str(self.channel.get("type", "")),
            "endpoint": self.endpoint,
            "header": list(self.headers),
            "interactions": self.interaction,
            "attempts": self.attempts,
            "success codes": str(self.extension(SUCCESS) or ""),
        }


def of(present: Present) -> Found:
    """Read one out of a search.

    Raises:
        BadResource: it is not one.
    """
    resource = loads(present.body)
    if not isinstance(resource, dict):
        raise BadResource("not a JSON object")
    return Found(present.reference, present.version_id, present.last_updated, resource)
