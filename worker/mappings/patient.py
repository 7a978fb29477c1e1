"""Patient → the clinic's patients: one home address, two phone numbers, and the provider who looks after them."""

from worker.legacy import Find, Listing
from worker.mapping import (
    US_STATES,
    Context,
    Phase,
    Phone,
    Result,
    Table,
    Unmappable,
    WriteBack,
    first,
    join,
    link,
    pick,
    required,
    rest,
    route,
)
from worker.mapping.r4 import Address, HumanName, Patient, Practitioner
from worker.mapping.systems import MARITAL_STATUS, NULL_FLAVOR
from worker.mappings.clinic import clinic

patients = clinic.collection(
    "patient",
    keys=("number", "uuid"),
    identity=("external_id",),
    create="POST /patients",
    read="GET /patients/{uuid}",
    update="PUT /patients/{uuid}",
    delete="DELETE /patients/{uuid}",
    find=Find("GET /patients?external_id={external_id}&per_page=50", match=("external_id",), page="page"),
    list=Listing("GET /patients?per_page=50", page="page"),
    clear={"email": ""},
    gone={"status": "inactive"},
)

SEX = Table({"female": "F", "male": "M", "other": "O", "unknown": "U"})
MARITAL = Table(
    {
        "M": "MAR", "S": "SNG", "U": "SNG", "D": "DIV", "W": "WDW", "L": "SEP", "UNK": "UNK",
        "A": "UNK", "C": "UNK", "I": "UNK", "P": "UNK", "T": "UNK",  # the clinic has no word for these
    }
)  # fmt: skip

# Columns for ten digits: another country's number stays in Medplum alone, rather than keep the whole patient out.
phone = Phone("###-###-####", default=None)


NUMBER = WriteBack("https://clinic.example.com/patient-number")


@route(Patient, to=patients, phase=Phase.LIVE, identifier=NUMBER)
def patient(p: Patient, ctx: Context) -> Result:
    name = pick.name(p.name, at=ctx.updated) or HumanName()
    home = pick.address(p.address, "home", "", at=ctx.updated) or Address()
    marital = pick.code(p.maritalStatus, MARITAL_STATUS, NULL_FLAVOR)
    if p.deceasedBoolean and not p.deceasedDateTime:
        raise Unmappable("deceased without a date: the clinic knows only the day")
    return {
        "last_name": required(name.family),
        "first_name": first(name.given),
        "middle_name": join(rest(name.given)),
        "birth_date": ctx.date(p.birthDate),
        "deceased_on": ctx.date(p.deceasedDateTime),
        "sex": SEX(p.gender) or "U",
        "marital": required(MARITAL(marital)) if p.maritalStatus else None,
        "phone_home": phone(pick.telecom(p.telecom, "phone", "home", at=ctx.updated)),
        "phone_mobile": phone(pick.telecom(p.telecom, "phone", "mobile", at=ctx.updated)),
        "email": pick.telecom(p.telecom, "email", at=ctx.updated),
        "street": join(home.line, sep=", "),
        "city": home.city,
        "state": US_STATES(home.state),
        "zip": home.postalCode,
        "provider_id": link(pick.reference(p.generalPractitioner, Practitioner), "id"),
        "external_id": ctx.fhir_id,
    }
