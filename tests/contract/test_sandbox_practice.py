"""The sandbox practice keeps the opinions that its docstring promises, as a real process over real sockets."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.sandbox import DEADLINE_S, Sandbox, until

CLIENT = {"client_id": "practice-client-id", "client_secret": "practice-client-secret"}
USER = {
    "grant_type": "password",
    "username": "practice-username",
    "password": "practice-password",
    "user_role": "users",
}
JANE = {"last_name": "Doe", "first_name": "Jane", "dob": "1980-03-04", "gender": "female"}
MEIER = {"last_name": "Meier", "first_name": "Ada", "npi": "1234567893"}
GOUT = {"description": "Gout", "icd10": "M10.9", "noted_on": "2019-01-31"}
FISH = {"substance": "Fish", "reaction": "Hives", "severity": "mild"}
STARTS = "2024-11-03 01:30:00"


class Practice(Sandbox):
    """A practice process, entered by password, and its two sides."""

    name = "practice"

    def token(self, **form: str) -> httpx.Response:
        return self.api.post("/oauth/token", data=CLIENT | form)

    def enter(self) -> dict[str, str]:
        given = dict(self.token(**USER).json())
        self.api.headers["Authorization"] = f"Bearer {given['access_token']}"
        return given

    def refreshed(self, refresh_token: str) -> dict[str, str]:
        answer = self.token(grant_type="refresh_token", refresh_token=refresh_token)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def lets_in(self, access_token: str) -> bool:
        return self.api.get("/v2/ping", headers={"Authorization": f"Bearer {access_token}"}).status_code == 200

    def post(self, path: str, fields: Mapping[str, str]) -> dict[str, str]:
        """Create a record and give its keys."""
        answer = self.api.post(path, data=fields)
        assert answer.json().get("success"), answer.text
        return dict(answer.json()["result"])

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(path)
        assert answer.json().get("success"), answer.text
        return dict(answer.json()["result"])

    def found(self, path: str, **query: object) -> list[str]:
        answer = self.api.get(path, params={name: str(value) for name, value in query.items()})
        return [record["id"] for record in answer.json()["results"]]

    def patient(self, **fields: str) -> dict[str, str]:
        return self.post("/v2/patients", JANE | fields)

    def booking(self, patient: Mapping[str, str], provider: Mapping[str, str], **fields: str) -> dict[str, str]:
        who = {"patient_id": patient["id"], "provider_id": provider["id"]}
        return self.post("/v2/appointments", who | {"starts": STARTS, "duration": "1800"} | fields)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Practice]:
    practice = Practice(tmp_path_factory.mktemp("practice"))
    practice.start()
    yield practice
    practice.end()


@pytest.fixture
def practice(process: Practice) -> Practice:
    """The shared process, entered and emptied."""
    process.enter()
    assert process.tell("reset").status_code == 204
    return process


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Practice]:
    """A process that the test may kill."""
    practice = Practice(tmp_path)
    practice.start()
    practice.enter()
    yield practice
    practice.end()


def refused(answer: httpx.Response, code: str, status: int = 200) -> dict[str, str]:
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert answer.json()["error"]["code"] == code
    return dict(answer.json()["error"])


class TestTokens:
    def test_a_password_gives_tokens_as_texts(self, practice: Practice) -> None:
        """The first tokens come for client, user and role together, every value of the answer a text."""
        given = practice.token(**USER).json()
        assert (given["expires_in"], given["token_type"]) == ("300", "Bearer")
        assert practice.lets_in(given["access_token"])
        assert not practice.lets_in(given["refresh_token"])

    @pytest.mark.parametrize(
        ("form", "status", "error"),
        [
            (USER | {"client_secret": "wrong"}, 401, "invalid_client"),
            (USER | {"client_id": ""}, 401, "invalid_client"),
            (USER | {"password": "wrong"}, 400, "invalid_grant"),
            (USER | {"user_role": ""}, 400, "invalid_grant"),
            (USER | {"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
            ({"grant_type": "refresh_token", "refresh_token": "never given"}, 400, "invalid_grant"),
        ],
    )
    def test_a_wrong_form_gives_nothing(
        self, practice: Practice, form: dict[str, str], status: int, error: str
    ) -> None:
        """Each part of the form counts, and the error is that of OAuth."""
        answer = practice.token(**form)
        assert (answer.status_code, answer.json()) == (status, {"error": error})

    def test_credentials_count_in_the_form_only(self, practice: Practice) -> None:
        """The client's secret in a header, and a form sent as JSON, are not read."""
        url, basic = f"{practice.url}/oauth/token", (CLIENT["client_id"], CLIENT["client_secret"])
        for answer in (
            httpx.post(url, data=USER, auth=basic, trust_env=False),
            httpx.post(url, json=USER | CLIENT, trust_env=False),
        ):
            assert answer.json() == {"error": "invalid_client"}

    def test_a_refresh_token_can_be_used_once(self, practice: Practice) -> None:
        """A refresh gives a new pair of the same chain, and leaves the older access token to its end."""
        first = practice.enter()
        second = practice.refreshed(first["refresh_token"])
        third = practice.refreshed(second["refresh_token"])
        assert len({pair[name] for pair in (first, second, third) for name in ("access_token", "refresh_token")}) == 6
        assert all(practice.lets_in(pair["access_token"]) for pair in (first, second, third))

    def test_a_used_one_again_ends_its_chain_and_no_other(self, practice: Practice) -> None:
        """A dead refresh token kills every token that came of the same password, live ones too, and no other's."""
        other, first = practice.enter(), practice.enter()
        second = practice.refreshed(first["refresh_token"])
        for dead in (first, second, first):
            answer = practice.token(grant_type="refresh_token", refresh_token=dead["refresh_token"])
            assert (answer.status_code, answer.json()) == (400, {"error": "invalid_grant"})
        assert [practice.lets_in(pair["access_token"]) for pair in (first, second, other)] == [False, False, True]
        practice.refreshed(other["refresh_token"])

    def test_an_answer_lost_on_the_way_uses_the_token_up(self, practice: Practice) -> None:
        """A refresh whose answer never came has happened: asking again with the same token ends the chain."""
        first = practice.enter()
        practice.fault(kind="reset_after", match={"template": "/oauth/token"})
        with pytest.raises(httpx.ReadError):
            practice.token(grant_type="refresh_token", refresh_token=first["refresh_token"])
        assert practice.lets_in(first["access_token"])
        again = practice.token(grant_type="refresh_token", refresh_token=first["refresh_token"])
        assert again.json() == {"error": "invalid_grant"}
        assert not practice.lets_in(first["access_token"])

    def test_an_access_token_ends_by_itself(self, tmp_path: Path) -> None:
        """After its seconds a token is a 401, and the refresh token still helps."""
        short = Practice(tmp_path, ("--token-seconds", "0.5"))
        short.start()
        try:
            given = short.enter()
            assert given["expires_in"] == "0.5"
            until(lambda: not short.lets_in(given["access_token"]))
            refused(short.api.get("/v2/ping"), "unauthorized", 401)
            assert short.refreshed(given["refresh_token"])["access_token"] != given["access_token"]
        finally:
            short.end()

    def test_tests_can_end_tokens(self, practice: Practice) -> None:
        """Expired, access tokens are dead and refresh tokens live; revoked, both are; a misspelt end is refused."""
        first = practice.enter()
        assert practice.tell("tokens", {"end": "expire"}).status_code == 204
        assert not practice.lets_in(first["access_token"])
        second = practice.refreshed(first["refresh_token"])
        assert practice.lets_in(second["access_token"])
        assert practice.tell("tokens", {"end": "revoke"}).status_code == 204
        assert not practice.lets_in(second["access_token"])
        assert practice.token(grant_type="refresh_token", refresh_token=second["refresh_token"]).status_code == 400
        assert practice.tell("tokens", {"end": "burn"}).status_code == 422
        assert {line["state"] for line in practice.lines("tokens")} == {"revoked"}

    def test_no_secret_is_in_the_journal(self, practice: Practice) -> None:
        """Token requests are in the journal with what was asked, and without what it was asked with."""
        practice.refreshed(practice.enter()["refresh_token"])
        password, refresh = practice.lines("journal")
        assert password["body"] == CLIENT | USER | {"client_secret": "***", "password": "***"}
        assert refresh["body"]["refresh_token"] == "***"
        assert {(line["template"], line["outcome"]) for line in (password, refresh)} == {("/oauth/token", "applied")}
        told = [(line["use"], line["state"]) for line in practice.lines("tokens")][-4:]
        assert told == [("access", "live"), ("refresh", "used"), ("access", "live"), ("refresh", "live")]

    def test_tokens_outlive_a_kill(self, own: Practice) -> None:
        """What was given is known after SIGKILL, and what was used stays used."""
        first = own.enter()
        second = own.refreshed(first["refresh_token"])
        own.stop(signal.SIGKILL)
        own.start(own.port)
        assert own.lets_in(second["access_token"])
        assert own.token(grant_type="refresh_token", refresh_token=first["refresh_token"]).status_code == 400


