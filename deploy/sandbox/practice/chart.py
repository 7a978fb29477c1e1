"""A patient's chart: diagnoses and allergies. Made and listed by chart number, changed by entry, removed by id."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.sandbox.practice import forms
from deploy.sandbox.practice.desk import Desk, active_patient, form_of, no, shown
from deploy.sandbox.practice.records import Kind
from deploy.sandbox.witness.forms import Fields, Form, name_of
from deploy.sandbox.witness.store import Record
from deploy.sandbox.witness.system import Answer, Outcome, Request


@dataclass(frozen=True, slots=True)
class Entries:
    """One kind of entry in charts; its list can be narrowed by `filter_`."""

    kind: Kind
    form: Form
    filter_: str

    def create(self, desk: Desk, request: Request) -> Answer:
        patient = active_patient(desk, request)
        fields = desk.accept(forms.fill_new(self.form, form_of(request)), name_of(patient.data))
        owner: Fields = {"patient_id": patient.data["id"], "chart_no": patient.data["chart_no"]}
        return desk.add(request, self.kind, owner | fields)

    def find(self, desk: Desk, request: Request) -> Answer:
        chart_no = desk.by_text(Kind.PATIENT, request).data["chart_no"]
        return desk.look_up(self.kind, request, (self.filter_,), chart_no=chart_no)

    def get(self, desk: Desk, request: Request) -> Answer:
        return shown(desk.by_text(self.kind, request))

    def change(self, desk: Desk, request: Request) -> Answer:
        entry = desk.by_text(self.kind, request)
        patient = desk.by_id(Kind.PATIENT, entry.data["patient_id"])
        who = name_of(patient.data) if patient else "nobody"
        fields = desk.accept(forms.change(self.form, form_of(request), entry.data), who)
        return desk.keep(request, Record(self.kind, entry.key, fields))

    def remove(self, desk: Desk, request: Request) -> Answer:
        entry = desk.by_id(self.kind, request.keys["id"])
        if entry is None:
            raise no("already_removed", f"no {self.kind} {request.keys['id']}", status=400)
        desk.store.remove(entry, "delete", request.journal)
        return Answer(200, {"success": True}, Outcome.APPLIED, entry.name)


DIAGNOSES = Entries(Kind.DIAGNOSIS, forms.DIAGNOSIS, "icd10")
ALLERGIES = Entries(Kind.ALLERGY, forms.ALLERGY, "substance")
