"""The patients of the benchmark: a recorded one under any number of ids, as a notification and as a read show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from hmac import digest
from pathlib import Path
from typing import Any, Final

SECRET: Final = "benchmark"
RECORDED: Final = Path(__file__).parents[1] / "fixtures" / "notifications" / "001-patient-create-realistic.json"

_ID, _VERSION = "<id>", "<version>"


def _recorded() -> dict[str, Any]:
    """Return the recorded patient without its references to others: the tutorial has nothing to resolve them with."""
    resource: dict[str, Any] = json.loads(json.loads(RECORDED.read_text(encoding="utf-8"))["body_text"])
    resource.pop("generalPractitioner")
    compartment = [{"reference": f"Patient/{_ID}"}]
    return resource | {"id": _ID, "meta": resource["meta"] | {"versionId": _VERSION, "compartment": compartment}}


def _template(resource: Mapping[str, Any]) -> Callable[[int], bytes]:
    text = json.dumps(resource, separators=(",", ":"), ensure_ascii=False).encode()

    def make(number: int) -> bytes:
        return text.replace(_ID.encode(), id_of(number).encode()).replace(
            _VERSION.encode(), version_of(number).encode()
        )

    return make


def id_of(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def version_of(number: int) -> str:
    return f"{number:08d}-1111-4111-8111-111111111111"


def number_of(id_: str) -> int:
    return int(id_[:8])


notified = _template(_recorded())
"""The body of a patient's notification."""

read = _template(dict(reversed(_recorded().items())))
"""The same as a search answers it: members in another order, so that comparing the two costs what it costs."""


def request(number: int, path: str) -> bytes:
    """Make a signed notification as it stands on the wire."""
    body = notified(number)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/fhir+json\r\nAccept: */*\r\n"
        f"X-Medplum-Subscription: {id_of(1)}\r\nX-Medplum-Interaction: create\r\n"
        f"X-Signature: {digest(SECRET.encode(), body, sha256).hex()}\r\nx-trace-id: {id_of(number)}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: keep-alive\r\n\r\n"
    )
    return head.encode() + body