class TestApi:
    @pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic wrong"])
    def test_every_request_wants_a_token(self, practice: Practice, authorization: str) -> None:
        """No token or an unknown one is a 401, for paths that do not exist as well."""
        for path in ("/v2/ping", "/v2/patients", "/v2/nothing"):
            refused(practice.api.get(path, headers={"Authorization": authorization}), "unauthorized", 401)

    def test_the_probe_answers(self, practice: Practice) -> None:
        """With a token, the probe says pong."""
        assert practice.api.get("/v2/ping").json() == {"success": True, "result": "pong"}

    def test_unknown_paths_and_methods(self, practice: Practice) -> None:
        """These alone of the API's own errors have the status that they should have."""
        refused(practice.api.get("/v2/visits"), "not_found", 404)
        refused(practice.api.delete("/v2/patients"), "method", 405)
        refused(practice.api.get("/oauth/token"), "method", 405)

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b'{"last_name": "Doe"}', "application/json"),
            (b'{"last_name": "Doe"}', "application/x-www-form-urlencoded"),
            (b"last_name=Doe", "text/plain"),
            (b"last_name=%ff", "application/x-www-form-urlencoded"),
        ],
    )
    def test_only_forms_are_read(self, practice: Practice, content: bytes, kind: str) -> None:
        """JSON, another media type and broken bytes are a 400 that echoes the beginning of the body."""
        answer = practice.api.post("/v2/patients", content=content, headers={"Content-Type": kind})
        assert refused(answer, "unreadable", 400)["message"] == f"cannot read: {content.decode()}"
        assert practice.lines("records") == []

    def test_too_many_calls_are_turned_away_without_a_word(self, tmp_path: Path) -> None:
        """Beyond the rate comes a 429 without Retry-After and without body; a second later all is well."""
        slow = Practice(tmp_path, ("--rate", "2"))
        slow.start()
        try:
            slow.enter()
            answers = [slow.api.get("/v2/ping") for _ in range(40)]
            turned_away = [answer for answer in answers if answer.status_code == 429]
            assert turned_away
            assert all(answer.content == b"" and "Retry-After" not in answer.headers for answer in turned_away)
            until(lambda: slow.api.get("/v2/ping").status_code == 200)
            admitted = [line["received_at"] for line in slow.lines("journal") if line["outcome"] == "read"]
            windows = [sum(start <= at < start + 0.9 for at in admitted) for start in admitted]
            assert max(windows) <= 2
            assert len(slow.token(**USER).json()["access_token"]) > 20
        finally:
            slow.end()


