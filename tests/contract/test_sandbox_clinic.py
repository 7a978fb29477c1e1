"""The sandbox clinic keeps the opinions and faults that its docstring promises, as a real process over real sockets."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.sandbox import DEADLINE_S, JANE, KEY, Clinic, error, until

MEIER = {"last_name": "Meier", "first_name": "Ada", "npi": "1234567893"}
GOUT = {"title": "Gout", "icd10": "ICD10:M10.9", "onset": "01/31/2019"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    clinic = Clinic(tmp_path_factory.mktemp("clinic"))
    clinic.start()
    yield clinic
    clinic.end()


@pytest.fixture
def clinic(process: Clinic) -> Clinic:
    """The shared process, emptied."""
    assert process.tell("reset").status_code == 204
    return process


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Clinic]:
    """A process that the test may kill."""
    clinic = Clinic(tmp_path)
    clinic.start()
    yield clinic
    clinic.end()


def write_until_cut(url: str, answered: list[dict[str, Any]]) -> None:
    with httpx.Client(base_url=url, headers=KEY, trust_env=False) as api, contextlib.suppress(httpx.TransportError):
        while True:
            answered.append(api.post("/api/patients", json=JANE).json()["data"])


class TestApi:
    def test_every_request_wants_the_key(self, clinic: Clinic) -> None:
        """A missing or wrong key is a 401 with nothing but its code."""
        for headers in ({}, {"X-Api-Key": "wrong"}):
            answer = httpx.get(f"{clinic.url}/api/ping", headers=headers, trust_env=False)
            assert (answer.status_code, answer.json()) == (401, {"error": {"code": "unauthorized"}})

    def test_the_probe_answers(self, clinic: Clinic) -> None:
        """With the key, the probe says pong."""
        answer = clinic.api.get("/api/ping")
        assert (answer.status_code, answer.json()) == (200, {"data": "pong"})

    def test_unknown_paths_and_methods_are_errors_of_the_api(self, clinic: Clinic) -> None:
        """A path or method that does not exist is answered in the API's own form."""
        error(clinic.api.get("/api/visits"), 404, "not_found")
        error(clinic.api.get("/api/patients/"), 404, "not_found")
        error(clinic.api.patch("/api/patients"), 405, "method")

    @pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'{"last_name": NaN}', b"[" * 100_000], ids=range(5))
    def test_a_body_that_is_no_object_is_echoed(self, clinic: Clinic, body: bytes) -> None:
        """What cannot be read is a 400 whose message holds the beginning of the body."""
        said = error(clinic.api.post("/api/patients", content=body), 400, "malformed")
        assert said["message"] == f"cannot read: {body[:200].decode()}"


