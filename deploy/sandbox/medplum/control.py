"""The control plane's verbs: faults, forged notifications, loading and writing in bulk, and the truth for tests.

What each takes and answers stands in the package's docstring.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from .clients import Clients
from .javascript import Json, dumps
from .outcome import Refused, bad_request
from .repository import Repository, Writer
from .store import Job, Version
from .subscription import Subscription

__all__ = ["Control"]

_TRUTH = "FROM version v WHERE v.current AND {} ORDER BY v.seq"
_ACTIVE_INTERACTIONS = ("create", "update", "delete")


class Control:
    """What only tests, the demo and an operator of the sandbox may do."""

    def __init__(self, repository: Repository, clients: Clients) -> None:
        self._repository, self._clients = repository, clients
        self._store, self._deliveries = repository.store, repository.deliveries
        self._faults = repository.faults

    def state(self) -> Json:
        """Return counts."""
        return {
            "resources": self._store.counts(),
            "versions": self._store.scalar("SELECT count(*) FROM version"),
            "subscriptions": sorted(one.id for one in self._repository.register),
            "deliveries": {"pending": self._deliveries.pending(), **self._deliveries.counted},
            "faults": self._faults.shown(),
        }

    def switch(self, wanted: Json) -> Json:
        """Change the named faults."""
        self._faults.switch(wanted)
        if wanted.get("stale_search"):
            self._faults.stale_search_at = self._store.scalar("SELECT coalesce(max(seq), 0) FROM version")
        if self._faults.expire_tokens:
            self._clients.expire_tokens()
            self._faults.expire_tokens = False
        self._deliveries.hold(self._faults.hold_deliveries)
        return self._faults.shown()

    def clear(self) -> Json:
        """Switch everything right again."""
        self._faults.clear()
        return self.switch({})

    def reset(self) -> None:
        """Forget resources, deliveries, tokens, quota and faults."""
        self._store.reset()
        self._clients.expire_tokens()
        self._clients.forget_usage()
        self._deliveries.forget_all()
        self._repository.reload_subscriptions()
        self.clear()

    def notify(self, wanted: Json) -> Json:
        """Forge notifications."""
        type_, _, id_ = str(wanted.get("reference", "")).partition("/")
        interaction = wanted.get("interaction", "update")
        if not id_ or interaction not in _ACTIVE_INTERACTIONS:
            raise bad_request("notify needs reference (Type/id) and interaction (create, update or delete)")
        body, secret = wanted.get("body"), wanted.get("secret")
        current = self._store.current(type_, id_)
        job = Job(
            "",
            *(type_, id_, wanted.get("version") or (current.version_id if current else ""), interaction),
            trace_id=wanted.get("trace_id") or str(uuid.uuid4()),
            forced=True,
            body=body.encode() if isinstance(body, str) else None if body is None else dumps(body),
            secret=secret,
        )
        targets = self._targets(type_, wanted.get("subscription")) * int(wanted.get("times", 1))
        with self._store.transaction():
            for target in targets:
                self._deliveries.add(_addressed(job, target))
        return {"queued": len(targets)}

    def _targets(self, type_: str, subscription: str | None) -> list[Subscription]:
        if subscription is None:
            return [one for one in self._repository.register if one.type == type_]
        one = self._repository.register.get(subscription.removeprefix("Subscription/"))
        return [] if one is None else [one]

    def load(self, wanted: Json) -> Json:
        """Store resources as they are."""
        given = wanted.get("resources") or [wanted.get("resource")]
        if not all(isinstance(resource, dict) for resource in given):
            raise bad_request("load needs resource or resources")
        deleted = wanted.get("deleted", False)
        usual = "delete" if deleted else "update"
        interaction = wanted.get("interaction", usual) if wanted.get("notify") else None
        with self._store.transaction():
            loaded = [
                self._repository.keep(resource, interaction, current=wanted.get("current", True), deleted=deleted)
                for resource in given
            ]
        return {"loaded": sum(loaded), "known": len(loaded) - sum(loaded)}

    def bulk(self, wanted: Json) -> Json:
        """Write, update and delete many in one transaction, in the given order."""
        writer = self._writer(wanted.get("author", "frontend"), wanted.get("notify", True), wanted.get("trace_id"))
        frozen, self._faults.frozen_clock = self._faults.frozen_clock, wanted.get("lastUpdated")
        self._faults.frozen_clock = self._faults.frozen_clock or frozen
        try:
            with self._store.transaction():
                written = [self._put(resource, writer) for resource in wanted.get("resources", [])]
                written += [self._delete(reference, writer) for reference in wanted.get("deletes", [])]
        except Refused:
            self._repository.reload_subscriptions()
            raise
        finally:
            self._faults.frozen_clock = frozen
        return {"versions": [_named(version) for version in written]}

    def _writer(self, author: Any, notify: bool, trace_id: str | None) -> Writer:
        client = self._clients.get(author) if isinstance(author, str) else None
        named = author if isinstance(author, dict) else client.author if client else {"reference": author}
        return Writer(named, trace_id or str(uuid.uuid4()), may_set_id=True, notify=notify)

    def _put(self, resource: Json, writer: Writer) -> Version:
        type_, id_ = resource.get("resourceType", ""), resource.get("id")
        if not type_:
            raise bad_request("A resource to write needs resourceType")
        if id_ is None or self._store.current(type_, id_) is None:
            return self._repository.create(type_, resource, writer)
        return self._repository.update(type_, id_, resource, writer, None)

    def _delete(self, reference: str, writer: Writer) -> Version:
        type_, _, id_ = reference.partition("/")
        return self._repository.delete(type_, id_, writer)

    def truth(self, type_: str | None) -> Iterator[bytes]:
        """Yield a line of JSON for each current resource, deleted ones included."""
        where = "v.type <> 'AuditEvent'" if type_ is None else "v.type = ?"
        for version in self._store.select(_TRUTH.format(where), [] if type_ is None else [type_]):
            named = dumps(_named(version) | {"deleted": version.deleted})
            yield named[:-1] + b',"resource":' + (b"null" if version.deleted else version.body) + b"}\n"


def _addressed(job: Job, target: Subscription) -> Job:
    return Job(
        *(target.id, job.type, job.id, job.version_id, job.interaction, job.trace_id),
        forced=True,
        body=job.body,
        secret=job.secret,
    )


def _named(version: Version) -> Json:
    return {
        "reference": version.reference,
        "versionId": version.version_id,
        "lastUpdated": version.last_updated,
    }
