"""The clinic as the witness sees it: its paths, its key, and JSON in."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from deploy.sandbox.clinic import book
from deploy.sandbox.clinic.chart import PRESCRIPTIONS, PROBLEMS, VISITS, VITALS
from deploy.sandbox.clinic.desk import Desk, refusal
from deploy.sandbox.witness.system import Answer, Head, Operation, Paths, Request

_PROVIDERS, _PROVIDER = "/api/providers", "/api/providers/{id}"
_PATIENTS, _PATIENT = "/api/patients", "/api/patients/{uuid}"
_APPOINTMENTS, _APPOINTMENT = "/api/appointments", "/api/appointments/{id}"

_PATHS: Paths[Callable[[Desk, Request], Answer]] = Paths(
    {
        "/api/ping": {"GET": Desk.ping},
        _PROVIDERS: {"GET": Desk.find_providers, "POST": Desk.create_provider},
        _PROVIDER: {"GET": Desk.get_provider, "PUT": Desk.update_provider, "DELETE": Desk.delete_provider},
        _PATIENTS: {"GET": Desk.find_patients, "POST": Desk.create_patient},
        _PATIENT: {"GET": Desk.get_patient, "PUT": Desk.update_patient, "DELETE": Desk.delete_patient},
        f"{_PATIENT}/reactivate": {"POST": Desk.reactivate_patient},
        f"{_PATIENT}/problems": {"GET": PROBLEMS.find, "POST": PROBLEMS.create},
        f"{_PATIENT}/problems/{{id}}": {"GET": PROBLEMS.get, "PUT": PROBLEMS.update, "DELETE": PROBLEMS.delete},
        f"{_PATIENT}/visits": {"GET": VISITS.find, "POST": VISITS.create},
        f"{_PATIENT}/visits/{{id}}": {"GET": VISITS.get, "PUT": VISITS.update},
        f"{_PATIENT}/prescriptions": {"GET": PRESCRIPTIONS.find, "POST": PRESCRIPTIONS.create},
        f"{_PATIENT}/prescriptions/{{id}}": {"GET": PRESCRIPTIONS.get, "DELETE": PRESCRIPTIONS.delete},
        f"{_PATIENT}/vitals": {"GET": VITALS.find, "POST": VITALS.create},
        f"{_PATIENT}/vitals/{{id}}": {"GET": VITALS.get, "PUT": VITALS.update, "DELETE": VITALS.delete},
        _APPOINTMENTS: {"GET": book.find, "POST": book.create},
        _APPOINTMENT: {"GET": book.get, "PUT": book.update},
    }
)


@dataclass(frozen=True, slots=True)
class Clinic:
    """The API: who may ask, and for what."""

    desk: Desk
    api_key: str

    @property
    def prefixes(self) -> Sequence[str]:
        return ("/api/",)

    def template_of(self, path: str) -> tuple[str | None, Mapping[str, str]]:
        return _PATHS.template_of(path)

    def read(self, head: Head, raw: bytes) -> object:
        try:
            return json.loads(raw, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return None

    def operation(self, head: Head) -> Operation:
        if not hmac.compare_digest(head.headers.get("x-api-key", "").encode(), self.api_key.encode()):
            raise refusal(401, "unauthorized")
        if head.template is None:
            raise refusal(404, "not_found", f"no {head.path}")
        if operation := _PATHS.get(head.template, head.method):
            return partial(operation, self.desk)
        raise refusal(405, "method", f"no {head.method}")


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)