class TestFields:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("last_name", value) for value in ("", "x" * 41, "a\x00b")),
            *(("dob", value) for value in ("1980", "1980-02-30", "1980-3-4", "03/04/1980")),
            *(("gender", value) for value in ("F", "")),
            *(
                ("phones", value)
                for value in ("5551234567", '["5551234567"]', '[{"type": "home", "number": 5551234567}]')
            ),
            *(("phones", value) for value in ('[{"type": "fax", "number": "5551234567"}]', "[", "[" * 9999)),
            *(
                ("address", value)
                for value in ("[]", '{"line": "1 Elm Street"}', '{"state": "Ohio"}', '{"zip": 12345}')
            ),
            *(("died_at", value) for value in ("2020-01-01", "2020-01-01T00:00:00", "2020-01-01 24:00:00")),
            *(("pcp_id", value) for value in ("99", "DR-1", "0")),
            *(("sms_ok", value) for value in ("true", "yes", "2")),
            ("email", "nobody"),
            ("external_id", "x" * 37),
        ],
    )
    def test_a_wrong_value_is_a_200_that_names_the_patient(self, practice: Practice, name: str, value: str) -> None:
        """The status says that all is well, the body names field, value and patient; nothing is saved."""
        said = refused(practice.api.post("/v2/patients", data=JANE | {name: value}), "invalid")
        assert said["field"] == name
        assert said["message"].startswith(f"{name}: ")
        assert said["message"].endswith("Jane")
        assert practice.lines("records") == []

    def test_a_full_record_comes_back_as_texts(self, practice: Practice) -> None:
        """Create answers the keys alone; the record has every column, each value a text, and "" for nothing."""
        provider = practice.post("/v2/providers", MEIER)
        inside = {"phones": [{"type": "home", "number": "5551234567"}], "address": {"street": "1 Élm", "zip": "45501"}}
        sent = JANE | {"email": "jane@example.org", "pcp_id": provider["id"], "sms_ok": "1", "external_id": "x" * 36}
        keys = practice.patient(**sent, **{name: json.dumps(value) for name, value in inside.items()})
        assert keys.keys() == {"id", "chart_no"}
        empty = dict.fromkeys(("middle_name", "died_at", "remarks"), "")
        assert practice.get(f"/v2/charts/{keys['chart_no']}") == sent | inside | empty | keys | {"active": "1"}
        assert practice.get(f"/v2/providers/{provider['code']}") == MEIER | provider | {
            "specialty": "",
            "external_id": "",
            "active": "1",
        }

    def test_nothing_inside_an_address_is_an_empty_text(self, practice: Practice) -> None:
        """null and "" inside an address both come back as ""."""
        keys = practice.patient(address='{"street": "1 Elm Street", "city": null, "state": ""}')
        address = practice.get(f"/v2/charts/{keys['chart_no']}")["address"]
        assert address == {"street": "1 Elm Street", "city": "", "state": ""}

    def test_unknown_and_own_fields_are_silently_ignored(self, practice: Practice) -> None:
        """A misspelt field changes nothing and is no error, and keys cannot be set."""
        keys = practice.patient(birth_date="1980", active="0", id="1", chart_no="mine")
        record = practice.get(f"/v2/charts/{keys['chart_no']}")
        assert (record["active"], record["id"]) == ("1", "310001")
        assert "birth_date" not in record

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("starts", value) for value in ("2024-11-03", "2024-11-03T01:30:00", "2024-11-03 01:30", "")),
            *(("duration", value) for value in ("299", "86401", "30 min", "-300", "1800.0", "")),
            *(("patient_id", value) for value in ("1", "", "CH-1")),
            ("provider_id", "1"),
            ("reference", "x" * 21),
        ],
    )
    def test_an_appointment_has_a_form_too(self, practice: Practice, name: str, value: str) -> None:
        """A moment with zone letters, seconds out of bounds, a stranger's id and a whole uuid are refused."""
        patient, provider = practice.patient(), practice.post("/v2/providers", MEIER)
        body = {"patient_id": patient["id"], "provider_id": provider["id"], "starts": STARTS, "duration": "1800"}
        assert refused(practice.api.post("/v2/appointments", data=body | {name: value}), "invalid")["field"] == name


