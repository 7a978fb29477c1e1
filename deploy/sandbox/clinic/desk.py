"""The clinic's front desk: what each API request does to the records, and what it answers.

Synchronous from the first look to the last write, so that requests take effect one after the other. It knows neither
sockets nor faults nor the journal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import compile_path

from deploy.sandbox.clinic import forms
from deploy.sandbox.clinic.forms import Fields, Filled, Form
from deploy.sandbox.clinic.store import Kind, Outcome, Record, Store

_PER_PAGE, _PER_PAGE_MAX = 25, 50
_DIGITS_MAX = 15
_FILTERS = {Kind.PROVIDER: ("npi",), Kind.PATIENT: ("last_name", "birth_date", "external_id")}
_FORMS: Mapping[Kind, Form] = {Kind.PROVIDER: forms.PROVIDER, Kind.PATIENT: forms.PATIENT, Kind.PROBLEM: forms.PROBLEM}


@dataclass(frozen=True, slots=True)
class Request:
    """One API request, as far as the desk looks at it; `query` holds no empty values."""

    journal: int
    keys: Mapping[str, str]
    query: Mapping[str, str]
    raw: bytes
    body: object


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a JSON body (None: no body) and what became of the request."""

    status: int
    body: Any = None
    outcome: Outcome = Outcome.READ
    record: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """The clinic says no."""

    def __init__(self, status: int, code: str, message: str = "", fields: Mapping[str, str] | None = None) -> None:
        said = {"message": message, "fields": fields}
        error = {"code": code} | {name: value for name, value in said.items() if value}
        self.answer = Answer(status, {"error": error}, Outcome.REFUSED)


@dataclass(frozen=True, slots=True)
class Desk:
    """The operations, each a method of (request) → answer; `Refusal` is raised for a no."""

    store: Store

    def ping(self, request: Request) -> Answer:
        return Answer(200, {"data": "pong"})

    def create_provider(self, request: Request) -> Answer:
        filled = forms.fill_new(forms.PROVIDER, _body(request))
        self._accept(filled, forms.name_of(filled.fields))
        self._refuse_known_npi(filled.fields, None)
        key = self.store.next_key(Kind.PROVIDER)
        return self._save(request, Record(Kind.PROVIDER, key, {"id": key, **filled.fields}), "create", 201)

    def find_providers(self, request: Request) -> Answer:
        return self._look_up(Kind.PROVIDER, request)

    def get_provider(self, request: Request) -> Answer:
        return _shown(self._provider(request))

    def update_provider(self, request: Request) -> Answer:
        provider = self._provider(request)
        _refuse_inactive(provider)
        filled = forms.fill(forms.PROVIDER, _body(request), provider.data)
        self._accept(filled, forms.name_of(filled.fields))
        self._refuse_known_npi(filled.fields, provider.key)
        return self._save(request, Record(Kind.PROVIDER, provider.key, filled.fields), "update", 200)

    def delete_provider(self, request: Request) -> Answer:
        provider = self._provider(request)
        if provider.data["status"] == "inactive":
            return Answer(204, record=provider.name)
        self._save(request, _inactive(provider), "delete", 200)
        return Answer(204, None, Outcome.APPLIED, provider.name)

    def create_patient(self, request: Request) -> Answer:
        filled = forms.fill_new(forms.PATIENT, _body(request))
        self._accept(filled, forms.name_of(filled.fields))
        number = self.store.next_key(Kind.PATIENT)
        keys: Fields = {"number": number, "uuid": str(uuid.uuid4())}
        return self._save(request, Record(Kind.PATIENT, number, keys | filled.fields), "create", 201)

    def find_patients(self, request: Request) -> Answer:
        return self._look_up(Kind.PATIENT, request)

    def get_patient(self, request: Request) -> Answer:
        return _shown(self._patient(request))

    def update_patient(self, request: Request) -> Answer:
        patient = self._active_patient(request)
        filled = forms.fill(forms.PATIENT, _body(request), patient.data)
        self._accept(filled, forms.name_of(filled.fields))
        return self._save(request, Record(Kind.PATIENT, patient.key, filled.fields), "update", 200)

    def delete_patient(self, request: Request) -> Answer:
        patient = self._patient(request)
        if patient.data["status"] == "inactive":
            raise Refusal(404, "not_found", f"no active patient {patient.key}: {forms.name_of(patient.data)}")
        return self._save(request, _inactive(patient), "delete", 200)

    def create_problem(self, request: Request) -> Answer:
        patient = self._active_patient(request)
        filled = forms.fill_new(forms.PROBLEM, _body(request))
        self._accept(filled, forms.name_of(patient.data))
        key = self.store.next_key(Kind.PROBLEM)
        keys: Fields = {"id": key, "patient_number": patient.key}
        return self._save(request, Record(Kind.PROBLEM, key, keys | filled.fields), "create", 201)

    def find_problems(self, request: Request) -> Answer:
        problems = self.store.problems(self._patient(request).key)
        return Answer(200, {"data": [problem.data for problem in problems], "total": len(problems)})

    def get_problem(self, request: Request) -> Answer:
        return _shown(self._problem(request, self._patient(request)))

    def update_problem(self, request: Request) -> Answer:
        patient = self._patient(request)
        problem = self._problem(request, patient)
        _refuse_inactive(patient)
        filled = forms.fill(forms.PROBLEM, _body(request), problem.data)
        self._accept(filled, forms.name_of(patient.data))
        return self._save(request, Record(Kind.PROBLEM, problem.key, filled.fields), "update", 200)

    def delete_problem(self, request: Request) -> Answer:
        patient = self._patient(request)
        try:
            problem = self._problem(request, patient)
        except Refusal:
            words = f"{forms.name_of(patient.data)} has no such problem"
            raise Refusal(400, "unknown_problem", words) from None
        self.store.remove(problem, "delete", request.journal)
        return Answer(204, None, Outcome.APPLIED, problem.name)

    def _save(self, request: Request, record: Record, operation: str, status: int) -> Answer:
        self.store.save(record, operation, request.journal)
        return Answer(status, {"data": record.data}, Outcome.APPLIED, record.name)

    def _look_up(self, kind: Kind, request: Request) -> Answer:
        filters = {name: request.query[name] for name in _FILTERS[kind] if name in request.query}
        per_page = min(_count(request.query.get("per_page")) or _PER_PAGE, _PER_PAGE_MAX)
        page = _count(request.query.get("page")) or 1
        hits, total = self.store.look_up(kind, filters, offset=(page - 1) * per_page, limit=per_page)
        return Answer(200, {"data": [hit.data for hit in hits], "total": total})

    def _accept(self, filled: Filled, who: str) -> None:
        """Refuse a body that is not as the form wants it, naming values and whom they are about."""
        complaints = dict(filled.complaints)
        provider_id = filled.fields.get("provider_id")
        if isinstance(provider_id, int) and self.store.get(Kind.PROVIDER, provider_id) is None:
            complaints.setdefault("provider_id", f"{provider_id!r} is not the id of a provider")
        if complaints:
            fields = {name: f"{words} for {who}" for name, words in complaints.items()}
            raise Refusal(422, "invalid", "; ".join(f"{name}: {words}" for name, words in fields.items()), fields)

    def _refuse_known_npi(self, fields: Fields, own_key: int | None) -> None:
        if fields["npi"] is None:
            return
        hits, _ = self.store.look_up(Kind.PROVIDER, {"npi": str(fields["npi"])}, offset=0, limit=2)
        if others := [hit for hit in hits if hit.key != own_key]:
            raise Refusal(409, "duplicate", f"exists: {forms.name_of(others[0].data)}")

    def _provider(self, request: Request) -> Record:
        return _found(self.store.get(Kind.PROVIDER, _count(request.keys["id"])), f"provider {request.keys['id']}")

    def _patient(self, request: Request) -> Record:
        return _found(self.store.patient(request.keys["uuid"]), f"patient {request.keys['uuid']}")

    def _active_patient(self, request: Request) -> Record:
        patient = self._patient(request)
        _refuse_inactive(patient)
        return patient

    def _problem(self, request: Request, patient: Record) -> Record:
        problem = self.store.get(Kind.PROBLEM, _count(request.keys["id"]))
        if problem is not None and problem.data["patient_number"] != patient.key:
            problem = None
        return _found(problem, f"problem {request.keys['id']} of {forms.name_of(patient.data)}")