class TestFields:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("last_name", value) for value in ("", "x" * 61, 5, "a\x00b", "\ud800")),
            *(("birth_date", value) for value in ("1980-03-04", "02/30/1980", "3/4/1980", "03/04/80")),
            *(("sex", value) for value in ("female", "f", "", "FM")),
            *(("phone_home", value) for value in ("5551234567", "", "+1-555-123-4567")),
            *(("email", value) for value in ("nobody", "a b@c")),
            *(("state", value) for value in ("XX", "Ohio", "oh")),
            *(("zip", value) for value in ("1234", "12345-67", 12345)),
            *(("marital", value) for value in ("WID", "M", "")),
            *(("provider_id", value) for value in (99, "1", True, 10**30, 1.0)),
            ("deceased_on", "2020"),
            ("external_id", "x" * 37),
            ("nickname", "Jay"),
        ],
    )
    def test_a_wrong_value_is_named_with_the_patient(self, clinic: Clinic, name: str, value: object) -> None:
        """A 422 names the field, echoes the value and says whom it is about; nothing is saved."""
        content = json.dumps(JANE | {"last_name": "Doe", name: value})
        said = error(clinic.api.post("/api/patients", content=content), 422, "invalid")
        assert list(said["fields"]) == [name]
        assert said["fields"][name].startswith(repr(value))
        assert said["fields"][name].endswith("Jane")
        assert said["message"] == f"{name}: {said['fields'][name]}"
        assert clinic.lines("records") == []

    def test_the_words_of_a_refused_code_list_the_codes(self, clinic: Clinic) -> None:
        """The refusal of a site code is worded as the docstring shows it."""
        said = error(clinic.api.post("/api/patients", json=JANE | {"marital": "WID"}), 422, "invalid")
        assert said["fields"] == {"marital": "'WID' is not one of SNG, MAR, DIV, WDW, SEP, UNK for Doe, Jane"}

    def test_a_full_record_comes_back_as_sent(self, clinic: Clinic) -> None:
        """All fields at their best are kept, and answered with the clinic's own."""
        provider = clinic.post("/api/providers", MEIER | {"title": "MD", "external_ref": "r" * 36})
        sent = JANE | {
            "middle_name": "Q.",
            "phone_home": "555-123-4567",
            "phone_mobile": "555-123-4568",
            "email": "jane@example.org",
            "street": "1 Élm Street",
            "city": "Springfield",
            "state": "OH",
            "zip": "45501-1234",
            "marital": "WDW",
            "provider_id": provider["id"],
            "deceased_on": "02/29/2024",
            "external_id": "x" * 36,
        }
        patient = clinic.patient(**sent)
        assert patient == sent | {"number": 4701, "uuid": patient["uuid"], "status": "active"}
        assert clinic.api.get(f"/api/patients/{patient['uuid']}").json() == {"data": patient}

    @pytest.mark.parametrize("name", ["last_name", "sex"])
    def test_required_fields_are_required(self, clinic: Clinic, name: str) -> None:
        """A required field may be neither missing on create nor null, then or later."""
        without = {key: value for key, value in JANE.items() if key != name}
        patient = clinic.patient()
        for answer in (
            clinic.api.post("/api/patients", json=without),
            clinic.api.post("/api/patients", json=JANE | {name: None}),
            clinic.api.put(f"/api/patients/{patient['uuid']}", json={name: None}),
        ):
            assert list(error(answer, 422, "invalid")["fields"]) == [name]

    @pytest.mark.parametrize(
        ("name", "value"),
        [("icd10", "E11.9"), ("icd10", "ICD10:11"), ("onset", "2019-01-31"), ("status", "resolved"), ("title", None)],
    )
    def test_problems_have_a_form_too(self, clinic: Clinic, name: str, value: object) -> None:
        """A wrong value of a problem is refused in the patient's name."""
        uuid = clinic.patient()["uuid"]
        said = error(clinic.api.post(f"/api/patients/{uuid}/problems", json=GOUT | {name: value}), 422, "invalid")
        assert list(said["fields"]) == [name]
        assert said["message"].endswith("for Doe, Jane")

    def test_put_changes_what_is_sent_and_leaves_the_rest(self, clinic: Clinic) -> None:
        """An update of one field keeps the others; null clears."""
        patient = clinic.patient(city="Springfield", zip="45501")
        changed = clinic.api.put(f"/api/patients/{patient['uuid']}", json={"city": "Dayton", "zip": None})
        assert changed.json()["data"] == patient | {"city": "Dayton", "zip": None}

    def test_email_is_cleared_by_an_empty_text_only(self, clinic: Clinic) -> None:
        """Null leaves an e-mail address as it is, an empty text clears it."""
        path = f"/api/patients/{clinic.patient(email='jane@example.org')['uuid']}"
        assert clinic.api.put(path, json={"email": None}).json()["data"]["email"] == "jane@example.org"
        assert clinic.api.put(path, json={"email": ""}).json()["data"]["email"] is None

    def test_the_clinics_own_fields_are_ignored_in_a_body(self, clinic: Clinic) -> None:
        """A record that is sent back whole changes neither keys nor status."""
        patient = clinic.patient()
        body = patient | {"number": 1, "uuid": "mine", "status": "inactive"}
        assert clinic.api.put(f"/api/patients/{patient['uuid']}", json=body).json()["data"] == patient