class TestPeople:
    def test_each_path_wants_its_own_key(self, practice: Practice) -> None:
        """The chart number reads and changes, the id removes; the other key opens nothing."""
        keys = practice.patient()
        number, chart_no = keys["id"], keys["chart_no"]
        refused(practice.api.get(f"/v2/charts/{number}"), "not_found")
        refused(practice.api.put(f"/v2/charts/{number}", data=JANE), "not_found")
        refused(practice.api.post(f"/v2/patients/{chart_no}/remove"), "not_found")
        assert practice.get(f"/v2/charts/{chart_no}")["id"] == number
        assert practice.api.post(f"/v2/patients/{number}/remove").json() == {"success": True}

    def test_a_patients_update_empties_what_is_not_sent(self, practice: Practice) -> None:
        """PUT puts the body in the record's place: columns that are left out are lost, the front desk's too."""
        keys = practice.patient(email="jane@example.org", remarks="calls back", sms_ok="1")
        path = f"/v2/charts/{keys['chart_no']}"
        assert practice.api.put(path, data=JANE | {"middle_name": "Q."}).json() == {"success": True}
        record = practice.get(path)
        told = [record[name] for name in ("middle_name", "email", "remarks", "sms_ok", "active", "id")]
        assert told == ["Q.", "", "", "0", "1", keys["id"]]
        assert refused(practice.api.put(path, data={"last_name": "Roe"}), "invalid")["field"] == "gender"
        practice.api.put(path, data=record | {"phones": "", "address": ""})
        assert practice.get(path) == record

    def test_a_providers_update_leaves_what_is_not_sent(self, practice: Practice) -> None:
        """POST to a provider changes what comes; "" clears, but not what is required."""
        keys = practice.post("/v2/providers", MEIER | {"specialty": "GP"})
        path = f"/v2/providers/{keys['code']}"
        practice.api.post(path, data={"first_name": "Eve"})
        assert practice.get(path)["specialty"] == "GP"
        practice.api.post(path, data={"specialty": ""})
        assert practice.get(path)["specialty"] == ""
        assert refused(practice.api.post(path, data={"first_name": ""}), "invalid")["field"] == "first_name"

    @pytest.mark.parametrize("kind", ["provider", "patient"])
    def test_removed_again_is_a_400(self, practice: Practice, kind: str) -> None:
        """A removed one is read, found by no list, takes no update, can be restored, and is not removed twice."""
        keys = practice.post(f"/v2/{kind}s", JANE | MEIER)
        number = keys["id"]
        path = f"/v2/charts/{keys['chart_no']}" if kind == "patient" else f"/v2/providers/{keys['code']}"
        change = "PUT" if kind == "patient" else "POST"
        assert practice.api.post(f"/v2/{kind}s/{number}/remove").status_code == 200
        refused(practice.api.post(f"/v2/{kind}s/{number}/remove"), "already_removed", 400)
        refused(practice.api.post(f"/v2/{kind}s/99/remove"), "not_found")
        assert practice.get(path)["active"] == "0"
        assert practice.found(f"/v2/{kind}s") == []
        refused(practice.api.request(change, path, data=JANE), "removed")
        assert [practice.api.post(f"/v2/{kind}s/{number}/restore").json() for _ in range(2)] == [{"success": True}] * 2
        assert practice.found(f"/v2/{kind}s") == [number]
        assert [line["operation"] for line in practice.lines("history")] == ["create", "delete", "undelete"]

    def test_a_second_npi_is_a_200_with_the_others_name(self, practice: Practice) -> None:
        """The same npi again is refused, on create and on update, in the other provider's name."""
        practice.post("/v2/providers", MEIER)
        other = practice.post("/v2/providers", MEIER | {"last_name": "Roe", "npi": ""})
        for path in ("/v2/providers", f"/v2/providers/{other['code']}"):
            said = refused(practice.api.post(path, data=MEIER | {"last_name": "Poe"}), "npi_taken")
            assert said["message"] == "1234567893 is Meier, Ada's"

    def test_lists_know_some_filters_and_ignore_the_rest(self, practice: Practice) -> None:
        """Known filters narrow; unknown and empty ones bring everybody."""
        practice.patient(last_name="Müller", external_id="p1")
        practice.patient(dob="1990-01-01", external_id="p2")
        everybody = ["310001", "310002"]
        assert practice.found("/v2/patients", last_name="MÜLLER") == ["310001"]
        assert practice.found("/v2/patients", dob="1990-01-01") == ["310002"]
        assert practice.found("/v2/patients", external_id="p1", last_name="doe") == []
        for query in ({"first_name": "Zoe"}, {"externalid": "p1"}, {"external_id": ""}, {"id": "310001"}):
            assert practice.found("/v2/patients", **query) == everybody

    def test_lists_are_paged_by_offset(self, practice: Practice) -> None:
        """20 at once, at most 100, in order of the id, with the count of all as a text."""
        numbers = [practice.patient()["id"] for _ in range(23)]
        assert practice.found("/v2/patients") == numbers[:20]
        assert practice.found("/v2/patients", offset=20) == numbers[20:]
        assert practice.found("/v2/patients", limit=3, offset=1) == numbers[1:4]
        assert practice.found("/v2/patients", limit=100_000) == numbers
        answer = practice.api.get("/v2/patients", params={"offset": "5", "limit": "1"}).json()
        assert (answer["count"], answer["offset"]) == ("23", "5")

    def test_duplicates_are_silently_made_and_shown_to_tests(self, practice: Practice) -> None:
        """The same patient twice makes two records; the control plane counts them."""
        for external_id in ("p1", "p1", "", ""):
            practice.patient(external_id=external_id)
        assert [line["copies"] for line in practice.lines("records")] == [2, 2, 1, 1]
        practice.api.post("/v2/patients/310001/remove")
        told = [(line["record"], line["status"], line["copies"]) for line in practice.lines("records?kind=patient")][:2]
        assert told == [("patient/310001", "inactive", 0), ("patient/310002", "active", 1)]


