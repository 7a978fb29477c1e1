"""Each row of `docs/legacy-api.md` on what an API takes: rates and quotas in its answers, and what mappings see to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from tests.integration.legacy.vendor import Behaviour, Says, Vendor
from worker.errors import Unmappable
from worker.ledger.values import Operation
from worker.legacy import Answered, Call, Find, LegacyApi, Outcome, Quota, Rate, Unsupported
from worker.legacy.gate import Closed, Gate, Pass
from worker.mapping import US_STATES, Phone, SiteSettings, Table, join, prefix

Start = Callable[[Behaviour], Vendor]


def closes(api: LegacyApi) -> tuple[Answered, float]:
    """Send one call through a gate; what it answered, and for how long the gate is closed."""
    gate = Gate(None)
    entered = gate.enter(api)
    assert isinstance(entered, Pass)
    answered = api.ping()
    api.close()
    assert answered is not None
    gate.leave(entered, answered)
    after = gate.enter(api)
    return answered, after.wait_s if isinstance(after, Closed) else 0.0


@pytest.mark.parametrize(
    ("status", "headers", "least_s", "most_s"),
    [
        (429, {"Retry-After": "30"}, 25, 30),
        (429, {"Retry-After": "Sun, 22 Nov 1999 10:00:00 GMT"}, 0.5, 1),
        (429, {}, 0.5, 1),
        (429, {"X-Left": "0", "X-Reset": "{unix}"}, 50, 61),
        (200, {"X-Left": "0", "X-Reset": "45"}, 40, 45),
        (200, {"X-Left": "7", "X-Reset": "45"}, 0, 0),
        (503, {"Retry-After": "20"}, 15, 20),
    ],
    ids=["Retry-After", "a date that is past", "nothing", "unix reset", "quota used up", "quota left", "503"],
)
def test_an_api_that_asks_for_patience(
    vendor: Start, status: int, headers: Mapping[str, str], least_s: float, most_s: float
) -> None:
    """The gate closes for as long as the answer says; for a second where a 429 says nothing."""
    told = {name: value.replace("{unix}", str(int(time.time()) + 60)) for name, value in headers.items()}
    server = vendor(lambda asked: Says(status, {"ok": True}, told))
    answered, closed_s = closes(server.api(probe="GET /ping", quota=Quota("X-Left", "X-Reset")))
    assert answered.outcome is (Outcome.DONE if status == 200 else Outcome.NOT_DONE)
    assert least_s <= closed_s <= most_s


def test_limits_per_second_and_per_hour_at_once(vendor: Start) -> None:
    """Both are declared, and the one that is reached says how long to wait."""
    server = vendor(lambda asked: Says(200, {}))
    rates = (Rate(5, "second"), Rate(1, "hour"))
    _, closed_s = closes(server.api(probe="GET /ping", rates=rates))
    assert 3590 < closed_s <= 3600


def test_a_quota_that_starts_anew_on_the_hour(vendor: Start) -> None:
    """`fixed` counts by the clock."""
    server = vendor(lambda asked: Says(200, {}))
    _, closed_s = closes(server.api(probe="GET /ping", rates=(Rate(1, "hour", fixed=True),)))
    assert abs(closed_s - (3600 - time.time() % 3600)) < 5


def test_codes_are_words_of_the_site() -> None:
    """A table refuses what it does not know, or has a stated default; a system's codes get their prefix."""
    assert Table({"female": "F"})("female") == "F"
    with pytest.raises(Unmappable):
        Table({"female": "F"})("unknown")
    assert Table({"female": "F"}, default="U")("unknown") == "U"
    assert prefix("ICD10:", "E11.9") == "ICD10:E11.9"


def test_what_fhir_does_not_know_comes_from_the_site(vendor: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provider, facility and a comment that may not be empty are settings, sent by `also`."""

    class Site(SiteSettings):
        """REVERSE_SYNC_SITE_ROWS_PROVIDER."""

        prefix = "ROWS"
        provider: int

    monkeypatch.setenv("REVERSE_SYNC_SITE_ROWS_PROVIDER", "7")
    server = vendor(lambda asked: Says(201, {"id": 1}))
    api = server.api()
    create = Call("POST /visits", also={"provider": Site.read().provider, "comment": "from Medplum"})
    none = Unsupported("not in this test")
    visits = api.collection(
        "visit", keys=("id",), create=create, update=none, delete=none, find=Find("GET /visits", match=("on",))
    )
    api.send(visits.request(Operation.CREATE, {"on": "2024-02-01"}, {}, {}), deadline_s=5)
    api.close()
    assert server.last.json() == {"on": "2024-02-01", "provider": 7, "comment": "from Medplum"}


def test_lengths_alphabets_and_two_letter_states() -> None:
    """What an API cuts silently, and what it takes only in its own form, is said in the mapping."""
    assert join("1 Main Street", "Apt 2", sep=", ", max=13, overflow="drop") == "1 Main Street"
    with pytest.raises(Unmappable):
        join("a name that is too long", max=10)
    assert Phone("###-###-####")("(555) 010-0199") == "555-010-0199"
    assert US_STATES("new york") == "NY"