class TestProviders:
    def test_a_provider_lives_and_becomes_inactive(self, clinic: Clinic) -> None:
        """Create, read, update, delete and delete again, as the table says."""
        provider = clinic.post("/api/providers", MEIER)
        path = f"/api/providers/{provider['id']}"
        assert provider["id"] == 1
        assert clinic.api.put(path, json={"title": "MD"}).json()["data"] == provider | {"title": "MD"}
        assert [clinic.api.delete(path).status_code for _ in range(2)] == [204, 204]
        assert clinic.api.get(path).json()["data"]["status"] == "inactive"
        error(clinic.api.put(path, json={"title": "DO"}), 409, "inactive")
        error(clinic.api.delete("/api/providers/7"), 404, "not_found")
        error(clinic.api.get("/api/providers/1x"), 404, "not_found")
        assert [line["operation"] for line in clinic.lines("history")] == ["create", "update", "delete"]

    def test_a_second_npi_is_refused_with_the_others_name(self, clinic: Clinic) -> None:
        """The same npi again is a 409 that names the other provider, on create and on update."""
        clinic.post("/api/providers", MEIER)
        other = clinic.post("/api/providers", MEIER | {"last_name": "Roe", "npi": "1111111111"})
        for answer in (
            clinic.api.post("/api/providers", json=MEIER | {"last_name": "Poe"}),
            clinic.api.put(f"/api/providers/{other['id']}", json={"npi": MEIER["npi"]}),
        ):
            assert error(answer, 409, "duplicate")["message"] == "exists: Meier, Ada"

    def test_an_inactive_providers_npi_is_free(self, clinic: Clinic) -> None:
        """After a delete the npi can be given again and the lookup finds only the new one."""
        clinic.api.delete(f"/api/providers/{clinic.post('/api/providers', MEIER)['id']}")
        again = clinic.post("/api/providers", MEIER)
        found = clinic.api.get("/api/providers", params={"npi": MEIER["npi"]}).json()
        assert found == {"data": [again], "total": 1}


class TestPatients:
    def test_numbers_count_up_and_uuids_are_another_key(self, clinic: Clinic) -> None:
        """Two creates have numbers 4701 and 4702 and different uuids; the number opens no path."""
        first, second = clinic.patient(), clinic.patient()
        assert (first["number"], second["number"]) == (4701, 4702)
        assert first["uuid"] != second["uuid"]
        error(clinic.api.get("/api/patients/4701"), 404, "not_found")

    def test_a_delete_is_soft_and_a_second_one_a_404(self, clinic: Clinic) -> None:
        """A deleted patient is inactive, is read by uuid, found by no lookup and takes no update."""
        patient = clinic.patient(external_id="p1")
        path = f"/api/patients/{patient['uuid']}"
        deleted = clinic.api.delete(path)
        assert (deleted.status_code, deleted.json()["data"]) == (200, patient | {"status": "inactive"})
        error(clinic.api.delete(path), 404, "not_found")
        assert clinic.api.get(path).json()["data"]["status"] == "inactive"
        assert clinic.find(external_id="p1") == []
        error(clinic.api.put(path, json={"city": "Dayton"}), 409, "inactive")
        error(clinic.api.post(f"{path}/problems", json=GOUT), 409, "inactive")

    def test_an_inactive_patient_can_be_made_active_again(self, clinic: Clinic) -> None:
        """A reactivated patient takes updates under the same keys; again does nothing, and a stranger is a 404."""
        patient = clinic.patient(external_id="p1")
        path = f"/api/patients/{patient['uuid']}"
        clinic.api.delete(path)
        for _ in range(2):
            back = clinic.api.post(f"{path}/reactivate")
            assert (back.status_code, back.json()["data"]) == (200, patient)
        assert clinic.find(external_id="p1") == [4701]
        assert [line["operation"] for line in clinic.lines("history")] == ["create", "delete", "undelete"]
        error(clinic.api.post("/api/patients/nobody/reactivate"), 404, "not_found")

    def test_lookups_filter_by_three_fields(self, clinic: Clinic) -> None:
        """last_name without regard to case, birth_date and external_id narrow, alone and together."""
        clinic.patient(last_name="Müller", external_id="p1")
        clinic.patient(birth_date="01/01/1990", external_id="p2")
        clinic.patient(external_id="p3")
        assert clinic.find(last_name="MÜLLER") == [4701]
        assert clinic.find(birth_date="01/01/1990") == [4702]
        assert clinic.find(external_id="p3") == [4703]
        assert clinic.find(last_name="doe", birth_date="03/04/1980") == [4703]
        assert clinic.find(last_name="doe", external_id="p1") == []

    @pytest.mark.parametrize("query", [{"mrn": "p1"}, {"first_name": "Zoe"}, {"external_id": ""}, {}], ids=str)
    def test_unknown_and_empty_filters_bring_everything(self, clinic: Clinic, query: dict[str, str]) -> None:
        """What the lookup does not know it ignores: everybody comes back."""
        clinic.patient(external_id="p1")
        clinic.patient(external_id="p2")
        assert clinic.find(**query) == [4701, 4702]

    def test_lookups_are_paged(self, clinic: Clinic) -> None:
        """25 on a page, at most 50, in order, with the total of all."""
        numbers = [clinic.patient()["number"] for _ in range(60)]
        assert clinic.find() == numbers[:25]
        assert clinic.find(per_page=1000) == numbers[:50]
        assert clinic.find(per_page=50, page=2) == numbers[50:]
        assert clinic.find(per_page="x", page="-1") == numbers[:25]
        assert clinic.api.get("/api/patients").json()["total"] == 60

    def test_duplicates_are_silently_made_and_shown_to_tests(self, clinic: Clinic) -> None:
        """The same patient twice makes two records, whatever the idempotency key; the control plane counts them."""
        for _ in range(2):
            answer = clinic.api.post(
                "/api/patients", json=JANE | {"external_id": "p1"}, headers={"Idempotency-Key": "k"}
            )
            assert answer.status_code == 201
        clinic.patient()
        clinic.patient()
        assert [line["copies"] for line in clinic.lines("records")] == [2, 2, 1, 1]
        assert [line["record"] for line in clinic.lines("records?duplicates=1")] == ["patient/4701", "patient/4702"]


