"""A second legacy API, as different from the clinic as real ones are: its declaration, and the mappings of four types.

Forms in, tokens that end, two keys for each record, every value a text, a no with status 200, bookings that are never
changed. A user's own package would have a file for each type; here all is to be seen at once.
"""

from pydantic import SecretStr

from tests.acceptance.times import DEADLINE_S, LANDS_WITHIN_S
from worker.legacy import Answer, Call, Find, LegacyApi, OAuth2, Outcome, Replace, Wire, form_body
from worker.mapping import (
    US_STATES,
    Absent,
    Context,
    Phase,
    Phone,
    Result,
    SiteSettings,
    Unsupported,
    first,
    join,
    link,
    pick,
    required,
    rest,
    route,
)
from worker.mapping.r4 import Address, Appointment, Condition, HumanName, Patient, Practitioner
from worker.mapping.systems import ICD10CM, NPI, SNOMED


class Site(SiteSettings):
    """REVERSE_SYNC_SITE_PRACTICE_URL, …_USERNAME, …_PASSWORD, …_CLIENT_ID, …_CLIENT_SECRET and …_ZONE."""

    prefix = "PRACTICE"

    url: str
    username: str
    password: SecretStr
    client_id: str
    client_secret: SecretStr
    zone: str = "America/Chicago"


site = Site.read()

CODES = "unauthorized not_found invalid unreadable removed already_removed already_cancelled npi_taken slot_taken"


def no(code: str, status: int = 200) -> Answer:
    return Answer(status, has="error.code", equal=code)


practice = LegacyApi(
    "practice",
    base_url=f"{site.url}/v2",
    auth=OAuth2(
        f"{site.url}/oauth/token",
        {
            "grant_type": "password",
            "username": site.username,
            "password": site.password,
            "user_role": "users",
            "client_id": site.client_id,
            "client_secret": site.client_secret,
        },
    ),
    zone=site.zone,
    wire=Wire(datetime="%Y-%m-%d %H:%M:%S", numbers="text", boolean=("1", "0"), clear=""),
    body=form_body,
    record="result",
    items="results",
    errors=("error.code", "error.message", "error.field"),
    codes={"error.code": CODES.split()},
    means={
        no("already_removed", 400): Outcome.GONE,
        no("already_cancelled", 400): Outcome.GONE,
        no("not_found"): Outcome.GONE,
        no("removed"): Outcome.CONFLICT,
        Answer(200, has="success", equal=False): Outcome.REFUSED,
    },
    probe="GET /ping",
    deadline_s=DEADLINE_S,
    lands_within_s=LANDS_WITHIN_S,
)


def look(request: str, *match: str) -> Find:
    return Find(f"{request}&limit=100", match=match, offset="offset")  # it takes no more, and says nothing of it


providers = practice.collection(
    "provider",
    keys=("id", "code"),
    identity=("external_id",),
    create=Call("POST /providers", means={no("npi_taken"): Outcome.EXISTS}),
    read="GET /providers/{code}",
    update="POST /providers/{code}",
    delete="POST /providers/{id}/remove",
    find=look("GET /providers?external_id={external_id}", "external_id"),
)

patients = practice.collection(
    "patient",
    keys=("id", "chart_no"),
    identity=("external_id",),
    create="POST /patients",
    read="GET /charts/{chart_no}",
    update=Call("PUT /charts/{chart_no}", over_current=True),  # what is not sent is emptied: remarks are not ours
    delete="POST /patients/{id}/remove",
    find=look("GET /patients?external_id={external_id}", "external_id"),
)

appointments = practice.collection(
    "appointment",
    keys=("id", "booking"),
    identity=("reference",),
    create="POST /appointments",
    read="GET /appointments/{booking}",
    update=Replace(create_first=True),  # a slot that is taken leaves the old booking as it is
    delete=Call("POST /appointments/{id}/cancel", send={"reason": "changed or cancelled in Medplum"}),
    find=look("GET /appointments?reference={reference}&status={status}", "reference", "status"),
)

diagnoses = practice.collection(
    "diagnosis",
    keys=("id", "entry"),
    create="POST /charts/{patient.chart_no}/diagnoses",
    read="GET /diagnoses/{entry}",
    update="POST /diagnoses/{entry}",
    delete="POST /diagnoses/{id}/remove",
    find=look("GET /charts/{patient.chart_no}/diagnoses?icd10={icd10}", "description", "icd10", "noted_on"),
)

phone = Phone("##########", default=None)


@route(Practitioner, to=providers, phase=Phase.LIVE)
def provider(p: Practitioner, ctx: Context) -> Result:
    name = pick.name(p.name, at=ctx.updated) or HumanName()
    return {
        "last_name": required(name.family),
        "first_name": required(join(name.given)),
        "npi": pick.identifier(p.identifier, system=NPI),
        "external_id": ctx.fhir_id,
    }


@route(Patient, to=patients, phase=Phase.LIVE)
def patient(p: Patient, ctx: Context) -> Result:
    if p.deceasedBoolean:
        return Unsupported("the practice knows a death by its time alone")
    name = pick.name(p.name, at=ctx.updated) or HumanName()
    home = pick.address(p.address, "home", "", at=ctx.updated) or Address()
    street = join(home.line, sep=", ")
    phones = {use: phone(pick.telecom(p.telecom, "phone", use, at=ctx.updated)) for use in ("home", "mobile", "work")}
    return {
        "last_name": required(name.family),
        "first_name": first(name.given),
        "middle_name": join(rest(name.given)),
        "dob": ctx.date(p.birthDate),
        "gender": p.gender or "unknown",
        "phones": [{"type": use, "number": number} for use, number in phones.items() if number],
        "email": pick.telecom(p.telecom, "email", at=ctx.updated),
        "address": {"street": street, "city": home.city, "state": US_STATES(home.state), "zip": home.postalCode},
        "died_at": ctx.datetime(p.deceasedDateTime, partial="first"),
        "pcp_id": link(pick.reference(p.generalPractitioner, Practitioner), "id"),
        "external_id": ctx.fhir_id,
    }


@route(Appointment, to=appointments, phase=Phase.LIVE)
def appointment(a: Appointment, ctx: Context) -> Result:
    if a.status in {"proposed", "pending", "waitlist", "cancelled", "entered-in-error"}:
        return Absent("nothing is booked")
    actors = [each.actor for each in a.participant if each.actor]
    return {
        "patient_id": required(link(pick.reference(actors, Patient), "id")),
        "provider_id": required(link(pick.reference(actors, Practitioner), "id")),
        "starts": required(ctx.datetime(a.start)),
        "duration": required(a.end) - required(a.start),
        "reason": join(a.description),
        "reference": ctx.fhir_id.replace("-", "")[:20],  # too short for a uuid, long enough to be nobody else's
        "status": "booked",  # the practice's own: so that a cancelled one is never taken for it
    }


@route(Condition, to=diagnoses, phase=Phase.LIVE)
def diagnosis(c: Condition, ctx: Context) -> Result:
    if pick.has_code([c.verificationStatus], "entered-in-error", "refuted"):
        return Absent("it is not so")
    if pick.has_code(c.category, "encounter-diagnosis"):
        return Absent("a diagnosis of one visit is not in the chart")
    return {
        "patient": link(c.subject),
        "description": required(pick.text(c.code, ICD10CM, SNOMED)),
        "icd10": pick.code(c.code, ICD10CM),
        "noted_on": required(ctx.date(c.onsetDateTime or c.recordedDate, partial="first")),
        "resolved_on": ctx.date(c.abatementDateTime, partial="first"),
    }
