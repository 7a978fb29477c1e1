"""The practice's appointment book: what is booked can be cancelled, with a reason, and never changed."""

from __future__ import annotations

from deploy.sandbox.practice import forms
from deploy.sandbox.practice.desk import Desk, form_of, no, shown
from deploy.sandbox.practice.records import Kind
from deploy.sandbox.witness.forms import Fields, name_of
from deploy.sandbox.witness.system import Answer, Request

_FILTERS = ("patient_id", "provider_id", "reference", "status")


def create(desk: Desk, request: Request) -> Answer:
    filled = forms.fill_new(forms.APPOINTMENT, form_of(request))
    patient = desk.by_id(Kind.PATIENT, filled.fields["patient_id"])
    fields = desk.accept(filled, name_of(patient.data) if patient else "nobody")
    for kind in (Kind.PATIENT, Kind.PROVIDER):
        person = desk.by_id(kind, fields[f"{kind}_id"])
        if person is not None and person.data["active"] == "0":
            raise no("removed", f"{name_of(person.data)} is removed", field=f"{kind}_id")
    _refuse_taken(desk, fields)
    return desk.add(request, Kind.APPOINTMENT, fields | {"cancel_reason": ""})


def _refuse_taken(desk: Desk, fields: Fields) -> None:
    """Refuse what another patient has booked; the same patient can book the same slot twice, and nobody notices."""
    slot = {"provider_id": fields["provider_id"], "starts": fields["starts"], "status": "booked"}
    for booked in desk.store.find(Kind.APPOINTMENT, slot):
        if booked.data["patient_id"] != fields["patient_id"]:
            other = desk.by_id(Kind.PATIENT, booked.data["patient_id"])
            who = name_of(other.data) if other else "nobody"
            raise no("slot_taken", f"{booked.data['starts']} is booked for {who}", field="starts")


def find(desk: Desk, request: Request) -> Answer:
    return desk.look_up(Kind.APPOINTMENT, request, _FILTERS)


def get(desk: Desk, request: Request) -> Answer:
    return shown(desk.by_text(Kind.APPOINTMENT, request))


def cancel(desk: Desk, request: Request) -> Answer:
    id_, reason = request.keys["id"], form_of(request).get("reason", "").strip()
    entry = desk.by_id(Kind.APPOINTMENT, id_)
    if entry is None:
        raise no("not_found", f"no appointment {id_}")
    if entry.data["status"] == "cancelled":
        raise no("already_cancelled", f"appointment {id_} is cancelled: {entry.data['cancel_reason']}", status=400)
    if not reason:
        raise no("invalid", "reason: is required", field="reason")
    return desk.keep(request, entry.having(status="cancelled", cancel_reason=reason), "delete")