class TestProblems:
    def test_a_problem_lives_under_its_patient(self, clinic: Clinic) -> None:
        """Create, list, read, update and delete; the answer names the patient by number."""
        patient = clinic.patient()
        path = f"/api/patients/{patient['uuid']}/problems"
        problem = clinic.post(path, GOUT)
        assert problem == GOUT | {"id": 1, "patient_number": patient["number"], "ended": None, "status": "active"}
        assert clinic.api.get(path).json() == {"data": [problem], "total": 1}
        ended = {"ended": "02/01/2020", "status": "ended"}
        assert clinic.api.put(f"{path}/1", json=ended).json()["data"] == problem | ended
        assert clinic.api.get(f"{path}/1").json()["data"] == problem | ended
        assert clinic.api.delete(f"{path}/1").status_code == 204
        assert "Doe, Jane" in error(clinic.api.delete(f"{path}/1"), 400, "unknown_problem")["message"]
        error(clinic.api.get(f"{path}/1"), 404, "not_found")
        error(clinic.api.put(f"{path}/1", json=ended), 404, "not_found")
        assert clinic.post(path, GOUT)["id"] == 2

    def test_another_patients_problem_is_unknown(self, clinic: Clinic) -> None:
        """The id of a problem opens nothing under another patient's uuid."""
        mine, other = clinic.patient(), clinic.patient()
        clinic.post(f"/api/patients/{mine['uuid']}/problems", GOUT)
        path = f"/api/patients/{other['uuid']}/problems/1"
        error(clinic.api.get(path), 404, "not_found")
        error(clinic.api.put(path, json={"title": "Flu"}), 404, "not_found")
        error(clinic.api.delete(path), 400, "unknown_problem")
        error(clinic.api.delete("/api/patients/nobody/problems/1"), 404, "not_found")

    def test_the_list_is_whole(self, clinic: Clinic) -> None:
        """A problem list is not paged, and holds no other patient's."""
        mine, other = (f"/api/patients/{clinic.patient()['uuid']}/problems" for _ in range(2))
        for number in range(55):
            clinic.post(mine, GOUT | {"title": f"Gout {number}"})
        clinic.post(other, GOUT)
        assert len(clinic.api.get(mine).json()["data"]) == 55
        assert [line["copies"] for line in clinic.lines("records?kind=problem")] == [1] * 56