class TestAppointments:
    def test_an_appointment_is_cancelled_and_never_changed(self, practice: Practice) -> None:
        """There is no update of whatever method; a cancel wants a reason, and again is a 400."""
        patient, provider = practice.patient(), practice.post("/v2/providers", MEIER)
        keys = practice.booking(patient, provider, reason="Gout", reference="a1")
        path = f"/v2/appointments/{keys['booking']}"
        for method in ("PUT", "POST", "PATCH", "DELETE"):
            refused(practice.api.request(method, path, data={"duration": "900"}), "method", 405)
        cancel = f"/v2/appointments/{keys['id']}/cancel"
        for form in ({}, {"reason": " "}):
            assert refused(practice.api.post(cancel, data=form), "invalid")["field"] == "reason"
        assert practice.api.post(cancel, data={"reason": "moved"}).json() == {"success": True}
        refused(practice.api.post(cancel, data={"reason": "moved"}), "already_cancelled", 400)
        refused(practice.api.post("/v2/appointments/1/cancel", data={"reason": "moved"}), "not_found")
        assert practice.get(path) == {
            "patient_id": patient["id"],
            "provider_id": provider["id"],
            "starts": STARTS,
            "duration": "1800",
            "reason": "Gout",
            "reference": "a1",
            "status": "cancelled",
            "cancel_reason": "moved",
            **keys,
        }
        again = practice.booking(patient, provider, reference="a1")
        assert practice.found("/v2/appointments", reference="a1") == [keys["id"], again["id"]]
        assert practice.found("/v2/appointments", reference="a1", status="booked") == [again["id"]]
        lines = practice.lines("records?kind=appointment")
        assert [(line["status"], line["external_id"], line["copies"]) for line in lines] == [
            ("cancelled", "a1", 0),
            ("booked", "a1", 1),
        ]

    def test_anothers_slot_is_refused_in_the_others_name(self, practice: Practice) -> None:
        """A slot that another patient has is a 200 with that patient's name; cancelled, it is free."""
        provider, patient = practice.post("/v2/providers", MEIER), practice.patient()
        first = practice.booking(practice.patient(last_name="Roe", first_name="Rick"), provider)
        body = {"patient_id": patient["id"], "provider_id": provider["id"], "starts": STARTS, "duration": "900"}
        said = refused(practice.api.post("/v2/appointments", data=body), "slot_taken")
        assert said["message"] == f"{STARTS} is booked for Roe, Rick"
        practice.api.post(f"/v2/appointments/{first['id']}/cancel", data={"reason": "ill"})
        assert practice.post("/v2/appointments", body)["id"] == "9000002"

    def test_the_same_patient_can_book_a_slot_twice(self, practice: Practice) -> None:
        """Two equal bookings are silently made, and shown to tests."""
        patient, provider = practice.patient(), practice.post("/v2/providers", MEIER)
        for _ in range(2):
            practice.booking(patient, provider)
        assert [line["record"] for line in practice.lines("records?duplicates=1")] == [
            "appointment/9000001",
            "appointment/9000002",
        ]

    def test_removed_ones_are_not_booked(self, practice: Practice) -> None:
        """Neither a removed patient nor a removed provider gets an appointment."""
        patient, provider = practice.patient(), practice.post("/v2/providers", MEIER)
        body = {"patient_id": patient["id"], "provider_id": provider["id"], "starts": STARTS, "duration": "900"}
        for kind, keys in (("patient", patient), ("provider", provider)):
            practice.api.post(f"/v2/{kind}s/{keys['id']}/remove")
            assert refused(practice.api.post("/v2/appointments", data=body), "removed")["field"] == f"{kind}_id"
            practice.api.post(f"/v2/{kind}s/{keys['id']}/restore")
        practice.post("/v2/appointments", body)


