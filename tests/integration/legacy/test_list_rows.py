"""How records are listed, page by page, and when one that is listed only stands there as deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.errors import LegacyError, LegacyUnavailable, RoutesInvalid
from worker.legacy import Answer, Call, Collection, LegacyApi, Listed, Listing, Normal, Outcome, Unsupported

Start = Callable[[Behaviour], Vendor]
OURS = Unsupported("nothing here writes")


def declared(api: LegacyApi, **more: Any) -> Collection:
    return api.collection("patient", keys=("id",), create=OURS, update=OURS, delete=OURS, find=OURS, **more)


def listed(collection: Collection, place: str = "", **parent: str | int) -> Listed:
    try:
        return collection.listed({"patient": parent} if parent else {}, place=place, deadline_s=10)
    finally:
        collection.api.close()


def ids(page: Listed) -> list[object]:
    return [hit.keys["id"] for hit in page.hits]


def test_pages_that_are_counted_are_listed_one_by_one(vendor: Start) -> None:
    """Each page names the place of the next, so that whoever is killed goes on there; an empty one is the end."""
    pages = {"1": [{"id": 1}, {"id": 2}], "2": [{"id": 3}]}
    server = vendor(lambda asked: Says(200, pages.get(asked.query["page"], [])))
    patients = declared(server.api(), list=Listing("GET /patients?per_page=2", page="page"))
    first = listed(patients)
    second = listed(patients, first.following)
    third = listed(patients, second.following)
    assert [ids(page) for page in (first, second, third)] == [[1, 2], [3], []]
    assert (first.following, second.following, third.following) == ("2", "3", "")


def test_pages_that_begin_at_a_record_are_listed_one_by_one(vendor: Start) -> None:
    """The place is the number of records before the page."""
    pages = {"0": [{"id": 1}, {"id": 2}], "2": [{"id": 3}]}
    server = vendor(lambda asked: Says(200, pages.get(asked.query["offset"], [])))
    patients = declared(server.api(), list=Listing("GET /patients?limit=2", offset="offset"))
    first = listed(patients)
    second = listed(patients, first.following)
    third = listed(patients, second.following)
    assert [ids(page) for page in (first, second, third)] == [[1, 2], [3], []]
    assert (first.following, second.following, third.following) == ("2", "3", "")


def test_pages_that_name_the_next_are_listed_one_by_one(vendor: Start) -> None:
    """The place is the address that the answer names; one that leaves the API is no answer."""

    def answers(asked: Asked) -> Says:
        after = asked.query.get("after", "0")
        links = {"0": "/api/patients?after=2", "2": None}
        return Says(200, {"data": [{"id": int(after) + 1}], "next": links[after]})

    patients = declared(vendor(answers).api(items="data"), list=Listing("GET /patients", next="next"))
    first = listed(patients)
    second = listed(patients, first.following)
    assert (ids(first), ids(second), second.following) == ([1], [3], "")
    away = vendor(lambda asked: Says(200, {"data": [{"id": 1}], "next": "https://elsewhere.example.com/x"}))
    with pytest.raises(LegacyUnavailable, match="not below the API's own address"):
        listed(declared(away.api(items="data"), list=Listing("GET /patients", next="next")))


def test_a_list_under_a_parent(vendor: Start) -> None:
    """The parent's key is in the path, and `under` says of which type it is."""
    server = vendor(lambda asked: Says(200, [{"id": 7}]))
    problems = declared(
        server.api(), list=Listing("GET /patients/{patient.uuid}/problems", under={"patient": "Patient"})
    )
    assert ids(listed(problems, uuid="u1")) == [7]
    assert server.last.path == "/api/patients/u1/problems"


def test_a_record_without_its_key_is_no_answer(vendor: Start) -> None:
    """What cannot be named cannot be told to be nobody's."""
    server = vendor(lambda asked: Says(200, [{"name": "x"}]))
    with pytest.raises(LegacyUnavailable, match="without its key"):
        listed(declared(server.api(), list="GET /patients"))


def test_where_no_list_is_declared_none_is_asked_for(vendor: Start) -> None:
    """The collection says that it cannot."""
    patients = declared(vendor(lambda asked: Says(200, [])).api())
    assert not patients.can_list
    with pytest.raises(LegacyError, match="no list is declared"):
        listed(patients)


@pytest.mark.parametrize(
    ("request_line", "more", "words"),
    [
        ("POST /patients", {}, "only reads"),
        ("GET /patients", {"page": "page", "next": "next"}, "one of page"),
        ("GET /patients/{patient.uuid}/problems", {}, "under names"),
        ("GET /patients", {"under": {"patient": "Patient"}}, "under names"),
    ],
)
def test_a_list_that_cannot_be_is_refused_at_import(request_line: str, more: dict[str, Any], words: str) -> None:
    """What a declaration says of a list has to go together."""
    with pytest.raises(RoutesInvalid, match=words):
        Listing(request_line, **more)


def test_what_stands_there_as_deleted_is_told_by_what_is_declared(vendor: Start) -> None:
    """All that `gone` names has to agree, by the wire; without it a record that is read is there."""
    api = vendor(lambda asked: Says(200, [])).api()
    soft = declared(api, gone={"status": "inactive", "active": False})
    assert soft.is_gone({"status": "inactive", "active": False})
    assert not soft.is_gone({"status": "inactive", "active": True})
    assert not declared(api).is_gone({"status": "inactive"})
    assert (declared(api).tells_deleted, declared(api, gone={}).tells_deleted) == (False, True)
    read = Call("GET /patients/{id}", means={Answer(200, has="status", equal="inactive"): Outcome.GONE})
    assert declared(api, read=read).tells_deleted
    assert not declared(api, read=Call("GET /patients/{id}", means={404: Outcome.GONE})).tells_deleted


def test_a_delete_by_status_says_what_a_deleted_record_looks_like(vendor: Start) -> None:
    """Where it is set in the record's own path, by constants alone; a post to another collection says nothing."""
    api = vendor(lambda asked: Says(200, [])).api()

    def cancels(request: str, **sent: str) -> Collection:
        delete = Call(request, send=sent)
        return api.collection(
            "visit", keys=("id",), create=OURS, update=OURS, delete=delete, find=OURS, read="GET /v/{id}"
        )

    assert cancels("PUT /v/{id}", status="cancelled").is_gone({"status": "cancelled"})
    assert not cancels("PUT /v/{id}", status="cancelled").is_gone({"status": "booked"})
    assert not cancels("POST /discontinued", status="cancelled").tells_deleted
    assert not cancels("PUT /v/{id}", replaced="{id}").tells_deleted


@pytest.mark.parametrize(
    ("how", "sent", "held"),
    [
        (Normal.CASE, "Doe", "DOE"),
        (Normal.BLANKS, "12 High St", "12  High\nSt "),
        (Normal.ZEROS, "120.5", "120.50"),
        (Normal.DIGITS, "555-010-0199", "(555) 0100199"),
        ((Normal.CASE, Normal.BLANKS), "12 High St", "12  HIGH st"),
    ],
)
def test_what_does_not_count_is_declared_by_field(vendor: Start, how: Any, sent: str, held: str) -> None:
    """The field that is named is judged so, and its neighbour is not; what says something else still differs."""
    patients = declared(vendor(lambda asked: Says(200, [])).api(), normalise={"one": how})
    fields = {"one": sent, "other": sent}
    assert patients.differing(fields, {"one": held, "other": held}) == ("other",)
    assert patients.differing(fields, {"one": "7", "other": sent}) == ("one",)
