"""Each row of `docs/legacy-api.md` on keys, paths, writes and what answers mean, against a server that behaves so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.errors import BadKey, LegacyError, RoutesInvalid
from worker.ledger.values import Key, Operation
from worker.legacy import (
    OMIT,
    Answer,
    Answered,
    Call,
    Collection,
    Constant,
    Find,
    Header,
    LegacyApi,
    Outcome,
    Replace,
    Scalar,
    Unsupported,
    Wire,
    form_body,
    json_api,
)

Start = Callable[[Behaviour], Vendor]
PARENTS: Mapping[str, Mapping[str, Key]] = {"patient": {"uuid": "p-1", "id": 7}}
JANE = {"last_name": "Doe", "birth_date": "1985-02-28"}


def notes(api: LegacyApi, **declared: Any) -> Collection:
    """Declare a collection; what a row is not about is ordinary."""
    usual: dict[str, Any] = {
        "keys": ("id",),
        "create": "POST /notes",
        "update": "PUT /notes/{id}",
        "delete": "DELETE /notes/{id}",
        "find": Find("GET /notes?title={title}", match=("title",)),
        "read": "GET /notes/{id}",
    }
    return api.collection("note", **(usual | declared))


def does(
    collection: Collection,
    operation: Operation,
    fields: Mapping[str, object] | None = None,
    keys: Mapping[str, Key] | None = None,
    **more: Any,
) -> Answered:
    """Build the request for one write, send it, and leave no connection behind."""
    try:
        if collection.needs_current(operation):
            more["current"] = collection.read(keys or {}, PARENTS, deadline_s=5)
        request = collection.request(operation, fields or {}, keys or {}, PARENTS, **more)
        return collection.api.send(request, deadline_s=5)
    finally:
        collection.api.close()


def creates(collection: Collection, fields: Mapping[str, object] | None = None, **more: Any) -> Answered:
    return does(collection, Operation.CREATE, fields or JANE, **more)


def updates(collection: Collection, fields: Mapping[str, object] | None = None, **more: Any) -> Answered:
    return does(collection, Operation.UPDATE, JANE if fields is None else fields, {"id": 17}, **more)


def deletes(collection: Collection) -> Answered:
    return does(collection, Operation.DELETE, {}, {"id": 17})


def always(status: int = 200, body: object = b"", **headers: str) -> Behaviour:
    return lambda asked: Says(status, body, headers)


# keys


@pytest.mark.parametrize(
    "key", [17, 2**40, "b7b3c0de-8f0a-4a3e-9a43-2d6f2a4c1b11", "507f1f77bcf86cd799439011", "0017"], ids=repr
)
def test_a_key_keeps_its_type(vendor: Start, key: Key) -> None:
    """Integers, beyond 2³¹ too, uuids, 24 hex digits and text of digits come back as they came, and fill paths."""
    server = vendor(always(201, {"id": key}))
    answered = creates(collection := notes(server.api()))
    assert answered.keys == {"id": key}
    does(collection, Operation.DELETE, {}, answered.keys)
    assert server.last.line == f"DELETE /api/notes/{key}"


def test_two_keys_for_one_record(vendor: Start) -> None:
    """A uuid in some paths and an integer in others: both are named, and each path takes its own."""
    server = vendor(always(201, {"pid": 7, "uuid": "u-7"}))
    patients = notes(server.api(), keys=("uuid", "pid"), delete="DELETE /patients/{pid}", read=None)
    keys = creates(patients).keys
    assert keys == {"uuid": "u-7", "pid": 7}
    does(patients, Operation.DELETE, {}, keys)
    assert server.last.line == "DELETE /api/patients/7"


def test_a_key_that_changes_when_a_record_is_replaced(vendor: Start) -> None:
    """An API without update declares Replace: nothing is sent as an update, and the new record brings a new key."""
    server = vendor(always(201, {"id": 18}))
    visits = notes(server.api(), update=Replace())
    assert visits.replace == Replace()
    assert visits.supports(Operation.UPDATE)
    with pytest.raises(LegacyError, match="a delete and a create"):
        updates(visits)
    assert creates(visits).keys == {"id": 18}
    with pytest.raises(RoutesInvalid, match="needs a create and a delete"):
        notes(server.api(), update=Replace(), delete=Unsupported("kept"))


# paths


def test_a_path_under_the_parents_key(vendor: Start) -> None:
    """The link's keys fill the path, and the parent is known as needed."""
    server = vendor(always(201, {"id": 1}))
    problems = notes(server.api(), create="POST /patients/{patient.uuid}/problems")
    creates(problems)
    assert server.last.line == "POST /api/patients/p-1/problems"
    assert problems.parents == {"patient"}