@pytest.mark.parametrize(
    ("sheet", "fields", "change", "query"),
    [
        ("diagnoses", GOUT, {"resolved_on": "2020-02-01"}, {"icd10": "M10.9"}),
        ("allergies", FISH, {"severity": "severe"}, {"substance": "Fish"}),
    ],
    ids=["diagnoses", "allergies"],
)
class TestChart:
    def test_an_entry_lives_in_a_chart(
        self, practice: Practice, sheet: str, fields: dict[str, str], change: dict[str, str], query: dict[str, str]
    ) -> None:
        """Made and listed by chart number, changed by entry, removed by id; again is a 400."""
        patient = practice.patient()
        path = f"/v2/charts/{patient['chart_no']}/{sheet}"
        keys = practice.post(path, fields)
        entry = practice.get(f"/v2/{sheet}/{keys['entry']}")
        assert entry.items() >= (fields | keys).items()
        assert (entry["patient_id"], entry["chart_no"]) == (patient["id"], patient["chart_no"])
        assert practice.api.post(f"/v2/{sheet}/{keys['entry']}", data=change).json() == {"success": True}
        assert practice.get(f"/v2/{sheet}/{keys['entry']}") == entry | change
        assert practice.api.post(f"/v2/{sheet}/{keys['id']}/remove").json() == {"success": True}
        refused(practice.api.post(f"/v2/{sheet}/{keys['id']}/remove"), "already_removed", 400)
        refused(practice.api.get(f"/v2/{sheet}/{keys['entry']}"), "not_found")
        refused(practice.api.post(f"/v2/{sheet}/{keys['entry']}", data=change), "not_found")

    def test_a_list_is_one_patients(
        self, practice: Practice, sheet: str, fields: dict[str, str], change: dict[str, str], query: dict[str, str]
    ) -> None:
        """The known filter narrows, another does not, and another chart's entries are never in it."""
        mine, other = (f"/v2/charts/{practice.patient()['chart_no']}/{sheet}" for _ in range(2))
        first, second = practice.post(mine, fields)["id"], practice.post(mine, fields | change)["id"]
        practice.post(other, fields)
        assert practice.found(mine) == practice.found(mine, **query) == practice.found(mine, chart_no="x")
        assert practice.found(mine) == [first, second]
        assert practice.found(mine, **dict.fromkeys(query, "none of these")) == []
        assert [line["copies"] for line in practice.lines("records")][:3] == [2, 2, 1]

    def test_a_removed_patients_chart_takes_nothing(
        self, practice: Practice, sheet: str, fields: dict[str, str], change: dict[str, str], query: dict[str, str]
    ) -> None:
        """A new entry for a removed patient is refused, and so is one for nobody."""
        patient = practice.patient()
        practice.api.post(f"/v2/patients/{patient['id']}/remove")
        refused(practice.api.post(f"/v2/charts/{patient['chart_no']}/{sheet}", data=fields), "removed")
        refused(practice.api.post(f"/v2/charts/{patient['id']}/{sheet}", data=fields), "not_found")

    def test_a_wrong_value_names_the_patient(
        self, practice: Practice, sheet: str, fields: dict[str, str], change: dict[str, str], query: dict[str, str]
    ) -> None:
        """A day in another form is a 200 with the patient's name, on create and on change."""
        path = f"/v2/charts/{practice.patient()['chart_no']}/{sheet}"
        entry = practice.post(path, fields)["entry"]
        for where in (path, f"/v2/{sheet}/{entry}"):
            said = refused(practice.api.post(where, data=fields | {"noted_on": "2019-01"}), "invalid")
            assert said["message"].endswith("for Doe, Jane")


