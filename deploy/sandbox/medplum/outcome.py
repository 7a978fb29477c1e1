"""OperationOutcomes and the one exception that becomes an answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from .javascript import Json, dumps

__all__ = [
    "Answer",
    "Refused",
    "bad_request",
    "forbidden",
    "gone",
    "not_found",
    "of_status",
    "precondition_failed",
    "throttled",
    "unauthorized",
]

FHIR_JSON = "application/fhir+json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back for one operation, over HTTP or as an entry of a batch."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """Ends an operation with an OperationOutcome."""

    def __init__(self, status: int, outcome: Json) -> None:
        super().__init__(status)
        self.status = status
        self.outcome = outcome

    def answer(self) -> Answer:
        """Return the HTTP form."""
        return Answer(self.status, dumps(self.outcome))


def outcome(name: str, code: str, text: str, diagnostics: str | None = None, severity: str = "error") -> Json:
    """Build an OperationOutcome with one issue."""
    issue: Json = {"severity": severity, "code": code, "details": {"text": text}}
    if diagnostics is not None:
        issue["diagnostics"] = diagnostics
    return {"resourceType": "OperationOutcome", "id": name, "issue": [issue]}


ALL_OK = outcome("ok", "informational", "All OK", severity="information")


def bad_request(text: str) -> Refused:
    """400 with the reason."""
    return Refused(400, outcome("bad-request", "invalid", text))


def unauthorized() -> Refused:
    """401: no token, an unknown one, or an expired one."""
    return Refused(401, outcome("unauthorized", "login", "Unauthorized"))


def forbidden() -> Refused:
    """403: the access policy has no such type."""
    return Refused(403, outcome("forbidden", "forbidden", "Forbidden"))


def not_found() -> Refused:
    """404: never there, expunged, or not for this client to see."""
    return Refused(404, outcome("not-found", "not-found", "Not found"))


def gone() -> Refused:
    """410: deleted."""
    return Refused(410, outcome("gone", "deleted", "Gone"))


def precondition_failed() -> Refused:
    """412: If-Match names another version."""
    return Refused(412, outcome("precondition-failed", "processing", "Precondition Failed"))


def throttled(ms_before_next: int, consumed: int, limit: int) -> Refused:
    """429 as Medplum sends it: no Retry-After, the waiting time hidden in the diagnostics."""
    state = {
        "_remainingPoints": 0,
        "_msBeforeNext": ms_before_next,
        "_consumedPoints": consumed,
        "_isFirstInDuration": False,
        "limit": limit,
    }
    diagnostics = dumps(state).decode()
    return Refused(429, outcome("too-many-requests", "throttled", "Too Many Requests", diagnostics))


def _throttled_for_a_second() -> Refused:
    return throttled(1_000, 1, 1)


_BY_STATUS = {
    401: unauthorized,
    403: forbidden,
    404: not_found,
    410: gone,
    412: precondition_failed,
    429: _throttled_for_a_second,
}
_TEXT = {
    400: ("bad-request", "invalid", "Bad Request"),
    409: ("conflict", "conflict", "Conflict"),
    500: ("internal-server-error", "exception", "Internal Server Error"),
    503: ("service-unavailable", "transient", "Service Unavailable"),
}


def of_status(status: int) -> Refused:
    """Return the refusal that a fault with this status shows."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]()
    name, code, text = _TEXT.get(status, ("exception", "exception", f"Status {status}"))
    return Refused(status, outcome(name, code, text))
