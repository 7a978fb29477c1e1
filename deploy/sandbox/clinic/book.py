"""The clinic's appointment book: one for all patients, in which nothing is ever rubbed out."""

from __future__ import annotations

from deploy.sandbox.clinic import forms
from deploy.sandbox.clinic.desk import Desk, body_of, found, refuse_inactive, shown
from deploy.sandbox.clinic.records import Kind
from deploy.sandbox.witness.forms import Filled, fill, fill_new, name_of
from deploy.sandbox.witness.store import Record
from deploy.sandbox.witness.system import Answer, Request, count

_FILTERS = ("patient_number", "external_id", "starts", "status")


def create(desk: Desk, request: Request) -> Answer:
    filled = fill_new(forms.APPOINTMENT, body_of(request))
    _accept(desk, filled)
    key = desk.store.next_key(Kind.APPOINTMENT)
    return desk.save(request, Record(Kind.APPOINTMENT, key, {"id": key, **filled.fields}), "create", 201)


def find(desk: Desk, request: Request) -> Answer:
    return desk.look_up(Kind.APPOINTMENT, request, _FILTERS)


def get(desk: Desk, request: Request) -> Answer:
    return shown(_entry(desk, request))


def update(desk: Desk, request: Request) -> Answer:
    entry = _entry(desk, request)
    filled = fill(forms.APPOINTMENT, body_of(request), entry.data)
    _accept(desk, filled)
    return desk.save(request, Record(Kind.APPOINTMENT, entry.key, filled.fields), "update", 200)


def _accept(desk: Desk, filled: Filled) -> None:
    """Refuse what the form does not want, and a booking for somebody who is no patient any more."""
    number = filled.fields["patient_number"]
    patient = desk.store.get(Kind.PATIENT, number) if isinstance(number, int) else None
    desk.accept(filled, name_of(patient.data) if patient else "nobody")
    if patient is not None and filled.fields["status"] != "cancelled":
        refuse_inactive(patient)


def _entry(desk: Desk, request: Request) -> Record:
    key = request.keys["id"]
    return found(desk.store.get(Kind.APPOINTMENT, count(key)), f"appointment {key}")