def _body(request: Request) -> Fields:
    if not isinstance(request.body, dict):
        raise Refusal(400, "malformed", f"cannot read: {request.raw[:200].decode(errors='replace')}")
    return request.body


def _shown(record: Record) -> Answer:
    return Answer(200, {"data": record.data}, record=record.name)


def _inactive(record: Record) -> Record:
    return Record(record.kind, record.key, record.data | {"status": "inactive"})


def _found(record: Record | None, what: str) -> Record:
    if record is None:
        raise Refusal(404, "not_found", f"no {what}")
    return record


def _refuse_inactive(record: Record) -> None:
    if record.data["status"] == "inactive":
        raise Refusal(409, "inactive", f"{forms.name_of(record.data)} is inactive")


def _count(text: str | None) -> int:
    """Read a whole number; anything else is 0, which is nobody's key and no page."""
    usable = text is not None and text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
    return int(text) if usable and text else 0


Operation = Callable[[Desk, Request], Answer]

_PROVIDERS, _PROVIDER = "/api/providers", "/api/providers/{id}"
_PATIENTS, _PATIENT = "/api/patients", "/api/patients/{uuid}"
_PROBLEMS, _PROBLEM = "/api/patients/{uuid}/problems", "/api/patients/{uuid}/problems/{id}"

OPERATIONS: Mapping[str, Mapping[str, Operation]] = {
    "/api/ping": {"GET": Desk.ping},
    _PROVIDERS: {"GET": Desk.find_providers, "POST": Desk.create_provider},
    _PROVIDER: {"GET": Desk.get_provider, "PUT": Desk.update_provider, "DELETE": Desk.delete_provider},
    _PATIENTS: {"GET": Desk.find_patients, "POST": Desk.create_patient},
    _PATIENT: {"GET": Desk.get_patient, "PUT": Desk.update_patient, "DELETE": Desk.delete_patient},
    _PROBLEMS: {"GET": Desk.find_problems, "POST": Desk.create_problem},
    _PROBLEM: {"GET": Desk.get_problem, "PUT": Desk.update_problem, "DELETE": Desk.delete_problem},
}

_PATHS = [(compile_path(template)[0], template) for template in OPERATIONS]


def template_of(path: str) -> tuple[str | None, Mapping[str, str]]:
    """Find the path template that a path is of, and its keys."""
    for regex, template in _PATHS:
        if match := regex.fullmatch(path):
            return template, match.groupdict()
    return None, {}