def test_a_flat_path_with_the_parents_key_in_the_body(vendor: Start) -> None:
    """A constant that is one brace keeps the type of the key."""
    server = vendor(always(201, {"id": 1}))
    create = Call("POST /problems", also={"patient_id": "{patient.id}", "patient": "urn:{patient.uuid}"})
    problems = notes(server.api(), create=create)
    creates(problems, {"title": "Gout"})
    assert server.last.json() == {"title": "Gout", "patient_id": 7, "patient": "urn:p-1"}
    assert problems.parents == {"patient"}


def test_a_constant_in_path_and_body(vendor: Start) -> None:
    """The practice is part of the base URL, the department of each body, in the wire's own form."""
    server = vendor(always(201, {"id": 1}))
    api = server.api(base_url=f"{server.url}/v1/195900", wire=Wire(boolean=("Y", "N"), date="%m/%d/%Y"))
    also: dict[str, Constant] = {"department": 3, "active": True, "of": [{"since": date(2024, 2, 1)}]}
    creates(notes(api, create=Call("POST /notes", also=also)), {"title": "Gout"})
    assert server.last.target == "/v1/195900/notes"
    assert server.last.json() == {"title": "Gout", "department": 3, "active": "Y", "of": [{"since": "02/01/2024"}]}


def test_a_path_that_needs_its_trailing_slash(vendor: Start) -> None:
    """The line is sent as it stands, and no redirect is followed in its stead."""
    server = vendor(lambda asked: Says(201, {"id": 1}) if asked.path.endswith("/") else Says(301))
    assert creates(notes(server.api(), create="POST /notes/")).outcome is Outcome.DONE
    assert creates(notes(server.api())).outcome is Outcome.UNKNOWN


# answers to a create


@pytest.mark.parametrize(
    ("status", "body", "headers", "declared", "keys"),
    [
        (200, {"id": 17}, {}, {}, {"id": 17}),
        (201, {"data": {"id": 17}}, {}, {"record": "data"}, {"id": 17}),
        (201, {"data": {"uuid": "u"}}, {}, {"record": "data", "keys": {"id": "uuid"}}, {"id": "u"}),
        (200, 17, {}, {"keys": {"id": ""}}, {"id": 17}),
        (202, {"id": 17}, {}, {}, {"id": 17}),
        (201, b"", {"Location": "/api/notes/17"}, {"keys": {"id": Header("Location", after="/")}}, {"id": "17"}),
        (
            201,
            b"",
            {"Location": "notes/17/?v=1"},
            {"keys": {"id": Header("Location", after="/", before="?")}},
            {"id": "17"},
        ),
        (201, b"", {"X-Id": "17"}, {"keys": {"id": Header("X-Id")}}, {"id": "17"}),
    ],
    ids=["200", "201 data.id", "data.uuid", "bare", "202", "Location", "relative Location", "header"],
)
def test_where_the_key_of_a_new_record_stands(
    vendor: Start, status: int, body: object, headers: dict[str, str], declared: dict[str, Any], keys: dict[str, Key]
) -> None:
    """In the record, at a path in it, the answer itself, or a header."""
    answered = creates(notes(vendor(always(status, body, **headers)).api(), **declared))
    assert (answered.outcome, answered.keys) == (Outcome.DONE, keys)


@pytest.mark.parametrize(
    "location", ["https://elsewhere.example/notes/17", "//elsewhere.example/17", "http://u@127.0.0.1/17", "http://[/17"]
)
def test_a_location_elsewhere_is_no_key(vendor: Start, location: str) -> None:
    """A record of another host is none of ours: what became of the create has to be looked up."""
    server = vendor(always(201, b"", Location=location))
    answered = creates(notes(server.api(), keys={"id": Header("Location", after="/")}))
    assert (answered.outcome, answered.keys) == (Outcome.UNKNOWN, None)
    assert len(server.asked) == 1