class TestWitness:
    def test_the_journal_tells_each_request(self, clinic: Clinic) -> None:
        """A line says what came, when, under which headers, and what became of it."""
        before = time.time()
        answer = clinic.api.post("/api/patients", json=JANE, headers={"Idempotency-Key": "k", "x-trace-id": "t"})
        clinic.api.put(f"/api/patients/{answer.json()['data']['uuid']}?a=b", json={"sex": "x"})
        clinic.api.get(f"/api/patients/{answer.json()['data']['uuid']}", headers={"traceparent": "00-1-2-00"})
        first, second, third = clinic.lines("journal")
        assert before <= first.pop("received_at") <= first.pop("applied_at") <= time.time()
        assert first == {
            "n": 1,
            "method": "POST",
            "template": "/api/patients",
            "path": "/api/patients",
            "query": "",
            "idempotency_key": "k",
            "trace_id": "t",
            "record": "patient/4701",
            "body": JANE,
            "outcome": "applied",
            "status": 201,
            "fault": None,
        }
        assert (second["template"], second["query"], second["body"]) == ("/api/patients/{uuid}", "a=b", {"sex": "x"})
        assert (second["outcome"], second["status"], second["applied_at"]) == ("refused", 422, None)
        assert (third["outcome"], third["status"], third["trace_id"]) == ("read", 200, "00-1-2-00")
        assert [line["n"] for line in clinic.lines("journal?since=2")] == [3]

    def test_history_is_the_order_of_writes(self, clinic: Clinic) -> None:
        """Each applied write has its line with the request that did it and the record afterwards."""
        patient = clinic.patient()
        clinic.api.get(f"/api/patients/{patient['uuid']}")
        for city in ("Dayton", "Dayton", "Akron"):
            clinic.api.put(f"/api/patients/{patient['uuid']}", json={"city": city})
        clinic.api.delete(f"/api/patients/{patient['uuid']}")
        lines = clinic.lines("history")
        assert [line["operation"] for line in lines] == ["create", "update", "update", "update", "delete"]
        assert [line["data"]["city"] for line in lines] == [None, "Dayton", "Dayton", "Akron", "Akron"]
        assert [line["journal"] for line in lines] == [1, 3, 4, 5, 6]
        assert clinic.lines("history?since=4")[0]["data"]["status"] == "inactive"

    def test_records_tell_what_is_there(self, clinic: Clinic) -> None:
        """All records come with name, kind, status and external id; inactive ones count as no copy."""
        provider = clinic.post("/api/providers", MEIER | {"external_ref": "r1"})
        patient = clinic.patient(external_id="p1")
        problem = clinic.post(f"/api/patients/{patient['uuid']}/problems", GOUT)
        clinic.api.delete("/api/providers/1")
        told = [(r["record"], r["kind"], r["status"], r["external_id"], r["copies"]) for r in clinic.lines("records")]
        assert told == [
            ("patient/4701", "patient", "active", "p1", 1),
            ("problem/1", "problem", "active", None, 1),
            ("provider/1", "provider", "inactive", "r1", 0),
        ]
        data = [record["data"] for record in clinic.lines("records")]
        assert data == [patient, problem, provider | {"status": "inactive"}]

    def test_an_edit_inside_the_clinic_leaves_no_request(self, clinic: Clinic) -> None:
        """Somebody's edit changes the record and the history, not the journal; a row can vanish altogether."""
        patient = clinic.patient()
        clinic.tell("edit", {"record": "patient/4701", "fields": {"city": "Akron"}})
        assert clinic.api.get(f"/api/patients/{patient['uuid']}").json()["data"] == patient | {"city": "Akron"}
        clinic.tell("edit", {"record": "patient/4701", "remove": True})
        error(clinic.api.get(f"/api/patients/{patient['uuid']}"), 404, "not_found")
        assert [line["operation"] for line in clinic.lines("history")] == ["create", "edit", "remove"]
        assert [line["method"] for line in clinic.lines("journal")] == ["POST", "GET", "GET"]
        assert clinic.tell("edit", {"record": "patient/4701"}).status_code == 404

    def test_keys_come_again_after_a_restore(self, clinic: Clinic) -> None:
        """A restore brings records and numbers back: the next patient gets a number that another one had."""
        kept = clinic.patient(external_id="kept")
        assert clinic.tell("snapshot").status_code == 204
        lost = clinic.patient(external_id="lost")
        clinic.api.put(f"/api/patients/{kept['uuid']}", json={"city": "Akron"})
        assert clinic.tell("restore").status_code == 204
        assert [line["data"] for line in clinic.lines("records")] == [kept]
        after = clinic.patient(external_id="after")
        assert after["number"] == lost["number"]
        assert after["uuid"] != lost["uuid"]
        assert clinic.tell("restore", {"name": "other"}).status_code == 404
        assert [line["operation"] for line in clinic.lines("history")] == [
            *("create", "create", "update", "restore", "create")
        ]


