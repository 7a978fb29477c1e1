"""Two routes and a part, for the Subscriptions that they need. Nobody is called."""

from __future__ import annotations

from pydantic import SecretStr

from worker.ledger.values import Phase
from worker.legacy import ApiKey, LegacyApi, Unsupported
from worker.mapping import Context, Result, Skip, part_of, route
from worker.mapping.r4 import Coverage, Observation, Patient

_NO = Unsupported("nobody is there")
api = LegacyApi("nowhere", base_url="http://127.0.0.1:9", auth=ApiKey("X-Key", SecretStr("key")), zone="UTC")
persons = api.collection(
    "person", keys=("id",), create="POST /persons", update="PUT /persons/{id}", delete=_NO, find=_NO
)
values = api.collection("value", keys=("id",), create="POST /values", update="PUT /values/{id}", delete=_NO, find=_NO)


@route(Patient, to=persons, phase=Phase.LIVE)
def patient(p: Patient, ctx: Context) -> Result:
    return Skip("nobody is there")


@route(Observation, to=values, phase=Phase.SHADOW)
def observation(o: Observation, ctx: Context) -> Result:
    return Skip("nobody is there")


covers = part_of(Coverage, lambda coverage: coverage.beneficiary)