def test_an_empty_answer_to_a_create_is_looked_up(vendor: Start) -> None:
    """Without a key nobody knows which record it is."""
    assert creates(notes(vendor(always(201)).api())).outcome is Outcome.UNKNOWN


def test_a_create_that_is_only_accepted(vendor: Start) -> None:
    """ACCEPTED: the key comes later, so it is looked up; an update that is accepted is as good as done."""
    api = vendor(always(202, {"job": 4})).api(means={202: Outcome.ACCEPTED})
    answered = creates(notes(api))
    assert answered.outcome is Outcome.UNKNOWN
    assert answered.detail == "POST /notes answered 202 that it will be done"
    assert updates(notes(api)).outcome is Outcome.DONE
    with_key = vendor(always(201, {"id": 1})).api(means={201: Outcome.ACCEPTED})
    assert creates(notes(with_key)).keys == {"id": 1}


# updates


def test_a_full_put_keeps_what_is_not_ours(vendor: Start) -> None:
    """`over_current` lays the mapped fields over what is there, object by object, and leaves out what may not go."""
    held = {"id": 17, "last_name": "Roe", "fax": "1", "home": {"city": "Bern", "floor": 3}, "made_by": "x"}
    server = vendor(lambda asked: Says(200, held))
    update = Call("PUT /notes/{id}", over_current=True, without=("made_by",))
    updates(notes(server.api(), update=update), {"last_name": "Doe", "fax": None, "home": {"city": "Basel"}})
    assert server.lines == ["GET /api/notes/17", "PUT /api/notes/17"]
    wanted = {"id": 17, "last_name": "Doe", "fax": None, "home": {"city": "Basel", "floor": 3}}
    assert server.last.json() == wanted


def test_a_cleared_field_of_a_full_put_can_be_left_out(vendor: Start) -> None:
    """OMIT takes the field out of the whole that is sent."""
    server = vendor(always(200, {"id": 17, "fax": "1", "pager": "2"}))
    update = Call("PUT /notes/{id}", over_current=True)
    updates(notes(server.api(), update=update, clear={"fax": OMIT}), {"fax": None})
    assert server.last.json() == {"id": 17, "pager": "2"}


def test_a_request_made_of_the_current_record_needs_it(vendor: Start) -> None:
    """Whoever builds it without is told, before anything is sent; a collection without read cannot declare it."""
    api = vendor(always()).api()
    update = Call("PUT /notes/{id}", over_current=True)
    with pytest.raises(LegacyError, match=r"^note: PUT /notes/\{id\} needs the current record$"):
        notes(api, update=update).request(Operation.UPDATE, {}, {"id": 1}, {})
    with pytest.raises(RoutesInvalid, match="needs read"):
        notes(api, update=update, read=None)
    with pytest.raises(RoutesInvalid, match="no current record"):
        notes(api, create=Call("POST /notes", over_current=True))


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("PUT /notes/{id}", 200, {"id": 17}),
        ("PATCH /notes/{id}", 204, b""),
        ("POST /notes/{id}/edit", 200, True),
    ],
    ids=["PUT that patches", "PATCH", "POST"],
)
def test_an_update_by_any_method(vendor: Start, line: str, status: int, body: object) -> None:
    """The request line says how; only mapped fields go along."""
    server = vendor(always(status, body))
    assert updates(notes(server.api(), update=line)).outcome is Outcome.DONE
    assert server.last.line == line.replace(" ", " /api").replace("{id}", "17")
    assert server.last.json() == JANE


def test_an_upsert_is_the_same_call_twice(vendor: Start) -> None:
    """PUT on the collection, told apart by a key of ours in the body."""
    server = vendor(lambda asked: Says(200, asked.json()))
    upsert = Call("PUT /notes")
    patients = notes(server.api(), keys=("external_id",), create=upsert, update=upsert, read=None, delete="DELETE /x")
    keys = creates(patients, {"external_id": "abc", "name": "Doe"}).keys
    assert keys == {"external_id": "abc"}
    assert does(patients, Operation.UPDATE, {"external_id": "abc", "name": "Roe"}, keys).outcome is Outcome.DONE
    assert set(server.lines) == {"PUT /api/notes"}


