"""Create, update, patch, delete and their kin: what each write does to the stored versions and who hears of it.

The only module that makes versions. It knows nothing of HTTP.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

from .delivery import Deliveries, Event
from .faults import Faults
from .javascript import Json, dumps
from .outcome import bad_request, gone, not_found, precondition_failed
from .resources import deletion_body, patched, same_content, stamped, tokens_of
from .store import Job, Store, Version
from .subscription import Register

__all__ = ["Repository", "Writer", "instant"]

_SYSTEM: Json = {"reference": "system"}
_QUOTED = re.compile(r'"([^"]+)"')
_NEVER_NOTIFIED = "AuditEvent"


def instant(seconds: float) -> str:
    """Write a time as Medplum does: milliseconds and `Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@dataclass(frozen=True, slots=True)
class Writer:
    """On whose behalf something is written."""

    author: Json
    trace_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    may_set_id: bool = False
    notify: bool = True


class Repository:
    """The resources of one project."""

    def __init__(self, store: Store, deliveries: Deliveries, register: Register, project: str) -> None:
        self.store, self.deliveries, self.register = store, deliveries, register
        self.faults: Faults = deliveries.faults
        self.project = project
        self._older_next = False
        self._random = random.Random(5)  # noqa: S311 - a fault's dice
        deliveries.auditor = self
        self.reload_subscriptions()

    # writes

    def create(self, type_: str, resource: Json, writer: Writer) -> Version:
        """Store a new resource under an id of our own, unless the writer may bring one."""
        id_ = resource.get("id") if writer.may_set_id else None
        return self._write(resource | {"resourceType": type_, "id": id_ or str(uuid.uuid4())}, writer, None)

    def update(self, type_: str, id_: str, resource: Json, writer: Writer, if_match: str | None) -> Version:
        """Replace a resource; a deleted one lives again, and a write that changes nothing makes no version."""
        current = self.store.current(type_, id_)
        if current is None and not writer.may_set_id:
            raise not_found()
        expected = _QUOTED.search(if_match) if if_match else None
        if expected and current and current.version_id != expected[1]:
            raise precondition_failed()
        return self._write(resource | {"resourceType": type_, "id": id_}, writer, current)

    def patch(self, type_: str, id_: str, operations: list[Json], writer: Writer) -> Version:
        """Apply a JSON Patch to the current version."""
        current = self.live(type_, id_)
        changed = patched(current.resource(), operations)
        if changed.get("resourceType") != type_ or changed.get("id") != id_:
            raise bad_request("Patch changes resourceType or id")
        return self._write(changed, writer, current)

    def delete(self, type_: str, id_: str, writer: Writer) -> Version:
        """Mark as deleted."""
        current = self.live(type_, id_)
        stamp = (str(uuid.uuid4()), self._now(current), writer.author, self.project)
        version = Version(type_, id_, stamp[0], stamp[1], deleted=True, body=deletion_body(type_, id_, stamp))
        with self.store.transaction():
            self.store.add(version, ())
            self._tell(version, current.resource(), "delete", writer)
        return version

    def expunge(self, type_: str, id_: str) -> None:
        """Remove all versions; nobody is told."""
        if self.store.current(type_, id_) is None:
            raise not_found()
        self.store.expunge(type_, id_)
        if type_ == "Subscription":
            self.register.forget(id_)

    def resend(self, type_: str, id_: str, interaction: str, trace_id: str, subscription: str | None) -> None:
        """Send the current version again as whichever interaction is asked for."""
        current = self.live(type_, id_)
        resource = current.resource()
        fired = [one for one in self.register if one.fires(type_, interaction, tokens_of(resource))]
        wanted = [one for one in fired if subscription in {None, f"Subscription/{one.id}"}]
        with self.store.transaction():
            self.deliveries.announce(Event(type_, id_, current.version_id, interaction, trace_id), wanted)

    def hint_delete(self, type_: str, id_: str, trace_id: str) -> None:
        """Send a delete without deleting: the transaction has yet to commit, or was rolled back."""
        current = self.store.current(type_, id_)
        if current is None or current.deleted:
            return
        fired = [one for one in self.register if one.fires(type_, "delete", tokens_of(current.resource()))]
        with self.store.transaction():
            self.deliveries.announce(Event(type_, id_, current.version_id, "delete", trace_id), fired)

    def keep(self, resource: Json, interaction: str | None, *, current: bool = True, deleted: bool = False) -> bool:
        """Store a resource as it is, id and meta included; return whether it was new."""
        meta = resource.get("meta", {})
        if not all((resource.get("resourceType"), resource.get("id"), meta.get("versionId"), meta.get("lastUpdated"))):
            raise bad_request("A resource to load needs resourceType, id, meta.versionId and meta.lastUpdated")
        key = (resource["resourceType"], resource["id"])
        if self.store.version(*key, meta["versionId"]) is not None:
            return False
        version = Version(*key, meta["versionId"], meta["lastUpdated"], deleted=deleted, body=dumps(resource))
        with self.store.transaction():
            self.store.add(version, () if deleted else tokens_of(resource), current=current)
            writer = Writer({}, notify=interaction is not None)
            self._tell(version, resource, interaction or "update", writer)
        return True

    def _write(self, resource: Json, writer: Writer, current: Version | None) -> Version:
        previous = current.resource() if current is not None and not current.deleted else None
        stamp = (str(uuid.uuid4()), self._now(current), writer.author, self.project)
        written = stamped(resource, stamp, previous)
        if current is not None and previous is not None and same_content(previous, written):
            return current
        key = (written["resourceType"], written["id"])
        version = Version(*key, stamp[0], stamp[1], deleted=False, body=dumps(written))
        with self.store.transaction():
            self.store.add(version, tokens_of(written))
            self._tell(version, written, "create" if current is None else "update", writer)
        return version

    def _tell(self, version: Version, resource: Json, interaction: str, writer: Writer) -> None:
        if version.type == _NEVER_NOTIFIED:
            return
        if version.type == "Subscription":
            self.register.forget(version.id) if version.deleted else self.register.note(resource)
        if not writer.notify:
            return
        tokens = tokens_of(resource)
        fired = [one for one in self.register if one.fires(version.type, interaction, tokens)]
        event = Event(version.type, version.id, version.version_id, interaction, writer.trace_id)
        self.deliveries.announce(event, fired)

    def _now(self, previous: Version | None) -> str:
        """Return lastUpdated; with concurrent writers it is the previous version's or some milliseconds older."""
        if self.faults.frozen_clock is not None:
            return instant(_seconds(self.faults.frozen_clock))
        if previous is None or not self.faults.concurrent_writers:
            return instant(time.time())
        self._older_next = not self._older_next
        older = self._random.randint(1, 9) / 1_000 if self._older_next else 0.0
        return instant(_seconds(previous.last_updated) - older)

    # reads

    def live(self, type_: str, id_: str) -> Version:
        """Return the current version; 404 or 410 without one."""
        current = self.store.current(type_, id_)
        if current is None:
            raise not_found()
        if current.deleted:
            raise gone()
        return current

    def reload_subscriptions(self) -> None:
        """Read the active Subscriptions from the file."""
        stored = self.store.select("FROM version v WHERE v.type = 'Subscription' AND v.current AND NOT v.deleted", ())
        self.register.replace([version.resource() for version in stored])

    # what deliveries leave behind

    def audit(self, job: Job, *, delivered: bool, text: str) -> None:
        """Store the AuditEvent of an attempt."""
        now = instant(time.time())
        subscription = {"reference": f"Subscription/{job.subscription}"}
        event: Json = {
            "resourceType": "AuditEvent",
            "type": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "110112"},
            "recorded": now,
            "outcome": "0" if delivered else "4",
            "outcomeDesc": text,
            "agent": [{"type": {"text": "subscription"}, "requestor": False}],
            "source": {"observer": subscription},
            "entity": [{"what": {"reference": f"{job.type}/{job.id}"}}, {"what": subscription}],
        }
        self.create("AuditEvent", event, Writer(_SYSTEM))

    def switch_off(self, subscription: str, reason: str) -> None:
        """Set a Subscription to `off`; what is queued for it will find nobody."""
        current = self.store.current("Subscription", subscription)
        if current is not None and not current.deleted:
            changed = current.resource() | {"status": "off", "error": reason}
            self.update("Subscription", subscription, changed, Writer(_SYSTEM), None)
