"""What the sandbox clinic keeps of visits, appointments, prescriptions and vitals, as its docstring promises."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.contract.sandbox import Clinic, error

VISIT = {"started": "03/10/2024 12:05 AM", "kind": "OFFICE"}
PILLS = {"drug": "Allopurinol 100 mg", "rxnorm": "197319", "written_on": "01/31/2019", "quantity": 1.5, "refills": 3}
SYSTOLIC = {"code": "BP_SYS", "value": 128, "unit": "mmHg", "taken_at": "11/03/2024 01:30 AM"}


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


class TestVisits:
    def test_a_visit_is_never_deleted(self, clinic: Clinic) -> None:
        """Create, read, close, change; a delete is a 405 and the visit is still there."""
        path = clinic.chart("visits")
        visit = clinic.post(path, VISIT | {"external_id": "e1"})
        empty = dict.fromkeys(("ended", "reason", "provider_id"))
        assert visit == VISIT | empty | {"id": 1, "patient_number": 4701, "status": "open", "external_id": "e1"}
        closed = {"ended": "03/10/2024 03:00 AM", "status": "closed"}
        assert clinic.api.put(f"{path}/1", json=closed).json()["data"] == visit | closed
        assert clinic.api.put(f"{path}/1", json={"reason": "Gout"}).status_code == 200
        error(clinic.api.delete(f"{path}/1"), 405, "method")
        assert clinic.api.get(f"{path}/1").json()["data"] == visit | closed | {"reason": "Gout"}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("started", value) for value in ("03/10/2024", "03/10/2024 00:05 AM", "03/10/2024 13:05 PM", None)),
            *(("started", value) for value in ("03/10/2024 1:05 AM", "2024-03-10T01:05:00Z", "02/30/2024 01:05 AM")),
            *(("kind", value) for value in ("office", None)),
            ("ended", "03/10/2024 11:60 PM"),
            ("provider_id", 99),
            ("status", "finished"),
        ],
    )
    def test_a_time_is_the_clinics_wall_clock(self, clinic: Clinic, name: str, value: object) -> None:
        """Twelve hours, two digits each, no zone and no seconds; anything else is refused in the patient's name."""
        path = clinic.chart("visits")
        said = error(clinic.api.post(path, json=VISIT | {name: value}), 422, "invalid")
        assert list(said["fields"]) == [name]
        assert said["message"].endswith("for Doe, Jane")

    def test_a_list_is_paged_filtered_and_one_patients(self, clinic: Clinic) -> None:
        """`external_id` and `status` narrow, what is unknown does not, and no other patient's visit is in it."""
        mine, other = clinic.chart("visits"), clinic.chart("visits")
        for number in range(30):
            clinic.post(mine, VISIT | {"external_id": f"e{number}", "status": "closed" if number % 2 else "open"})
        clinic.post(other, VISIT | {"external_id": "e1"})

        def ids(**query: object) -> list[int]:
            answer = clinic.api.get(mine, params={name: str(value) for name, value in query.items()}).json()
            return [visit["id"] for visit in answer["data"]]

        assert ids() == ids(encounter="e1") == list(range(1, 26))
        assert ids(page=2) == list(range(26, 31))
        assert ids(external_id="e1") == [2]
        assert ids(status="closed", per_page=3) == [2, 4, 6]
        assert clinic.api.get(other).json()["total"] == 1


