"""Medplum as its administrator: what `reverse-sync subscriptions` and the doctor write, from a person's terminal.

No process of the service opens it: its credential is in `AdminSettings`, which none of them reads. It creates, deletes
and expunges; what it changes, it changes as `Medplum.change` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

import httpx

from worker.deadline import deadline
from worker.errors import BadResource, MedplumUnavailable
from worker.medplum.answer import failure
from worker.medplum.client import Medplum, Send
from worker.medplum.quota import Priority
from worker.settings import AdminSettings

__all__ = ["Admin"]

_CREATED, _GONE = (200, 201), (200, 204, 404, 410)
_FORBIDDEN = (400, 403, 404)
_UNITS = 100


class Admin(Medplum):
    """One Medplum server, entered as an administrator of the project."""

    @classmethod
    def admin(cls, settings: AdminSettings) -> Self:
        """Make the client that the settings describe."""
        return cls(settings.medplum_base_url, settings.admin_client_id, settings.admin_client_secret, connections=2)

    def create(self, resource: Mapping[str, Any], *, deadline_s: float) -> dict[str, Any]:
        """Create a resource, and return it as Medplum has it.

        Raises:
            MedplumUnavailable: whether it is there, nobody knows: look before it is created again.
            MedplumRefused: credentials or rights, or Medplum takes no such resource.
        """
        resource_type = str(resource["resourceType"])
        what = f"the creation of a {resource_type}"
        answer = self._change("POST", resource_type, what, deadline_s, resource)
        if answer.status_code not in _CREATED:
            raise failure(answer, what, needs="create")
        try:
            made = answer.json()
            if isinstance(made, dict) and isinstance(made.get("id"), str) and isinstance(made["meta"], dict):
                return made
        except (ValueError, KeyError, RecursionError):
            pass
        raise MedplumUnavailable(f"the answer to {what} is no resource")

    def delete(self, reference: str, *, deadline_s: float) -> None:
        """Delete a resource; one that is gone already is deleted.

        Raises:
            MedplumUnavailable, MedplumRefused: as for a creation.
        """
        what = f"the deletion of a {reference.partition('/')[0]}"
        answer = self._change("DELETE", reference, what, deadline_s)
        if answer.status_code not in _GONE:
            raise failure(answer, what, needs="delete")

    def expunge(self, reference: str, *, deadline_s: float) -> bool:
        """Remove a deleted resource with its history; False where this client may not.

        Raises:
            MedplumUnavailable: as for a creation.
        """
        what = f"the removal of a {reference.partition('/')[0]} with its history"
        answer = self._change("POST", f"{reference}/$expunge", what, deadline_s)
        if answer.status_code in _FORBIDDEN:
            return False
        if answer.status_code not in _GONE:
            raise failure(answer, what, needs="expunge")
        return True

    def _change(
        self, method: str, path: str, what: str, deadline_s: float, resource: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        if any(step in {"", ".", ".."} for step in path.split("/")):
            raise BadResource("a reference should be a resource type and an id")
        content = None if resource is None else json.dumps(resource).encode()
        typed = {} if content is None else {"Content-Type": "application/fhir+json"}
        change: Send = lambda headers: self._http.request(  # noqa: E731
            method, f"fhir/R4/{path}", content=content, headers=headers | typed
        )
        with deadline(deadline_s):
            return self._let_in(change, what, Priority.LIVE, _UNITS)