def test_a_key_that_we_choose_needs_no_answer(vendor: Start) -> None:
    """`{field}` makes a mapped field the key: the path of the create takes it, and an empty answer is enough."""
    server = vendor(always(204))
    upsert = Call("PUT /notes/{external_id}")
    patients = notes(
        server.api(), keys={"external_id": "{ref}"}, create=upsert, update=upsert, read=None, delete="DELETE /x"
    )
    answered = creates(patients, {"ref": "abc", "name": "Doe"})
    assert (answered.outcome, answered.keys) == (Outcome.DONE, {"external_id": "abc"})
    assert server.last.line == "PUT /api/notes/abc"
    with pytest.raises(BadKey):
        creates(patients, {"name": "Doe"})


def test_a_chosen_key_does_not_hide_an_error(vendor: Start) -> None:
    """200 with the API's words for an error is a refusal, though the key was known before."""
    server = vendor(always(200, {"error": "locked"}))
    patients = notes(server.api(errors=("error",)), keys={"id": "{ref}"})
    assert creates(patients, {"ref": "abc"}).outcome is Outcome.REFUSED


def test_an_update_sends_what_only_it_demands(vendor: Start) -> None:
    """`also` adds, `without` leaves out, and neither touches the create."""
    server = vendor(always(200, {"id": 17}))
    update = Call("PUT /notes/{id}", also={"reason": "sync", "id": "{id}"}, without=("birth_date",))
    collection = notes(server.api(), update=update)
    updates(collection)
    assert server.last.json() == {"last_name": "Doe", "reason": "sync", "id": 17}
    creates(collection)
    assert server.last.json() == JANE


def test_a_deleted_record_is_brought_back(vendor: Start) -> None:
    """`undelete` is an update by another request, under the old keys."""
    server = vendor(always(200, {"id": 17}))
    undelete = Call("POST /notes/{id}/restore", also={"status": "active"})
    collection = notes(server.api(), undelete=undelete)
    assert updates(collection, {"last_name": "Doe"}, undelete=True).outcome is Outcome.DONE
    assert server.last.line == "POST /api/notes/17/restore"
    assert server.last.json() == {"last_name": "Doe", "status": "active"}
    with pytest.raises(LegacyError, match="no undelete"):
        updates(notes(server.api()), undelete=True)


# deletes


def test_a_delete_by_status(vendor: Start) -> None:
    """`send` goes instead of mapped fields, here to the record's own path."""
    server = vendor(always(200, {"id": 17}))
    deletes(notes(server.api(), delete=Call("PATCH /notes/{id}", send={"status": "inactive"})))
    assert server.last.line == "PATCH /api/notes/17"
    assert server.last.json() == {"status": "inactive"}


def test_a_delete_by_status_in_a_full_put(vendor: Start) -> None:
    """With `over_current` the rest of the record stays as it is."""
    server = vendor(always(200, {"id": 17, "status": "active", "title": "Gout"}))
    deletes(notes(server.api(), delete=Call("PUT /notes/{id}", send={"status": "void"}, over_current=True)))
    assert server.last.json() == {"id": 17, "status": "void", "title": "Gout"}


def test_a_delete_by_an_archive_call(vendor: Start) -> None:
    """An own path, without a body."""
    server = vendor(always(204))
    assert deletes(notes(server.api(), delete="POST /notes/{id}/archive")).outcome is Outcome.DONE
    assert (server.last.line, server.last.body) == ("POST /api/notes/17/archive", b"")


def test_a_delete_in_another_collection(vendor: Start) -> None:
    """The key goes into the body as the number that it is."""
    server = vendor(always(201, {"id": 1}))
    delete = Call("POST /discontinued-medications", send={"medication": "{id}", "why": "entered in Medplum"})
    assert deletes(notes(server.api(), delete=delete)).outcome is Outcome.DONE
    assert server.last.json() == {"medication": 17, "why": "entered in Medplum"}