class TestAppointments:
    def test_an_appointment_is_cancelled_by_its_status(self, clinic: Clinic) -> None:
        """A delete is a 405; a cancelled appointment is no copy, is found all the same, and can be booked again."""
        patient = clinic.patient()
        entry = clinic.booking(patient, external_id="a1")
        path = f"/api/appointments/{entry['id']}"
        error(clinic.api.delete(path), 405, "method")
        assert clinic.api.put(path, json={"status": "cancelled"}).json()["data"] == entry | {"status": "cancelled"}
        clinic.booking(patient, external_id="a1", minutes=45)
        told = {line["record"]: line["copies"] for line in clinic.lines("records?kind=appointment")}
        assert told == {"appointment/1": 0, "appointment/2": 1}
        for query, ids in (("external_id=a1", [1, 2]), ("external_id=a1&status=booked", [2]), ("external_id=b", [])):
            assert [hit["id"] for hit in clinic.api.get(f"/api/appointments?{query}").json()["data"]] == ids
        clinic.api.put(path, json={"status": "booked"})
        assert [line["copies"] for line in clinic.lines("records?kind=appointment")] == [2, 2]

    def test_the_book_is_one_for_all_patients(self, clinic: Clinic) -> None:
        """The patient is named in the body and in the filter, and an update can move the appointment to another."""
        first, second = clinic.patient(), clinic.patient()
        clinic.booking(first)
        clinic.booking(second, starts="11/03/2024 02:00 PM")

        def of(patient: Mapping[str, object]) -> list[int]:
            hits = clinic.api.get("/api/appointments", params={"patient_number": str(patient["number"])}).json()["data"]
            return [hit["id"] for hit in hits]

        assert (of(first), of(second)) == ([1], [2])
        clinic.api.put("/api/appointments/1", json={"patient_number": second["number"]})
        assert (of(first), of(second)) == ([], [1, 2])
        assert clinic.api.get("/api/appointments?patient_number=nobody").json() == {"data": [], "total": 0}

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("patient_number", value) for value in (1, "4701", None)),
            *(("minutes", value) for value in (0, 1441, 20.5, "20", True)),
            *(("starts", value) for value in ("11/03/2024", "11/03/2024 13:30")),
            ("status", "fulfilled"),
        ],
    )
    def test_what_the_book_does_not_want_is_refused(self, clinic: Clinic, name: str, value: object) -> None:
        """Nobody's number, a broken minute and a wrong word are a 422 that names the field."""
        clinic.patient()
        slot = {"patient_number": 4701, "starts": "11/03/2024 01:30 PM", "minutes": 20} | {name: value}
        assert list(error(clinic.api.post("/api/appointments", json=slot), 422, "invalid")["fields"]) == [name]
        assert clinic.lines("records?kind=appointment") == []

    def test_an_inactive_patient_is_not_booked_but_can_be_cancelled(self, clinic: Clinic) -> None:
        """A booking for an inactive patient is a 409, the end of one is not."""
        patient = clinic.patient()
        entry = clinic.booking(patient)
        clinic.api.delete(f"/api/patients/{patient['uuid']}")
        body = {name: entry[name] for name in ("patient_number", "starts", "minutes")}
        error(clinic.api.post("/api/appointments", json=body), 409, "inactive")
        error(clinic.api.put("/api/appointments/1", json={"minutes": 30}), 409, "inactive")
        assert clinic.api.put("/api/appointments/1", json={"status": "cancelled"}).status_code == 200


class TestPrescriptions:
    def test_what_was_signed_is_voided_and_written_anew(self, clinic: Clinic) -> None:
        """There is no update; a void one is read, is listed, is no copy, and cannot be voided again."""
        path = clinic.chart("prescriptions")
        pills = clinic.post(path, PILLS)
        own = {"id": 1, "patient_number": 4701, "sig": None, "provider_id": None, "status": "active"}
        assert pills == PILLS | own
        error(clinic.api.put(f"{path}/1", json={"refills": 0}), 405, "method")
        void = clinic.api.delete(f"{path}/1")
        assert (void.status_code, void.json()["data"]) == (200, pills | {"status": "void"})
        error(clinic.api.delete(f"{path}/1"), 410, "void")
        error(clinic.api.delete(f"{path}/2"), 404, "not_found")
        assert clinic.post(path, PILLS | {"refills": 0})["id"] == 2
        assert [line["copies"] for line in clinic.lines("records?kind=prescription")] == [0, 1]
        assert clinic.api.get(path).json()["total"] == 2
        assert [hit["id"] for hit in clinic.api.get(f"{path}?status=active").json()["data"]] == [2]

    @pytest.mark.parametrize(
        ("first", "second", "status"),
        [
            ({}, {}, 409),
            ({}, {"drug": "Allopurinol", "written_on": "02/01/2019", "refills": 0}, 409),
            ({"rxnorm": None}, {"rxnorm": None}, 409),
            ({}, {"rxnorm": "197320"}, 201),
            ({}, {"status": "ended"}, 201),
            ({"status": "ended"}, {}, 201),
        ],
        ids=str,
    )
    def test_one_active_prescription_of_each_drug(
        self, clinic: Clinic, first: dict[str, Any], second: dict[str, Any], status: int
    ) -> None:
        """A second active one of the same drug is refused with the patient's name; another patient may have it."""
        path, other = clinic.chart("prescriptions"), clinic.chart("prescriptions")
        clinic.post(path, PILLS | first)
        answer = clinic.api.post(path, json=PILLS | second)
        assert answer.status_code == status
        if status == 409:
            assert error(answer, 409, "duplicate")["message"] == "Doe, Jane has Allopurinol 100 mg: prescription 1"
        clinic.post(other, PILLS | second)

    @pytest.mark.parametrize(
        ("name", "value"), [("quantity", "30"), ("quantity", 1e6), ("refills", 1.5), ("rxnorm", 197319), ("drug", None)]
    )
    def test_numbers_are_numbers(self, clinic: Clinic, name: str, value: object) -> None:
        """A number as text, or one out of bounds, is a 422."""
        path = clinic.chart("prescriptions")
        assert list(error(clinic.api.post(path, json=PILLS | {name: value}), 422, "invalid")["fields"]) == [name]