class TestWitness:
    """The control plane and the faults are the clinic's own; here is that they are there, and see forms."""

    def test_the_journal_tells_a_form(self, practice: Practice) -> None:
        """A body is told as an object of texts, under the template of its path and the record's id."""
        keys = practice.patient()
        practice.api.put(f"/v2/charts/{keys['chart_no']}?a=b", data={"gender": "x"}, headers={"x-trace-id": "t"})
        first, second = practice.lines("journal")
        assert (first["record"], first["body"], first["outcome"]) == ("patient/310001", JANE, "applied")
        assert (second["template"], second["body"]) == ("/v2/charts/{chart_no}", {"gender": "x"})
        assert (second["outcome"], second["status"], second["trace_id"]) == ("refused", 200, "t")

    def test_an_edit_a_snapshot_and_a_restore(self, practice: Practice) -> None:
        """Somebody's edit is seen; after a restore the number comes again, and the key of letters does not."""
        kept = practice.patient()
        practice.tell("snapshot")
        practice.tell("edit", {"record": "patient/310001", "fields": {"email": "a@b"}})
        assert practice.get(f"/v2/charts/{kept['chart_no']}")["email"] == "a@b"
        lost = practice.patient()
        practice.tell("restore")
        assert practice.get(f"/v2/charts/{kept['chart_no']}")["email"] == ""
        after = practice.patient()
        assert after["id"] == lost["id"]
        assert after["chart_no"] != lost["chart_no"]

    @pytest.mark.parametrize(
        ("rule", "saved"),
        [
            ({"kind": "status", "status": 500}, 0),
            ({"kind": "status", "status": 500, "saves": True}, 1),
            ({"kind": "reset_before"}, 0),
            ({"kind": "reset_after"}, 1),
            ({"kind": "refuse"}, 0),
            ({"kind": "hang"}, 0),
            ({"kind": "hang", "saves": True}, 1),
            ({"kind": "late", "seconds": 0.01}, 1),
            ({"kind": "drip", "seconds": 0.001}, 1),
            ({"kind": "delay", "seconds": 0.01}, 1),
        ],
        ids=str,
    )
    def test_faults_meet_forms(self, practice: Practice, rule: dict[str, Any], saved: int) -> None:
        """Each fault that the clinic knows meets a create, found by a field of its form, and saves or not."""
        practice.fault(**rule, match={"method": "POST", "fields": {"external_id": "p1"}})
        with contextlib.suppress(httpx.TransportError):
            practice.api.post("/v2/patients", data=JANE | {"external_id": "p1"}, timeout=1)
        fate = ["applied" if saved else "dropped"]
        until(lambda: [line["outcome"] for line in practice.lines("journal")] == fate)
        assert len(practice.lines("records")) == saved
        practice.patient(external_id="p1")

    def test_what_was_answered_survives_a_kill(self, own: Practice) -> None:
        """After SIGKILL and a start on the same port, the answered records are there."""
        keys = [own.patient() for _ in range(5)]
        token = own.api.headers["Authorization"]
        own.stop(signal.SIGKILL)
        own.start(own.port)
        own.api.headers["Authorization"] = token
        assert [line["data"]["chart_no"] for line in own.lines("records")] == [pair["chart_no"] for pair in keys]
        assert own.patient()["id"] == "310006"

    def test_sigterm_ends_it_at_once(self, own: Practice) -> None:
        """A hanging caller does not keep it: exit code 0, and no answer goes out."""
        own.fault(kind="hang")
        with own.raw("/v2/ping", Authorization=own.api.headers["Authorization"]) as connection:
            until(lambda: any(line["template"] == "/v2/ping" for line in own.lines("journal")))
            started = time.monotonic()
            assert own.stop(signal.SIGTERM) == 0
            assert time.monotonic() - started < DEADLINE_S
            assert connection.recv(100) == b""