class TestFaults:
    @pytest.mark.parametrize(
        ("rule", "saved"),
        [
            ({"status": 500}, 0),
            ({"status": 500, "saves": True}, 1),
            ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, 0),
            ({"status": 503, "headers": {"Retry-After": "2"}}, 0),
            ({"status": 429, "headers": {"Retry-After": "1"}, "body": None}, 0),
            ({"status": 429}, 0),
            ({"status": 200, "body": {"success": False}}, 0),
            ({"status": 204, "saves": True}, 1),
        ],
        ids=str,
    )
    def test_any_status_before_or_after_saving(self, clinic: Clinic, rule: dict[str, Any], saved: int) -> None:
        """The caller gets the rule's status, headers and body; whether it was saved is the rule's word too."""
        clinic.fault(kind="status", **rule)
        answer = clinic.api.post("/api/patients", json=JANE)
        assert answer.status_code == rule["status"]
        assert answer.headers.get("Retry-After") == rule.get("headers", {}).get("Retry-After")
        if "body" in rule:
            told = json.dumps(rule["body"]) if isinstance(rule["body"], dict) else rule["body"] or ""
            assert answer.text == told
        assert len(clinic.lines("records")) == saved
        line = clinic.lines("journal")[0]
        assert (line["status"], line["fault"]) == (rule["status"], "status")
        assert line["outcome"] == ("applied" if saved else "dropped")

    def test_a_rule_meets_whom_it_matches_and_counts_down(self, clinic: Clinic) -> None:
        """Method, path, template and body fields must all agree; `skip` and `times` count only those that do."""
        clinic.fault(kind="status", times=2, skip=1, match={"method": "POST", "template": "/api/patients"})
        clinic.fault(kind="status", times=None, match={"path": "/api/prov", "fields": {"last_name": "Poe"}})
        patient = clinic.patient()
        clinic.post(f"/api/patients/{patient['uuid']}/problems", GOUT)
        codes = [clinic.api.post("/api/patients", json=JANE).status_code for _ in range(3)]
        assert codes == [500, 500, 201]
        clinic.post("/api/providers", MEIER)
        poe = [clinic.api.post("/api/providers", json=MEIER | {"last_name": "Poe"}).status_code for _ in range(2)]
        assert poe == [500, 500]
        left = [(rule["times"], rule["skip"]) for rule in clinic.api.get("/sandbox/faults").json()["data"]]
        assert left == [(0, 0), (None, 0)]
        assert clinic.api.delete("/sandbox/faults").status_code == 204
        assert clinic.api.get("/sandbox/faults").json() == {"data": []}

    @pytest.mark.parametrize(
        "rule",
        [
            {"kind": "fire"},
            {"kind": "hang", "seconds": 1},
            {"kind": "late", "answer": "yes"},
            {"kind": "delay", "seconds": "1"},
            {"kind": "status", "status": 100},
            {"kind": "hang", "times": -1},
            {"kind": "hang", "match": {"verb": "GET"}},
            {"kind": "hang", "match": {"fields": "x"}},
            "hang",
        ],
        ids=str,
    )
    def test_a_rule_that_means_nothing_is_refused(self, clinic: Clinic, rule: object) -> None:
        """A misspelt rule is a 422 and none of its list is taken, so that no test believes in it."""
        assert clinic.tell("faults", [{"kind": "hang"}, rule]).status_code == 422
        assert clinic.api.get("/sandbox/faults").json() == {"data": []}

    @pytest.mark.parametrize("early", [False, True])
    def test_delay_carries_out_after_or_before_the_wait(self, clinic: Clinic, early: bool) -> None:
        """The true answer comes late, and the write is done though the caller has left."""
        clinic.fault(kind="delay", seconds=0.3, saves=early)
        with pytest.raises(httpx.ReadTimeout):
            clinic.api.post("/api/patients", json=JANE, timeout=0.1)
        assert len(clinic.lines("records")) == early
        line = until(lambda: [line for line in clinic.lines("journal") if line["status"] == 201])[0]
        assert (line["applied_at"] - line["received_at"] > 0.3) is not early
        assert len(clinic.lines("records")) == 1

    def test_refuse_closes_without_reading(self, clinic: Clinic) -> None:
        """The connection ends after the head: the body was never waited for, nothing is answered."""
        clinic.fault(kind="refuse")
        with socket.create_connection(("127.0.0.1", clinic.port), timeout=DEADLINE_S) as connection:
            connection.sendall(b"POST /api/patients HTTP/1.1\r\nHost: clinic\r\nContent-Length: 99\r\n\r\n")
            assert connection.recv(100) == b""
        line = clinic.lines("journal")[0]
        assert (line["outcome"], line["status"], line["body"], line["fault"]) == ("dropped", None, None, "refuse")

    @pytest.mark.parametrize(("kind", "saved"), [("reset_before", 0), ("reset_after", 1)])
    def test_resets_are_real_ones(self, clinic: Clinic, kind: str, saved: int) -> None:
        """The caller gets RST, not an answer and not an orderly end, before or after saving."""
        clinic.fault(kind=kind)
        connection = clinic.raw("/api/patients", "POST", json.dumps(JANE).encode())
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(100)
        assert len(clinic.lines("records")) == saved
        line = clinic.lines("journal")[0]
        assert (line["outcome"], line["status"]) == ("applied" if saved else "dropped", None)

    @pytest.mark.parametrize("answer", ["reset", "nothing"])
    def test_late_saves_after_the_caller_has_gone(self, clinic: Clinic, answer: str) -> None:
        """Reset or left in silence, the caller's write comes into being later."""
        clinic.fault(kind="late", seconds=0.3, answer=answer)
        with pytest.raises(httpx.ReadError if answer == "reset" else httpx.ReadTimeout):
            clinic.api.post("/api/patients", json=JANE, timeout=0.1)
        assert clinic.lines("records") == []
        assert clinic.lines("journal")[0]["outcome"] == "pending"
        until(lambda: clinic.lines("records"))
        line = clinic.lines("journal")[0]
        assert (line["outcome"], line["status"]) == ("applied", None)
        assert line["applied_at"] - line["received_at"] > 0.3

    def test_a_reset_forgets_late_writes(self, clinic: Clinic) -> None:
        """What arrived before the clinic was emptied is not saved after it."""
        for seconds in (0.1, 0.2):
            clinic.fault(kind="late", seconds=seconds)
            with pytest.raises(httpx.ReadError):
                clinic.api.post("/api/patients", json=JANE)
            clinic.tell("reset")
        clinic.fault(kind="delay", seconds=0.4)
        clinic.api.get("/api/ping")
        assert clinic.lines("records") == []

    @pytest.mark.parametrize("part", ["head", "body"])
    def test_drip_comes_byte_by_byte(self, clinic: Clinic, part: str) -> None:
        """The true answer comes whole, one byte at a time: no gap is long, the whole is."""
        clinic.fault(kind="drip", part=part, seconds=0.005)
        started = time.monotonic()
        with clinic.raw("/api/ping") as connection:
            pieces = list(iter(lambda: connection.recv(1000), b""))
        slow = pieces if part == "head" else pieces[1:]
        assert len(slow) > 10
        assert max(map(len, slow)) < 5  # a busy machine may join two or three
        assert time.monotonic() - started > 0.005 * len(slow)
        head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == {"data": "pong"}

    @pytest.mark.parametrize("saves", [False, True])
    def test_hang_says_nothing_and_holds_up_nobody(self, clinic: Clinic, saves: bool) -> None:
        """One caller waits for ever, saved or not, while the next one is served."""
        clinic.fault(kind="hang", saves=saves)
        with clinic.raw("/api/patients", "POST", json.dumps(JANE).encode()) as connection:
            until(lambda: clinic.lines("journal"))
            assert clinic.api.get("/api/ping").status_code == 200
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(100)
        assert len(clinic.lines("records")) == saves

    def test_interim_answers_come_for_ever(self, clinic: Clinic) -> None:
        """100 and 102 alternate, and no final status comes."""
        clinic.fault(kind="1xx", seconds=0.01)
        seen = b""
        with clinic.raw("/api/ping") as connection:
            while seen.count(b"\r\n\r\n") < 20:
                seen += connection.recv(1000)
        statuses = [line.split()[1] for line in seen.split(b"\r\n\r\n")[:20]]
        assert statuses == [b"100", b"102"] * 10

    def test_the_control_plane_is_never_hit(self, clinic: Clinic) -> None:
        """A fault for everything leaves the way to remove it open."""
        clinic.fault(kind="hang", times=None)
        assert clinic.api.delete("/sandbox/faults").status_code == 204


