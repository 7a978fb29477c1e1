"""MedicationRequest → the clinic's prescriptions: never changed, but voided and written anew."""

from worker.legacy import Answer, Call, Find, Listing, Outcome, Replace
from worker.mapping import Absent, Context, Phase, Result, Skip, Table, Unsupported, join, link, pick, required, route
from worker.mapping.r4 import Medication, MedicationRequest, Practitioner
from worker.mapping.systems import RXNORM
from worker.mappings.clinic import clinic

prescriptions = clinic.collection(
    "prescription",
    keys=("id",),
    create=Call(
        "POST /patients/{patient.uuid}/prescriptions",
        means={Answer(409, has="error.code", equal="duplicate"): Outcome.EXISTS},
    ),
    read="GET /patients/{patient.uuid}/prescriptions/{id}",
    update=Replace(),  # not the new one first: the clinic refuses a second active one of the same drug
    delete="DELETE /patients/{patient.uuid}/prescriptions/{id}",
    find=Find(
        "GET /patients/{patient.uuid}/prescriptions?rxnorm={rxnorm}&status={status}&per_page=50",
        match=("drug", "rxnorm", "written_on", "status"),  # a void one has another status
        page="page",
    ),
    list=Listing("GET /patients/{patient.uuid}/prescriptions?per_page=50", under={"patient": "Patient"}, page="page"),
    gone={"status": "void"},
)

STATUS = Table({"active": "active", "completed": "ended", "stopped": "ended"})
PLANNED = {"proposal", "plan", "option"}


@route(MedicationRequest, to=prescriptions, phase=Phase.LIVE, moved="replace")
def prescription(m: MedicationRequest, ctx: Context) -> Result:
    if m.status in {"cancelled", "entered-in-error"}:
        return Absent("it was taken back")
    if m.status == "draft" or m.intent in PLANNED:
        return Skip("it is not signed")
    if m.status == "on-hold" or m.doNotPerform:
        return Unsupported("the clinic has no word for a drug that is not to be taken")
    medication = ctx.fetch(m.medicationReference, Medication)
    drug = m.medicationCodeableConcept or (medication.code if medication else None)
    dispense = m.dispenseRequest
    return {
        "patient": link(m.subject),
        "drug": required(pick.text(drug, RXNORM)),
        "rxnorm": pick.code(drug, RXNORM),
        "sig": join([dosage.text for dosage in m.dosageInstruction or []], sep="; "),
        "quantity": dispense.quantity.value if dispense and dispense.quantity else None,
        "refills": dispense.numberOfRepeatsAllowed if dispense else None,
        "written_on": required(ctx.date(m.authoredOn)),
        "provider_id": link(pick.reference([m.requester] if m.requester else [], Practitioner), "id"),
        "status": STATUS(m.status),
    }
