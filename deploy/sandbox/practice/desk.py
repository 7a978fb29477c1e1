"""The practice's front desk: what each request about providers and patients does, and what every other one needs.

Synchronous from the first look to the last write, so that requests take effect one after the other. It knows neither
sockets nor tokens nor faults.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from deploy.sandbox.practice import forms
from deploy.sandbox.practice.records import SECOND_KEYS, Kind
from deploy.sandbox.witness.forms import Fields, Filled, Form, name_of
from deploy.sandbox.witness.store import Record, Store
from deploy.sandbox.witness.system import Answer, Outcome, Refusal, Request, count

_LIMIT, _LIMIT_MAX = 20, 100
_PEOPLE: Mapping[str, Form] = {Kind.PROVIDER: forms.PROVIDER, Kind.PATIENT: forms.PATIENT}
_FILTERS = {Kind.PROVIDER: ("npi", "external_id"), Kind.PATIENT: ("last_name", "dob", "external_id")}
_IDS = {"pcp_id": Kind.PROVIDER, "provider_id": Kind.PROVIDER, "patient_id": Kind.PATIENT}


@dataclass(frozen=True, slots=True)
class Desk:
    """What all operations have in hand; `Refusal` is raised for a no."""

    store: Store

    def add(self, request: Request, kind: Kind, fields: Fields) -> Answer:
        """Keep a new record under both its keys, and answer these alone."""
        number, (name, prefix) = self.store.next_key(kind), SECOND_KEYS[kind]
        keys: Fields = {"id": str(number), name: f"{prefix}-{secrets.token_hex(4).upper()}"}
        record = Record(kind, number, keys | fields)
        self.store.save(record, "create", request.journal)
        return Answer(200, {"success": True, "result": keys}, Outcome.APPLIED, record.name)

    def keep(self, request: Request, record: Record, operation: str = "update") -> Answer:
        """Keep a record as it is now, and answer no more than that."""
        self.store.save(record, operation, request.journal)
        return Answer(200, {"success": True}, Outcome.APPLIED, record.name)

    def look_up(self, kind: Kind, request: Request, filters: Collection[str], **having: object) -> Answer:
        """Answer a piece of what agrees in `having` and in the filters that the request names."""
        wanted = having | {name: request.query[name] for name in filters if name in request.query}
        limit = min(count(request.query.get("limit")) or _LIMIT, _LIMIT_MAX)
        offset = count(request.query.get("offset"))
        hits = self.store.find(kind, wanted, offset=offset, limit=limit)
        told = {"count": str(self.store.count(kind, wanted)), "offset": str(offset)}
        return Answer(200, {"success": True, "results": [hit.data for hit in hits]} | told)

    def by_id(self, kind: Kind, id_: object) -> Record | None:
        return self.store.get(kind, count(str(id_)))

    def by_text(self, kind: Kind, request: Request) -> Record:
        """Find the record whose other key is in the path."""
        name, _ = SECOND_KEYS[kind]
        hits = self.store.find(kind, {name: request.keys[name]}, limit=1)
        if not hits:
            raise no("not_found", f"no {kind} {request.keys[name]}")
        return hits[0]

    def accept(self, filled: Filled, who: str) -> Fields:
        """Refuse the first thing that is wrong with a body, with its value and whom it is about."""
        complaints = dict(filled.complaints)
        for name, kind in _IDS.items():
            if (id_ := filled.fields.get(name)) and name not in complaints and self.by_id(kind, id_) is None:
                complaints[name] = f"{id_!r} is not the id of a {kind}"
        if complaints:
            name, words = next(iter(complaints.items()))
            raise no("invalid", f"{name}: {words} for {who}", field=name)
        return filled.fields


@dataclass(frozen=True, slots=True)
class People:
    """Providers or patients: read and changed by the text key, removed and restored by the number."""

    kind: Kind

    def create(self, desk: Desk, request: Request) -> Answer:
        filled = forms.fill_new(_PEOPLE[self.kind], form_of(request))
        fields = desk.accept(filled, name_of(filled.fields))
        self._refuse_known_npi(desk, fields)
        return desk.add(request, self.kind, fields)

    def find(self, desk: Desk, request: Request) -> Answer:
        return desk.look_up(self.kind, request, _FILTERS[self.kind], active="1")

    def get(self, desk: Desk, request: Request) -> Answer:
        return shown(desk.by_text(self.kind, request))

    def change(self, desk: Desk, request: Request) -> Answer:
        """Take what is sent, and leave the rest."""
        person = _active(desk.by_text(self.kind, request))
        return self._keep(desk, request, person, forms.change(_PEOPLE[self.kind], form_of(request), person.data))

    def replace(self, desk: Desk, request: Request) -> Answer:
        """Take what is sent, and empty the rest."""
        person = _active(desk.by_text(self.kind, request))
        return self._keep(desk, request, person, forms.replace(_PEOPLE[self.kind], form_of(request), person.data))

    def remove(self, desk: Desk, request: Request) -> Answer:
        person = self._by_number(desk, request)
        if person.data["active"] == "0":
            raise no("already_removed", f"{name_of(person.data)} is removed", status=400)
        return desk.keep(request, person.having(active="0"), "delete")

    def restore(self, desk: Desk, request: Request) -> Answer:
        person = self._by_number(desk, request)
        if person.data["active"] == "1":
            return Answer(200, {"success": True}, record=person.name)
        return desk.keep(request, person.having(active="1"), "undelete")

    def _keep(self, desk: Desk, request: Request, person: Record, filled: Filled) -> Answer:
        fields = desk.accept(filled, name_of(filled.fields))
        self._refuse_known_npi(desk, fields)
        return desk.keep(request, Record(self.kind, person.key, fields))

    def _by_number(self, desk: Desk, request: Request) -> Record:
        if person := desk.by_id(self.kind, request.keys["id"]):
            return person
        raise no("not_found", f"no {self.kind} {request.keys['id']}")

    def _refuse_known_npi(self, desk: Desk, fields: Fields) -> None:
        if not fields.get("npi"):
            return
        hits = desk.store.find(self.kind, {"active": "1", "npi": fields["npi"]}, limit=2)
        if others := [hit for hit in hits if hit.data["id"] != fields.get("id")]:
            raise no("npi_taken", f"{fields['npi']} is {name_of(others[0].data)}'s", field="npi")


PROVIDERS, PATIENTS = People(Kind.PROVIDER), People(Kind.PATIENT)


def no(code: str, message: str, *, status: int = 200, field: str = "") -> Refusal:
    """Make a no in the practice's own form: most of them come with a status that says all is well."""
    return Refusal(status, {"success": False, "error": {"code": code, "message": message, "field": field}})


def form_of(request: Request) -> Mapping[str, str]:
    if not isinstance(request.body, dict):
        raise no("unreadable", f"cannot read: {request.raw[:200].decode(errors='replace')}", status=400)
    return cast(Mapping[str, str], request.body)


def shown(record: Record) -> Answer:
    return Answer(200, {"success": True, "result": record.data}, record=record.name)


def _active(record: Record) -> Record:
    """Refuse what was removed."""
    if record.data["active"] == "0":
        raise no("removed", f"{name_of(record.data)} is removed")
    return record


def active_patient(desk: Desk, request: Request) -> Record:
    """Find the patient whose chart number is in the path."""
    return _active(desk.by_text(Kind.PATIENT, request))