def test_a_delete_that_cannot_be(vendor: Start) -> None:
    """Unsupported carries the words for the operator, and nothing is ever sent."""
    server = vendor(always())
    kept = notes(server.api(), delete=Unsupported("the vendor keeps notes for ever"))
    assert not kept.supports(Operation.DELETE)
    assert kept.unsupported_reason(Operation.DELETE) == "the vendor keeps notes for ever"
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "body", "means"),
    [
        (404, b"", {}),
        (410, b"", {}),
        (400, {"error": "unknown"}, {Answer(400, has="error", equal="unknown"): Outcome.GONE}),
        (200, {"deleted": 0}, {Answer(200, has="deleted", equal=0): Outcome.GONE}),
    ],
    ids=["404", "410", "400", "200"],
)
def test_already_gone(vendor: Start, status: int, body: object, means: dict[int | Answer, Outcome]) -> None:
    """404 and 410 say it by themselves; other answers say it where that is declared, and only there."""
    server = vendor(always(status, body))
    delete = Call("DELETE /notes/{id}", means=means)
    assert deletes(notes(server.api(), delete=delete)).outcome is Outcome.GONE


@pytest.mark.parametrize(("status", "there"), [("active", True), ("inactive", False)])
def test_a_deleted_record_that_is_still_shown_is_not_there(vendor: Start, status: str, there: bool) -> None:
    """An API that only marks what was deleted goes on giving it out: declared so, a read says that it is gone."""
    server = vendor(always(200, {"id": 17, "status": status}))
    means: dict[int | Answer, Outcome] = {Answer(200, has="status", equal="inactive"): Outcome.GONE}
    shown = notes(server.api(), read=Call("GET /notes/{id}", means=means))
    assert (shown.read({"id": 17}, PARENTS, deadline_s=5) is not None) is there
    shown.api.close()


# odd answers


@pytest.mark.parametrize(
    ("status", "body", "means", "outcome"),
    [
        (200, {"success": False}, {Answer(200, has="success", equal=False): Outcome.REFUSED}, Outcome.REFUSED),
        (200, {"success": True}, {Answer(200, has="success", equal=False): Outcome.REFUSED}, Outcome.DONE),
        (200, {"code": "E17"}, {Answer(200, has="code"): Outcome.REFUSED}, Outcome.REFUSED),
        (200, True, {}, Outcome.DONE),
        (200, False, {Answer(200, equal=False): Outcome.REFUSED}, Outcome.REFUSED),
        (200, {"data": None}, {Answer(200, has="data", equal=None): Outcome.GONE}, Outcome.GONE),
        (400, b"", {}, Outcome.REFUSED),
        (200, b"", {}, Outcome.UNKNOWN),
        (200, b"", {200: Outcome.DONE}, Outcome.DONE),
        (200, b"<html>Please log in</html>", {}, Outcome.UNKNOWN),
    ],
    ids=["success: false", "success: true", "code", "true", "false", "unknown record", "empty 400", "empty 200",
         "declared empty 200", "a page"],
)  # fmt: skip
def test_odd_answers(
    vendor: Start, status: int, body: object, means: dict[int | Answer, Outcome], outcome: Outcome
) -> None:
    """What an answer means that is not what its status says is a line of `means`."""
    assert updates(notes(vendor(always(status, body)).api(means=means))).outcome is outcome


def test_errors_in_a_body_that_says_done(vendor: Start) -> None:
    """Without a key the declared error words make a refusal; with one it is done, and the words are kept."""
    said = {"errors": {"birth_date": "Jane is too young"}}
    refused = updates(notes(vendor(always(200, said)).api(errors=("errors",))))
    assert refused.outcome is Outcome.REFUSED
    assert refused.detail == "PUT /notes/{id} answered 200 with an error in its body (birth_date)"
    partly = updates(notes(vendor(always(200, {"id": 17} | said)).api(errors=("errors",))))
    assert partly.outcome is Outcome.DONE
    assert partly.detail == "PUT /notes/{id} answered 200 (birth_date)"
    assert b"too young" in (partly.words or b"")


