"""What the whole path is measured against: a webhook and a task as a tutorial has them, and as they lose things.

The handler verifies and calls `task.delay(body)`; the task parses, maps and posts. No ledger, no read, no second try;
one HTTP client for all, because a client for each call would be far slower and the comparison too kind to us.
"""

from __future__ import annotations

import hmac
import json
import os
from typing import Final

import httpx
from celery import Celery
from fhir.resources.R4B.patient import Patient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bench.patients import SECRET
from tests.bench.routes import patient
from worker.mapping import Context, Mapped
from worker.mapping.route import apply

QUEUE: Final = "tutorial"

celery = Celery("tutorial", broker=os.environ["REVERSE_SYNC_BROKER_URL"])
celery.conf.update(task_ignore_result=True, task_default_queue=QUEUE)
http = httpx.Client(
    base_url=os.environ["REVERSE_SYNC_SITE_CLINIC_URL"],
    headers={"X-Api-Key": os.environ["REVERSE_SYNC_SITE_CLINIC_KEY"]},
    limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
    trust_env=False,
)


@celery.task  # type: ignore[untyped-decorator]
def sync(body: str) -> None:
    resource = json.loads(body)
    resource["meta"] = {"lastUpdated": resource["meta"]["lastUpdated"]}  # fhir.resources refuses Medplum's members
    model = Patient.model_validate(resource)
    mapped = apply(patient, model, Context.of(model, zone=patient.to.api.zoneinfo, medplum="https://medplum.example/"))
    if isinstance(mapped, Mapped):
        fields = {name: value for name, value in mapped.records[0].fields.items() if value is not None}
        http.post("/patients", json=fields).raise_for_status()


async def take(request: Request) -> Response:
    body = await request.body()
    signature = hmac.digest(SECRET.encode(), body, "sha256").hex()
    if not hmac.compare_digest(signature, request.headers.get("x-signature", "")):
        return Response(status_code=401)
    sync.delay(body.decode())
    return Response(status_code=202)


app = Starlette(routes=[Route("/medplum", take, methods=["POST"])])
