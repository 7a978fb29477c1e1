"""Routes for tests of who suffers from whom: one patient kills the process that maps it, providers have their own API.

REVERSE_SYNC_SITE_REGISTRY_URL says where that other API is; a test has nobody answer there.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from tests.acceptance import clinic_mappings
from worker.mapping import Context, Phase, Result, SiteSettings, route
from worker.mapping.r4 import Patient, Practitioner
from worker.mappings import practitioner as practitioners

POISON = "Poison"


class Site(SiteSettings):
    """REVERSE_SYNC_SITE_REGISTRY_URL."""

    prefix = "REGISTRY"

    url: str = "http://127.0.0.1:1"


registry = replace(clinic_mappings.api, name="registry", base_url=Site.read().url, concurrency=8)


@route(Patient, to=clinic_mappings.patient.to, phase=Phase.LIVE)
def patient(p: Patient, ctx: Context) -> Result:
    if p.name and p.name[0].family == POISON:
        os.kill(os.getpid(), signal.SIGKILL)  # as a crash in a library's C code would end it
    mapped = clinic_mappings.patient.function(p, ctx)
    return {**mapped} if isinstance(mapped, dict) else mapped


provider = route(Practitioner, to=replace(practitioners.providers, api=registry), phase=Phase.LIVE)(
    practitioners.provider.function
)
problem = clinic_mappings.problem