@pytest.mark.parametrize("errors", [(), ("",), ("0",)])
@pytest.mark.parametrize("depth", [100, 900, 990, 5000])
def test_an_answer_nested_beyond_all_use_is_an_answer(vendor: Start, errors: tuple[str, ...], depth: int) -> None:
    """Whatever the peer does, its status says what became of the write, and nothing is raised."""
    server = vendor(always(422, b"[" * depth + b'"Doe"' + b"]" * depth))
    answered = creates(notes(server.api(errors=errors)))
    assert answered.outcome is Outcome.REFUSED
    assert b"Doe" not in (answered.words or b"")


# duplicates, concurrency, idempotency


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, Answer(400, has="errors.duplicate")),
        (409, Answer(409)),
    ],
)
def test_a_duplicate_that_is_refused(vendor: Start, status: int, answer: Answer) -> None:
    """EXISTS goes on with find; in the words for sealing another record's name is left, and what we sent is not."""
    server = vendor(always(status, {"errors": {"duplicate": "Doe: see Roe, Jane (17)"}}))
    answered = creates(notes(server.api(), create=Call("POST /notes", means={answer: Outcome.EXISTS})))
    assert answered.outcome is Outcome.EXISTS
    assert answered.detail == f"POST /notes answered {status}"
    assert answered.words == b"errors.duplicate: [sent]: see Roe, Jane (17)"


def test_if_match_carries_the_etag_of_the_read(vendor: Start) -> None:
    """The record is read first, and an edit in between is a conflict."""
    etags = iter(['"v1"', '"v2"'])
    held = {"etag": ""}

    def behaviour(asked: Asked) -> Says:
        if asked.method == "GET":
            held["etag"] = next(etags)
            return Says(200, {"id": 17}, {"ETag": held["etag"]})
        return Says(200 if asked.headers.get("if-match") == '"v1"' else 412, {"id": 17})

    update = Call("PUT /notes/{id}", headers={"If-Match": "{current.etag}"})
    collection = notes(vendor(behaviour).api(), update=update)
    assert collection.needs_current(Operation.UPDATE)
    assert updates(collection).outcome is Outcome.DONE
    assert updates(collection).outcome is Outcome.CONFLICT


def test_a_version_in_the_body_is_that_of_the_read(vendor: Start) -> None:
    """`{current.…}` names what the record holds now, in its own type."""
    server = vendor(always(200, {"id": 17, "lock_version": 3}))
    update = Call("PUT /notes/{id}", also={"lock_version": "{current.lock_version}"})
    updates(notes(server.api(), update=update), {"title": "Gout"})
    assert server.last.json() == {"title": "Gout", "lock_version": 3}


def test_without_the_version_that_it_needs_nothing_is_sent(vendor: Start) -> None:
    """A read that brings no version is told by the name in the brace."""
    update = Call("PUT /notes/{id}", also={"v": "{current.v}"})
    server = vendor(always(200, {"id": 17}))
    with pytest.raises(BadKey, match=r"\{current.v\} has no value"):
        updates(notes(server.api(), update=update))
    assert server.lines == ["GET /api/notes/17"]


def test_an_idempotency_key_in_its_header(vendor: Start) -> None:
    """The call names the header; who sends the write again sends the same key."""
    server = vendor(always(201, {"id": 1}))
    create = Call("POST /notes", idempotency="Idempotency-Key")
    for _ in range(2):
        creates(notes(server.api(), create=create), idempotency_key="k-1")
    assert [asked.headers["idempotency-key"] for asked in server.asked] == ["k-1", "k-1"]


# bodies and values


def test_a_json_body(vendor: Start) -> None:
    """The ordinary one; a decimal keeps its digits."""
    server = vendor(always(201, {"id": 1}))
    creates(notes(server.api()), {"dose": Decimal("1.50"), "of": [{"a": True}]})
    assert server.last.headers["content-type"] == "application/json"
    assert server.last.body == b'{"dose":1.50,"of":[{"a":true}]}'


def test_a_form_body_with_json_inside(vendor: Start) -> None:
    """Lists and objects are JSON within their field; nothing is an empty one."""
    server = vendor(always(200, {"id": 17}))
    updates(notes(server.api(), body=form_body), {"name": "Doe & Söhne", "n": 3, "of": [{"a": 1}], "fax": None})
    assert server.last.headers["content-type"] == "application/x-www-form-urlencoded"
    assert server.last.form() == {"name": "Doe & Söhne", "n": "3", "of": '[{"a":1}]', "fax": ""}