class TestProcess:
    def test_what_was_answered_survives_a_kill(self, own: Clinic) -> None:
        """After SIGKILL under traffic and a start on the same port, each answered write is there, with its journal."""
        port, answered = own.port, list[dict[str, Any]]()
        writer = threading.Thread(target=write_until_cut, args=(own.url, answered))
        writer.start()
        until(lambda: len(answered) >= 20)
        own.stop(signal.SIGKILL)
        writer.join(DEADLINE_S)
        own.start(port)
        assert own.port == port
        records, journal = own.lines("records"), own.lines("journal")
        assert [line["data"] for line in records][: len(answered)] == answered
        assert {(line["outcome"], line["status"]) for line in journal[: len(answered)]} == {("applied", 201)}
        assert len(answered) <= len(records) == len(journal) <= len(answered) + 1
        assert own.patient()["number"] == 4701 + len(records)

    def test_the_port_is_free_at_once_after_a_kill(self, own: Clinic) -> None:
        """A caller that still holds its end of a connection does not keep the next process from the port."""
        port = own.port
        with own.raw("/api/ping") as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            own.stop(signal.SIGKILL)
            own.start(port)
            assert own.api.get("/api/ping").status_code == 200

    def test_what_was_saved_without_an_answer_survives_too(self, own: Clinic) -> None:
        """A write that a reset left unanswered is on disk before the connection is cut."""
        own.fault(kind="reset_after")
        with pytest.raises(httpx.ReadError):
            own.api.post("/api/patients", json=JANE)
        own.stop(signal.SIGKILL)
        own.start(own.port)
        assert [line["record"] for line in own.lines("records")] == ["patient/4701"]

    def test_a_kill_forgets_late_writes_and_rules(self, own: Clinic) -> None:
        """A late write that was not due stays pending for ever, and the new process has no faults."""
        own.fault(kind="late", seconds=0.5, times=None)
        with pytest.raises(httpx.ReadError):
            own.api.post("/api/patients", json=JANE)
        own.stop(signal.SIGKILL)
        own.start(own.port)
        assert own.api.get("/sandbox/faults").json() == {"data": []}
        assert [line["outcome"] for line in own.lines("journal")] == ["pending"]
        assert own.lines("records") == []

    def test_sigterm_ends_it_at_once(self, own: Clinic) -> None:
        """A hanging caller does not keep it: exit code 0 well within a second, and no answer goes out."""
        own.fault(kind="hang")
        with own.raw("/api/ping") as connection:
            until(lambda: own.lines("journal"))
            started = time.monotonic()
            assert own.stop(signal.SIGTERM) == 0
            assert time.monotonic() - started < 1
            assert connection.recv(100) == b""
