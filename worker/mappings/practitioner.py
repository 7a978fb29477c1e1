"""Practitioner → the clinic's providers. Their work is kept: a delete makes them inactive."""

from worker.legacy import Answer, Call, Find, Listing, Outcome
from worker.mapping import Context, Phase, Result, WriteBack, first, join, pick, required, route
from worker.mapping.r4 import HumanName, Practitioner
from worker.mapping.systems import NPI
from worker.mappings.clinic import clinic

DUPLICATE = Answer(409, has="error.code", equal="duplicate")  # another active provider has this npi

providers = clinic.collection(
    "provider",
    keys=("id",),
    identity=("external_ref",),
    create=Call("POST /providers", means={DUPLICATE: Outcome.EXISTS}),
    read="GET /providers/{id}",
    update=Call("PUT /providers/{id}", means={DUPLICATE: Outcome.REFUSED}),
    delete="DELETE /providers/{id}",
    find=Find("GET /providers?npi={npi}&per_page=50", match=("external_ref",), page="page"),
    list=Listing("GET /providers?per_page=50", page="page"),
    gone={"status": "inactive"},
)


ID = WriteBack("https://clinic.example.com/provider-id")


@route(Practitioner, to=providers, phase=Phase.LIVE, identifier=ID)
def provider(p: Practitioner, ctx: Context) -> Result:
    name = pick.name(p.name, at=ctx.updated) or HumanName()
    return {
        "last_name": required(name.family),
        "first_name": required(first(name.given)),
        "npi": pick.identifier(p.identifier, system=NPI),
        "title": join(name.suffix, sep=", ") or join(name.prefix),
        "external_ref": ctx.fhir_id,
    }