def test_a_json_api_body_with_relationships(vendor: Start) -> None:
    """Type and id of the record, attributes, and relationships by type and id."""
    server = vendor(always(200, {"data": {"id": "17"}}))
    body = json_api("note", relationships={"author": "user", "groups": "group"})
    patients = notes(server.api(body=body, record="data"))
    updates(patients, {"title": "Gout", "author": 4, "groups": ["a", "b"]})
    assert server.last.headers["content-type"] == "application/vnd.api+json"
    assert server.last.json() == {
        "data": {
            "type": "note",
            "id": "17",
            "attributes": {"title": "Gout"},
            "relationships": {
                "author": {"data": {"type": "user", "id": "4"}},
                "groups": {"data": [{"type": "group", "id": "a"}, {"type": "group", "id": "b"}]},
            },
        }
    }
    updates(patients, {"author": None})
    assert server.last.json()["data"]["relationships"] == {"author": {"data": None}}


def test_every_value_as_text(vendor: Start) -> None:
    """Numbers, booleans and the keys of linked records, all as text."""
    server = vendor(always(201, {"id": "1"}))
    wire = Wire(numbers="text", boolean=("1", "0"))
    collection = notes(server.api(wire=wire))
    written: dict[str, Scalar] = {"dose": Decimal("1.50"), "count": 3, "active": True}
    fields = {name: collection.write(value) for name, value in written.items()}
    creates(collection, fields | {"provider": 7, "groups": [8, 9]})
    wanted = {"dose": "1.50", "count": "3", "active": "1", "provider": "7", "groups": ["8", "9"]}
    assert server.last.json() == wanted


def test_clearing_by_field(vendor: Start) -> None:
    """null, "" or left out, and one API can want each."""
    server = vendor(always(200, {"id": 17}))
    collection = notes(server.api(wire=Wire(clear="")), clear={"ended": None, "fax": OMIT})
    updates(collection, {"title": "Gout", "email": None, "ended": None, "fax": None})
    assert server.last.json() == {"title": "Gout", "email": "", "ended": None}


SPRING = datetime(2024, 3, 10, 7, 30, tzinfo=ZoneInfo("UTC"))  # half an hour after New York's clocks went forward


@pytest.mark.parametrize(
    ("wire", "value", "written"),
    [
        (Wire(), date(1985, 2, 28), "1985-02-28"),
        (Wire(date="%m/%d/%Y"), date(1985, 2, 28), "02/28/1985"),
        (Wire(datetime="%Y-%m-%d %H:%M:%S"), SPRING, "2024-03-10 03:30:00"),
        (Wire(time="%H:%M"), time(9, 5), "09:05"),
        (Wire(), timedelta(minutes=15), 900),
        (Wire(duration="minutes"), timedelta(minutes=15), 15),
    ],
)  # fmt: skip
def test_dates_as_the_clinics_clock_shows_them(vendor: Start, wire: Wire, value: Any, written: object) -> None:
    """Formats go by type, and a moment is written as the wall clock of the API's zone."""
    server = vendor(always(201, {"id": 1}))
    collection = notes(server.api(wire=wire))
    creates(collection, {"value": collection.write(value)})
    assert server.last.json() == {"value": written}


def test_one_collection_writes_otherwise(vendor: Start) -> None:
    """A collection's own wire is the API's with one line changed."""
    server = vendor(always(201, {"id": 1}))
    api = server.api(wire=Wire(date="%m/%d/%Y"))
    assert notes(api).write(date(1985, 2, 28)) == "02/28/1985"
    own = notes(api, wire=replace(api.wire, date="%Y%m%d"))
    assert own.write(date(1985, 2, 28)) == "19850228"


def test_records_that_only_the_legacy_system_makes(vendor: Start) -> None:
    """`known` is linked by import and never written."""
    users = vendor(always()).api().known("Practitioner", keys=("id", "uuid"))
    assert (users.known_as, users.keys) == ("Practitioner", ("id", "uuid"))
    assert not any(users.supports(operation) for operation in Operation)
    assert "link it by import" in (users.unsupported_reason(Operation.CREATE) or "")
