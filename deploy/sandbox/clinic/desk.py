"""The clinic's front desk: what each request about providers and patients does, and what every other one needs.

Synchronous from the first look to the last write, so that requests take effect one after the other. It knows neither
sockets nor faults nor the journal.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from deploy.sandbox.clinic import forms
from deploy.sandbox.clinic.records import Kind
from deploy.sandbox.witness.forms import Fields, Filled, fill, fill_new, name_of
from deploy.sandbox.witness.store import Record, Store
from deploy.sandbox.witness.system import Answer, Outcome, Refusal, Request, count

_PER_PAGE, _PER_PAGE_MAX = 25, 50
_NUMBERS = {"patient_number": Kind.PATIENT, "provider_id": Kind.PROVIDER}  # columns that hold another record's key
_PROVIDER_FILTERS, _PATIENT_FILTERS = ("npi",), ("last_name", "birth_date", "external_id")


@dataclass(frozen=True, slots=True)
class Desk:
    """The operations, each a method of (request) → answer; `Refusal` is raised for a no."""

    store: Store

    def ping(self, request: Request) -> Answer:
        return Answer(200, {"data": "pong"})

    def create_provider(self, request: Request) -> Answer:
        filled = fill_new(forms.PROVIDER, body_of(request))
        self.accept(filled, name_of(filled.fields))
        self._refuse_known_npi(filled.fields, None)
        key = self.store.next_key(Kind.PROVIDER)
        return self.save(request, Record(Kind.PROVIDER, key, {"id": key, **filled.fields}), "create", 201)

    def find_providers(self, request: Request) -> Answer:
        return self.look_up(Kind.PROVIDER, request, _PROVIDER_FILTERS, status="active")

    def get_provider(self, request: Request) -> Answer:
        return shown(self._provider(request))

    def update_provider(self, request: Request) -> Answer:
        provider = self._provider(request)
        refuse_inactive(provider)
        filled = fill(forms.PROVIDER, body_of(request), provider.data)
        self.accept(filled, name_of(filled.fields))
        self._refuse_known_npi(filled.fields, provider.key)
        return self.save(request, Record(Kind.PROVIDER, provider.key, filled.fields), "update", 200)

    def delete_provider(self, request: Request) -> Answer:
        provider = self._provider(request)
        if provider.data["status"] == "inactive":
            return Answer(204, record=provider.name)
        self.save(request, provider.having(status="inactive"), "delete", 200)
        return Answer(204, None, Outcome.APPLIED, provider.name)

    def create_patient(self, request: Request) -> Answer:
        filled = fill_new(forms.PATIENT, body_of(request))
        self.accept(filled, name_of(filled.fields))
        number = self.store.next_key(Kind.PATIENT)
        keys: Fields = {"number": number, "uuid": str(uuid.uuid4())}
        return self.save(request, Record(Kind.PATIENT, number, keys | filled.fields), "create", 201)

    def find_patients(self, request: Request) -> Answer:
        return self.look_up(Kind.PATIENT, request, _PATIENT_FILTERS, status="active")

    def get_patient(self, request: Request) -> Answer:
        return shown(self.patient(request))

    def update_patient(self, request: Request) -> Answer:
        patient = self.active_patient(request)
        filled = fill(forms.PATIENT, body_of(request), patient.data)
        self.accept(filled, name_of(filled.fields))
        return self.save(request, Record(Kind.PATIENT, patient.key, filled.fields), "update", 200)

    def delete_patient(self, request: Request) -> Answer:
        patient = self.patient(request)
        if patient.data["status"] == "inactive":
            raise refusal(404, "not_found", f"no active patient {patient.key}: {name_of(patient.data)}")
        return self.save(request, patient.having(status="inactive"), "delete", 200)

    def reactivate_patient(self, request: Request) -> Answer:
        patient = self.patient(request)
        if patient.data["status"] == "active":
            return shown(patient)
        return self.save(request, patient.having(status="active"), "undelete", 200)

    def save(self, request: Request, record: Record, operation: str, status: int) -> Answer:
        """Keep a record and answer it."""
        self.store.save(record, operation, request.journal)
        return Answer(status, {"data": record.data}, Outcome.APPLIED, record.name)

    def look_up(self, kind: Kind, request: Request, filters: Collection[str], **having: object) -> Answer:
        """Answer one page of what agrees in `having` and in the filters that the request names."""
        wanted = having | {name: _sought(name, request.query[name]) for name in filters if name in request.query}
        per_page = min(count(request.query.get("per_page")) or _PER_PAGE, _PER_PAGE_MAX)
        page = count(request.query.get("page")) or 1
        hits = self.store.find(kind, wanted, offset=(page - 1) * per_page, limit=per_page)
        return Answer(200, {"data": [hit.data for hit in hits], "total": self.store.count(kind, wanted)})

    def accept(self, filled: Filled, who: str) -> None:
        """Refuse a body that is not as the form wants it, naming values and whom they are about."""
        complaints = dict(filled.complaints)
        for name, kind in _NUMBERS.items():
            number = filled.fields.get(name)
            if isinstance(number, int) and self.store.get(kind, number) is None:
                complaints.setdefault(
                    name, f"{number!r} is not the {'id' if name.endswith('id') else 'number'} of a {kind}"
                )
        if complaints:
            fields = {name: f"{words} for {who}" for name, words in complaints.items()}
            raise refusal(422, "invalid", "; ".join(f"{name}: {words}" for name, words in fields.items()), fields)

    def patient(self, request: Request) -> Record:
        """Find the patient whose uuid is in the path."""
        hits = self.store.find(Kind.PATIENT, {"uuid": request.keys["uuid"]}, limit=1)
        return found(hits[0] if hits else None, f"patient {request.keys['uuid']}")

    def active_patient(self, request: Request) -> Record:
        patient = self.patient(request)
        refuse_inactive(patient)
        return patient

    def _provider(self, request: Request) -> Record:
        return found(self.store.get(Kind.PROVIDER, count(request.keys["id"])), f"provider {request.keys['id']}")

    def _refuse_known_npi(self, fields: Fields, own_key: int | None) -> None:
        if fields["npi"] is None:
            return
        hits = self.store.find(Kind.PROVIDER, {"status": "active", "npi": fields["npi"]}, limit=2)
        if others := [hit for hit in hits if hit.key != own_key]:
            raise refusal(409, "duplicate", f"exists: {name_of(others[0].data)}")


def _sought(name: str, text: str) -> object:
    return count(text) if name in _NUMBERS else text


def refusal(status: int, code: str, message: str = "", fields: Mapping[str, str] | None = None) -> Refusal:
    """Make a no in the clinic's own form."""
    said: Mapping[str, object] = {"message": message, "fields": fields}
    return Refusal(status, {"error": {"code": code} | {name: value for name, value in said.items() if value}})


def body_of(request: Request) -> Fields:
    if not isinstance(request.body, dict):
        raise refusal(400, "malformed", f"cannot read: {request.raw[:200].decode(errors='replace')}")
    return request.body


def shown(record: Record) -> Answer:
    return Answer(200, {"data": record.data}, record=record.name)


def found(record: Record | None, what: str) -> Record:
    if record is None:
        raise refusal(404, "not_found", f"no {what}")
    return record


def refuse_inactive(record: Record) -> None:
    if record.data["status"] == "inactive":
        raise refusal(409, "inactive", f"{name_of(record.data)} is inactive")
