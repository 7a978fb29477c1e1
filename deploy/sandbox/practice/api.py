"""The practice as the witness sees it: its paths, forms in, tokens, and a limit of calls per second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qsl

from starlette.requests import Request as Asked
from starlette.responses import Response
from starlette.routing import Route

from deploy.sandbox.practice import book
from deploy.sandbox.practice.chart import ALLERGIES, DIAGNOSES
from deploy.sandbox.practice.desk import PATIENTS, PROVIDERS, Desk, no
from deploy.sandbox.practice.tokens import Account, Tokens
from deploy.sandbox.witness.control import lines_of
from deploy.sandbox.witness.system import Answer, Head, Operation, Outcome, Paths, Refusal, Request

_TOKEN = "/oauth/token"  # noqa: S105 — a path
_SECRETS = ("password", "client_secret", "refresh_token")
_FORM = "application/x-www-form-urlencoded"


def _ping(desk: Desk, request: Request) -> Answer:
    return Answer(200, {"success": True, "result": "pong"})


_PATHS: Paths[Callable[[Desk, Request], Answer]] = Paths(
    {
        _TOKEN: {},
        "/v2/ping": {"GET": _ping},
        "/v2/providers": {"GET": PROVIDERS.find, "POST": PROVIDERS.create},
        "/v2/providers/{code}": {"GET": PROVIDERS.get, "POST": PROVIDERS.change},
        "/v2/providers/{id}/remove": {"POST": PROVIDERS.remove},
        "/v2/providers/{id}/restore": {"POST": PROVIDERS.restore},
        "/v2/patients": {"GET": PATIENTS.find, "POST": PATIENTS.create},
        "/v2/charts/{chart_no}": {"GET": PATIENTS.get, "PUT": PATIENTS.replace},
        "/v2/patients/{id}/remove": {"POST": PATIENTS.remove},
        "/v2/patients/{id}/restore": {"POST": PATIENTS.restore},
        "/v2/appointments": {"GET": book.find, "POST": book.create},
        "/v2/appointments/{booking}": {"GET": book.get},
        "/v2/appointments/{id}/cancel": {"POST": book.cancel},
        "/v2/charts/{chart_no}/diagnoses": {"GET": DIAGNOSES.find, "POST": DIAGNOSES.create},
        "/v2/diagnoses/{entry}": {"GET": DIAGNOSES.get, "POST": DIAGNOSES.change},
        "/v2/diagnoses/{id}/remove": {"POST": DIAGNOSES.remove},
        "/v2/charts/{chart_no}/allergies": {"GET": ALLERGIES.find, "POST": ALLERGIES.create},
        "/v2/allergies/{entry}": {"GET": ALLERGIES.get, "POST": ALLERGIES.change},
        "/v2/allergies/{id}/remove": {"POST": ALLERGIES.remove},
    }
)


@dataclass(slots=True)
class Rate:
    """So many calls in any rolling second; 0 is no limit. What is turned away is not counted."""

    calls: int
    _admitted: deque[float] = field(default_factory=deque)

    def admits(self, now: float) -> bool:
        while self._admitted and now - self._admitted[0] >= 1:
            self._admitted.popleft()
        if self.calls and len(self._admitted) >= self.calls:
            return False
        self._admitted.append(now)
        return True


@dataclass(frozen=True, slots=True)
class Practice:
    """The API: who may ask, how often, and for what."""

    desk: Desk
    account: Account
    tokens: Tokens
    rate: Rate

    @property
    def prefixes(self) -> Sequence[str]:
        return ("/oauth/", "/v2/")

    def template_of(self, path: str) -> tuple[str | None, Mapping[str, str]]:
        return _PATHS.template_of(path)

    def read(self, head: Head, raw: bytes) -> object:
        """Read a form; secrets are struck out, for the journal is read by everybody."""
        form = _form(head, raw)
        return form and {name: "***" if name in _SECRETS else value for name, value in form.items()}

    def operation(self, head: Head) -> Operation:
        if head.template == _TOKEN and head.method == "POST":
            return partial(self._token, head)
        if head.template != _TOKEN and not self.tokens.admits(head.headers.get("authorization", "")):
            raise no("unauthorized", "no token, or one that has ended", status=401)
        if not self.rate.admits(time.monotonic()):
            raise Refusal(429, None)
        if head.template is None:
            raise no("not_found", f"no {head.path}", status=404)
        if operation := _PATHS.get(head.template, head.method):
            return partial(operation, self.desk)
        raise no("method", f"no {head.method}", status=405)

    def _token(self, head: Head, request: Request) -> Answer:
        form = _form(head, request.raw) or {}
        if not self.account.is_client(form):
            raise Refusal(401, {"error": "invalid_client"})
        if (grant := form.get("grant_type")) not in ("password", "refresh_token"):
            raise Refusal(400, {"error": "unsupported_grant_type"})
        given = self.tokens.refresh(form.get("refresh_token", "")) if grant == "refresh_token" else None
        if grant == "password" and self.account.is_user(form):
            given = self.tokens.log_in()
        if given is None:
            raise Refusal(400, {"error": "invalid_grant"})
        return Answer(200, given, Outcome.APPLIED)

    def control(self) -> Sequence[Route]:
        """Make what the control plane has besides."""
        return [
            Route("/sandbox/tokens", self._show_tokens, methods=["GET"]),
            Route("/sandbox/tokens", self._end_tokens, methods=["POST"]),
        ]

    async def _show_tokens(self, asked: Asked) -> Response:
        return lines_of(self.tokens.lines())

    async def _end_tokens(self, asked: Asked) -> Response:
        end = {"expire": self.tokens.expire, "revoke": self.tokens.revoke}.get((await asked.json()).get("end", ""))
        if end is None:
            return Response("end is expire or revoke\n", 422)
        end()
        return Response(status_code=204)


def _form(head: Head, raw: bytes) -> dict[str, str] | None:
    """Read a body as the practice does; None where it is no form."""
    if not raw:
        return {}
    if not head.headers.get("content-type", "").startswith(_FORM):
        return None
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=True, errors="strict"))
    except ValueError:
        return None
