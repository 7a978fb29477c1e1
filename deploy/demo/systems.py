"""The two stand-ins as the demo asks and steers them: over HTTP, on loopback, by their control planes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

Json = dict[str, Any]

_SECRET = "https://www.medplum.com/fhir/StructureDefinition/subscription-secret"  # noqa: S105 - the name of an extension


class Medplum:
    """The stand-in for Medplum, as its administrator and its front end."""

    def __init__(self, url: str, *, client: str, secret: str) -> None:
        self.url = url
        self._client, self._secret = client, secret
        self._http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def subscribe(self, resource_type: str, endpoint: str, *, secret: str, authorization: str) -> None:
        """Register a Subscription as a project's administrator would: with a secret and a shared header."""
        form = {"grant_type": "client_credentials", "client_id": self._client, "client_secret": self._secret}
        token = self._http.post("/oauth2/token", data=form).raise_for_status().json()["access_token"]
        subscription = {
            "resourceType": "Subscription",
            "status": "active",
            "reason": "reverse sync",
            "criteria": resource_type,
            "channel": {"type": "rest-hook", "endpoint": endpoint, "header": [f"Authorization: {authorization}"]},
            "extension": [{"url": _SECRET, "valueString": secret}],
        }
        headers = {"Authorization": f"Bearer {token}"}
        self._http.post("/fhir/R4/Subscription", json=subscription, headers=headers).raise_for_status()

    def write(self, resources: Sequence[Json], deletes: Sequence[str] = ()) -> None:
        """Write and delete in one transaction, as the front end."""
        self._steer("bulk", {"resources": list(resources), "deletes": list(deletes)})

    def load(self, resources: Sequence[Json], **how: object) -> None:
        """Store resources as they were recorded; `how` is as in the stand-in's own words."""
        self._steer("load", {"resources": list(resources), **how})

    def claim_deleted(self, reference: str) -> None:
        """Tell of a delete that never happened, as a rolled-back transaction does."""
        self._steer("notify", {"reference": reference, "interaction": "delete"})

    def undelivered(self) -> int:
        """Count the notifications that nobody has taken yet."""
        return int(self._http.get("/sandbox/state").raise_for_status().json()["deliveries"]["pending"])

    def truth(self, resource_type: str) -> Iterator[Json]:
        """Yield every resource of a type as it is now, deleted ones included."""
        yield from _lines(self._http.get("/sandbox/resources", params={"type": resource_type}))

    def _steer(self, verb: str, wanted: Json) -> None:
        self._http.post(f"/sandbox/{verb}", json=wanted).raise_for_status()


class Clinic:
    """The legacy clinic, as its administrator."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=20, trust_env=False)

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def slow_down(self, seconds: float) -> None:
        """Let every write take so long to be answered once it is saved."""
        rules = [
            {"match": {"method": method}, "kind": "delay", "seconds": seconds, "saves": True} for method in _WRITES
        ]
        self._http.post("/sandbox/faults", json=rules).raise_for_status()

    def unheard(self) -> int:
        """Count the writes that were saved and never answered."""
        journal = _lines(self._http.get("/sandbox/journal"))
        return sum(line["outcome"] == "applied" and line["status"] is None for line in journal)

    def records(self) -> Mapping[str, Json]:
        """Return every record by its name, as in patient/4701."""
        return {record["record"]: record for record in _lines(self._http.get("/sandbox/records"))}


_WRITES = ("POST", "PUT", "DELETE")
_anybody = httpx.Client(timeout=2, trust_env=False)


def answers(url: str) -> bool:
    """Tell whether something answers HTTP there."""
    try:
        _anybody.get(url)
    except httpx.TransportError:
        return False
    return True


def _lines(answer: httpx.Response) -> Iterator[Json]:
    return (json.loads(line) for line in answer.raise_for_status().text.split("\n") if line)
