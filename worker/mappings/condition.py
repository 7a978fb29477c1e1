"""Condition → the clinic's problem list, under its patient. Ended problems keep their row."""

from worker.legacy import Answer, Call, Find, Listing, Outcome
from worker.mapping import Absent, Context, Phase, Result, WriteBack, link, pick, prefix, required, route
from worker.mapping.r4 import Condition
from worker.mapping.systems import ICD10CM, SNOMED
from worker.mappings.clinic import clinic

problems = clinic.collection(
    "problem",
    keys=("id",),
    create="POST /patients/{patient.uuid}/problems",
    read="GET /patients/{patient.uuid}/problems/{id}",
    update="PUT /patients/{patient.uuid}/problems/{id}",
    delete=Call(
        "DELETE /patients/{patient.uuid}/problems/{id}",
        means={Answer(400, has="error.code", equal="unknown_problem"): Outcome.GONE},
    ),
    find=Find("GET /patients/{patient.uuid}/problems", match=("title", "icd10", "onset")),
    list=Listing("GET /patients/{patient.uuid}/problems", under={"patient": "Patient"}),
    gone={},  # a deleted row can be read no more
)


ID = WriteBack("https://clinic.example.com/problem-id")


@route(Condition, to=problems, phase=Phase.LIVE, identifier=ID)
def problem(c: Condition, ctx: Context) -> Result:
    if pick.has_code([c.verificationStatus], "entered-in-error"):
        return Absent("entered in error")
    if pick.has_code([c.verificationStatus], "refuted"):
        return Absent("refuted")
    if pick.has_code(c.category, "encounter-diagnosis"):
        return Absent("a diagnosis of one visit is not on the problem list")
    onset = c.onsetDateTime or (c.onsetPeriod.start if c.onsetPeriod else None) or c.recordedDate
    ended = ctx.date(c.abatementDateTime, partial="first")
    inactive = pick.has_code([c.clinicalStatus], "inactive", "remission", "resolved")
    return {
        "patient": link(c.subject),
        "title": required(pick.text(c.code, ICD10CM, SNOMED)),
        "icd10": prefix("ICD10:", pick.code(c.code, ICD10CM)),
        "onset": required(ctx.date(onset, partial="first")),
        "ended": ended,
        "status": "ended" if ended or inactive else "active",
    }