class TestVitals:
    def test_a_blood_pressure_is_two_rows(self, clinic: Clinic) -> None:
        """Each measurement is a row of its own with value and unit; a deleted row is gone, and again is a 404."""
        path = clinic.chart("vitals")
        upper = clinic.post(path, SYSTOLIC)
        lower = clinic.post(path, SYSTOLIC | {"code": "BP_DIA", "value": 79.5})
        assert upper == SYSTOLIC | {"id": 1, "patient_number": 4701}
        assert clinic.api.get(f"{path}?taken_at=11/03/2024 01:30 AM").json() == {"data": [upper, lower], "total": 2}
        assert clinic.api.get(f"{path}?code=BP_DIA").json()["data"] == [lower]
        assert clinic.api.put(f"{path}/2", json={"value": 80}).json()["data"]["value"] == 80
        assert clinic.api.delete(f"{path}/2").status_code == 204
        error(clinic.api.delete(f"{path}/2"), 404, "not_found")
        error(clinic.api.get(f"{path}/2"), 404, "not_found")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("value", value) for value in ("128", 1001, -1, True, None)),
            *(("unit", value) for value in ("mm[Hg]", None)),
            *(("taken_at", value) for value in ("11/03/2024", "11/03/2024 01:30", None)),
            ("code", "8480-6"),
        ],
    )
    def test_a_row_has_a_form_too(self, clinic: Clinic, name: str, value: object) -> None:
        """A number as text, a foreign unit, a time without AM and a foreign code are refused."""
        path = clinic.chart("vitals")
        assert list(error(clinic.api.post(path, json=SYSTOLIC | {name: value}), 422, "invalid")["fields"]) == [name]

    def test_a_number_beyond_all_bounds_is_refused(self, clinic: Clinic) -> None:
        """1e999 is no number that could be kept."""
        content = json.dumps(SYSTOLIC).replace("128", "1e999")
        error(clinic.api.post(clinic.chart("vitals"), content=content), 422, "invalid")

    def test_equal_rows_are_silently_made_and_shown_to_tests(self, clinic: Clinic) -> None:
        """The same measurement twice is two rows; another time or another patient's is no copy."""
        mine, other = clinic.chart("vitals"), clinic.chart("vitals")
        for path in (mine, mine, other):
            clinic.post(path, SYSTOLIC)
        clinic.post(mine, SYSTOLIC | {"taken_at": "11/03/2024 01:31 AM"})
        assert [line["copies"] for line in clinic.lines("records?kind=vital")] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("sheet", "fields"),
    [("visits", VISIT), ("prescriptions", PILLS), ("vitals", SYSTOLIC)],
    ids=str,
)
class TestEverySheet:
    def test_another_patients_entry_is_unknown(self, clinic: Clinic, sheet: str, fields: dict[str, Any]) -> None:
        """The id of an entry opens nothing under another patient's uuid."""
        mine, other = clinic.chart(sheet), clinic.chart(sheet)
        clinic.post(mine, fields)
        for method in ("GET", "PUT", "DELETE"):
            assert clinic.api.request(method, f"{other}/1", json={}).status_code in (404, 405)
        error(clinic.api.get(f"{other}/1"), 404, "not_found")
        assert {line["operation"] for line in clinic.lines("history")} == {"create"}

    def test_an_inactive_patients_chart_takes_nothing(self, clinic: Clinic, sheet: str, fields: dict[str, Any]) -> None:
        """A new entry for an inactive patient is a 409, and what is there can still be read."""
        path = clinic.chart(sheet)
        entry = clinic.post(path, fields)
        clinic.api.delete(path.rpartition("/")[0])
        error(clinic.api.post(path, json=fields), 409, "inactive")
        assert clinic.api.get(f"{path}/1").json()["data"] == entry
