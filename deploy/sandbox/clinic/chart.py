"""A patient's chart: problems, visits, prescriptions and vitals, each a sheet under the patient's uuid.

A sheet's operations are methods of (desk, request) → answer. It never looks at another patient's chart.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.sandbox.clinic import forms
from deploy.sandbox.clinic.desk import Desk, body_of, found, refusal, refuse_inactive, shown
from deploy.sandbox.clinic.records import Kind
from deploy.sandbox.witness.forms import Fields, Form, fill, fill_new, name_of
from deploy.sandbox.witness.store import Record
from deploy.sandbox.witness.system import Answer, Outcome, Refusal, Request, count


@dataclass(frozen=True, slots=True)
class Sheet:
    """One kind of record under a patient; `filters` are what its list can be narrowed by."""

    kind: Kind
    form: Form
    filters: tuple[str, ...] = ()

    def create(self, desk: Desk, request: Request) -> Answer:
        patient = desk.active_patient(request)
        filled = fill_new(self.form, body_of(request))
        desk.accept(filled, name_of(patient.data))
        self._refuse_second(desk, patient, filled.fields)
        key = desk.store.next_key(self.kind)
        keys: Fields = {"id": key, "patient_number": patient.key}
        return desk.save(request, Record(self.kind, key, keys | filled.fields), "create", 201)

    def _refuse_second(self, desk: Desk, patient: Record, fields: Fields) -> None:
        """Refuse what the chart holds already; most sheets hold as many as come."""

    def find(self, desk: Desk, request: Request) -> Answer:
        return desk.look_up(self.kind, request, self.filters, patient_number=desk.patient(request).key)

    def get(self, desk: Desk, request: Request) -> Answer:
        return shown(self._entry(desk, request, desk.patient(request)))

    def update(self, desk: Desk, request: Request) -> Answer:
        patient = desk.patient(request)
        entry = self._entry(desk, request, patient)
        refuse_inactive(patient)
        filled = fill(self.form, body_of(request), entry.data)
        desk.accept(filled, name_of(patient.data))
        return desk.save(request, Record(self.kind, entry.key, filled.fields), "update", 200)

    def delete(self, desk: Desk, request: Request) -> Answer:
        entry = self._entry(desk, request, desk.patient(request))
        desk.store.remove(entry, "delete", request.journal)
        return Answer(204, None, Outcome.APPLIED, entry.name)

    def _entry(self, desk: Desk, request: Request, patient: Record) -> Record:
        entry = desk.store.get(self.kind, count(request.keys["id"]))
        if entry is not None and entry.data["patient_number"] != patient.key:
            entry = None
        return found(entry, f"{self.kind} {request.keys['id']} of {name_of(patient.data)}")


class Problems(Sheet):
    """The problem list: answered whole, and deaf to what it does not hold."""

    __slots__ = ()

    def find(self, desk: Desk, request: Request) -> Answer:
        problems = desk.store.find(self.kind, {"patient_number": desk.patient(request).key})
        return Answer(200, {"data": [problem.data for problem in problems], "total": len(problems)})

    def delete(self, desk: Desk, request: Request) -> Answer:
        patient = desk.patient(request)
        try:
            return super().delete(desk, request)
        except Refusal:
            raise refusal(400, "unknown_problem", f"{name_of(patient.data)} has no such problem") from None


class Prescriptions(Sheet):
    """What was signed stays as it is: void and written anew, never changed; and one active one of each drug."""

    __slots__ = ()

    def _refuse_second(self, desk: Desk, patient: Record, fields: Fields) -> None:
        same = "rxnorm" if fields["rxnorm"] else "drug"
        active = {"patient_number": patient.key, "status": "active", same: fields[same]}
        if fields["status"] == "active" and (hits := desk.store.find(self.kind, active, limit=1)):
            words = f"{name_of(patient.data)} has {hits[0].data['drug']}: prescription {hits[0].key}"
            raise refusal(409, "duplicate", words)

    def delete(self, desk: Desk, request: Request) -> Answer:
        patient = desk.patient(request)
        entry = self._entry(desk, request, patient)
        if entry.data["status"] == "void":
            raise refusal(410, "void", f"prescription {entry.key} of {name_of(patient.data)} is void")
        return desk.save(request, entry.having(status="void"), "delete", 200)


PROBLEMS = Problems(Kind.PROBLEM, forms.PROBLEM)
VISITS = Sheet(Kind.VISIT, forms.VISIT, ("external_id", "status"))
PRESCRIPTIONS = Prescriptions(Kind.PRESCRIPTION, forms.PRESCRIPTION, ("rxnorm", "drug", "status"))
VITALS = Sheet(Kind.VITAL, forms.VITAL, ("code", "taken_at"))
