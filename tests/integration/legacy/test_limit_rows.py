"""Each row of `docs/legacy-api.md` on what an API takes: rates and quotas in its answers, and what mappings see to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

import pytest

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.errors import Unmappable
from worker.ledger.values import Operation
from worker.legacy import Answered, Call, Find, LegacyApi, Outcome, Quota, Rate, Scalar, Unsupported, Wire
from worker.legacy.gate import Closed, Gate, Pass
from worker.mapping import US_STATES, Context, Phone, SiteSettings, Table, join, prefix
from worker.medplum.resource import model

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


def sends(api: LegacyApi, fields: dict[str, Scalar]) -> Answered:
    """Create a record of these values, as the API's wire writes them."""
    none = Unsupported("not in this test")
    find = Find("GET /patients", match=tuple(fields))
    patients = api.collection("patient", keys=("id",), create="POST /patients", update=none, delete=none, find=find)
    try:
        written = {name: patients.write(value) for name, value in fields.items()}
        return api.send(patients.request(Operation.CREATE, written, {}, {}), deadline_s=5)
    finally:
        api.close()


def test_codes_are_words_of_the_site(vendor: Start) -> None:
    """An API takes its own words alone: a table gives them, refuses or has a stated default; codes get a prefix."""
    taken = {"sex": ("F", "M", "U"), "icd10": ("ICD10:E11.9",)}
    server = vendor(lambda asked: Says(201 if all(v in taken[k] for k, v in asked.json().items()) else 422, {"id": 1}))
    sex = Table({"female": "F"})
    assert sends(server.api(), {"sex": "female"}).outcome is Outcome.REFUSED
    assert sends(server.api(), {"sex": sex("female"), "icd10": prefix("ICD10:", "E11.9")}).outcome is Outcome.DONE
    assert sends(server.api(), {"sex": Table({"female": "F"}, default="U")("x")}).outcome is Outcome.DONE
    with pytest.raises(Unmappable):
        sex("x")
    assert len(server.asked) == 3


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


def test_lengths_alphabets_and_two_letter_states(vendor: Start) -> None:
    """What an API cuts silently, and what it takes only in its own form, is said in the mapping."""

    def behaviour(asked: Asked) -> Says:
        held = {**asked.json(), "street": asked.json()["street"][:13], "id": 1}
        fits = re.fullmatch(r"\d{3}-\d{3}-\d{4}", held["phone"]) and re.fullmatch("[A-Z]{2}", held["state"])
        return Says(201, held) if fits else Says(422)

    server = vendor(behaviour)
    street = join("1 Main Street", "Apt 2", sep=", ", max=13, overflow="drop")
    phone, state = Phone("###-###-####")("(555) 010-0199"), US_STATES("new york")
    answered = sends(server.api(), {"street": street, "phone": phone, "state": state})
    assert answered.outcome is Outcome.DONE
    assert answered.record == server.last.json() | {"id": 1}  # nothing was cut
    whole: dict[str, Scalar] = {"street": "1 Main Street, Apt 2", "phone": phone}
    assert sends(server.api(), whole | {"state": "New York"}).outcome is Outcome.REFUSED
    assert sends(server.api(), whole | {"state": state}).record != server.last.json() | {"id": 1}
    with pytest.raises(Unmappable):
        join("a name that is too long", max=10)


def test_a_year_is_no_day_until_the_mapping_says_which(vendor: Start) -> None:
    """A FHIR date can be a year, which fits no column: it is refused, or its first day is what is meant."""
    server = vendor(
        lambda asked: Says(201 if re.fullmatch(r"\d\d/\d\d/\d{4}", asked.json()["born"]) else 422, {"id": 1})
    )
    born = model(b'{"resourceType": "Patient", "id": "p1", "birthDate": "1980"}', "Patient")
    ctx = Context.of(born, zone="America/New_York", medplum="https://api.medplum.com")
    api = server.api(wire=Wire(date="%m/%d/%Y"))
    assert sends(api, {"born": ctx.date("1980", partial="first")}).outcome is Outcome.DONE
    assert server.last.json() == {"born": "01/01/1980"}
    assert sends(api, {"born": "1980"}).outcome is Outcome.REFUSED
    with pytest.raises(Unmappable, match="not a full date"):
        ctx.date("1980")
