"""Requests that follow from a declaration: paths, queries, bodies, and what cannot be declared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from worker.errors import BadKey, LegacyError, LegacyUnavailable, RoutesInvalid
from worker.ledger.values import Key, Operation
from worker.legacy import OMIT, Answered, Call, Collection, Find, LegacyApi, LegacyRequest, Outcome, Unsupported, Wire
from worker.legacy.call import template


def collection(api: LegacyApi | None = None, **declared: Any) -> Collection:
    """Declare a collection; what the test does not name is ordinary."""
    api = api or LegacyApi("clinic", base_url="https://clinic.example.com/api", auth=None, zone="America/New_York")
    usual: dict[str, Any] = {
        "keys": ("uuid",),
        "create": "POST /patients/{patient.uuid}/notes",
        "update": "PUT /patients/{patient.uuid}/notes/{uuid}",
        "delete": Unsupported("notes are kept"),
        "find": Find("GET /notes?title={title}&on={on}&kind=note", match=("title",)),
    }
    return api.collection("note", **(usual | declared))


PARENTS: Mapping[str, Mapping[str, Key]] = {"patient": {"uuid": "p-1", "number": 7}}


def test_a_create_leaves_out_what_medplum_does_not_say() -> None:
    """None is not sent on create; parents are in the path and never in the body."""
    request = collection().request(
        Operation.CREATE, {"title": "Gout", "on": None, "of": {"a": None, "b": 1}}, {}, PARENTS
    )
    assert (request.method, request.path, request.query) == ("POST", "/patients/p-1/notes", "")
    assert request.template == "POST /patients/{patient.uuid}/notes"
    assert request.body == b'{"title":"Gout","of":{"b":1}}'
    assert request.content_type == "application/json"


def test_an_update_clears_as_the_collection_says() -> None:
    """Null, "" or left out: by field, else by the wire."""
    notes = collection(clear={"email": "", "fax": OMIT})
    fields = {"title": None, "email": None, "fax": None, "of": {"email": None}}
    request = notes.request(Operation.UPDATE, fields, {"uuid": "n1"}, PARENTS)
    assert json.loads(request.body or b"") == {"title": None, "email": "", "of": {"email": None}}
    left_out = collection(wire=Wire(clear=OMIT)).request(Operation.UPDATE, fields, {"uuid": "n1"}, PARENTS)
    assert json.loads(left_out.body or b"") == {"of": {}}


def test_a_delete_has_no_body() -> None:
    """The keys alone say which record is meant."""
    notes = collection(delete="DELETE /notes/{uuid}")
    request = notes.request(Operation.DELETE, {}, {"uuid": "n1"}, {})
    assert (request.method, request.path, request.body, request.content_type) == ("DELETE", "/notes/n1", None, None)


def test_an_idempotency_key_goes_where_the_call_says() -> None:
    """Without a declared header it is not sent."""
    create = Call("POST /notes", idempotency="Idempotency-Key")
    sent = collection(create=create).request(Operation.CREATE, {}, {}, {}, idempotency_key="k1")
    assert sent.headers == {"Idempotency-Key": "k1"}
    assert collection().request(Operation.CREATE, {}, {}, PARENTS, idempotency_key="k1").headers == {}


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a/b", "a%2Fb"),
        ("a?b", "a%3Fb"),
        ("a#b", "a%23b"),
        ("a%2e", "a%252e"),
        ("ä b", "%C3%A4%20b"),
        (7, "7"),
        ("...", "..."),
    ],
)
def test_a_key_stays_one_segment(key: Key, path: str) -> None:
    """Whatever a key holds is encoded for the path."""
    request = collection().request(Operation.UPDATE, {}, {"uuid": key}, PARENTS)
    assert request.path == f"/patients/p-1/notes/{path}"


@pytest.mark.parametrize("key", ["", " ", ".", "..", "../7", "a/../7", "a\\..\\b", "..;x", "/", None, True, 1.5])
def test_a_key_that_would_change_the_path_is_refused(key: Any) -> None:
    """Empty, dotted or no key at all: nothing is sent, and the key is not in the message."""
    with pytest.raises(BadKey, match=r"^PUT /patients/\{patient.uuid\}/notes/\{uuid\}: \{uuid\} is "):
        collection().request(Operation.UPDATE, {}, {"uuid": key}, PARENTS)


def test_a_missing_parent_is_refused() -> None:
    """A path without its parent's key would be another path."""
    wrong: list[Mapping[str, Mapping[str, Key]]] = [{}, {"patient": {}}, {"patient": {"uuid": ""}}]
    for parents in wrong:
        with pytest.raises(BadKey):
            collection().request(Operation.CREATE, {}, {}, parents)


def test_what_the_api_cannot_do_says_why() -> None:
    """The declared words are at hand, and asking all the same is an error."""
    notes = collection()
    assert not notes.supports(Operation.DELETE)
    assert notes.unsupported_reason(Operation.DELETE) == "notes are kept"
    assert notes.supports(Operation.CREATE)
    assert notes.unsupported_reason(Operation.CREATE) is None
    with pytest.raises(LegacyError, match="notes are kept"):
        notes.request(Operation.DELETE, {}, {"uuid": "n1"}, PARENTS)


@pytest.mark.parametrize(
    "line",
    ["/patients", "FETCH /patients", "GET patients", "GET //elsewhere", "GET https://elsewhere", "GET /a b", "GET /a#b",
     "GET /a/{}", "GET /a/{b", "GET /a/b}", "GET /a/{b.c.d}", "GET /a/{1}", "GET /a/{b c}", ""],
)  # fmt: skip
def test_a_request_line_that_is_none_is_refused(line: str) -> None:
    """A slip in a declaration shows at import."""
    with pytest.raises(RoutesInvalid):
        template(line)


def test_declarations_that_cannot_be_are_refused() -> None:
    """No match, a find that writes, a read that writes, no keys, identity without read, Unsupported without words."""
    with pytest.raises(RoutesInvalid, match="match"):
        Find("GET /a", match=())
    with pytest.raises(RoutesInvalid, match="only reads"):
        Find("POST /a", match=("a",))
    with pytest.raises(RoutesInvalid, match="only reads"):
        collection(read="DELETE /a/{uuid}")
    with pytest.raises(RoutesInvalid, match="key"):
        collection(keys=())
    with pytest.raises(RoutesInvalid, match="needs read"):
        collection(identity=("title",))
    with pytest.raises(RoutesInvalid, match="words"):
        Unsupported(" ")


def test_a_slip_in_a_constant_shows_at_import() -> None:
    """Names in braces of constants and headers are read as those of the line are."""
    slips: tuple[dict[str, Any], ...] = (
        {"also": {"of": [{"id": "{patient.}"}]}},
        {"send": {"id": "{"}},
        {"headers": {"If-Match": "{}"}},
        {"without": "id"},
    )
    for slip in slips:
        with pytest.raises(RoutesInvalid):
            Call("PUT /notes/{uuid}", **slip)


def test_names_of_constants_are_known_as_those_of_paths_are() -> None:
    """A parent that stands only in a body is needed all the same; what the record holds now is no parent."""
    update = Call("PUT /notes/{uuid}", also={"by": "{author.id}"}, headers={"If-Match": "{current.etag}"})
    notes = collection(update=update, read="GET /notes/{uuid}")
    assert notes.parents == {"patient", "author"}
    assert notes.names >= {"author.id", "current.etag", "patient.uuid", "uuid", "title", "on"}
    assert notes.needs_current(Operation.UPDATE)
    assert not notes.needs_current(Operation.CREATE)


def test_a_constant_without_its_key_is_refused() -> None:
    """An empty key in a body would be another record's, or none: nothing is sent, and the name is told."""
    notes = collection(update=Call("PUT /notes/{uuid}", also={"by": "urn:{author.id}"}))
    parents: list[Mapping[str, Mapping[str, Key]]] = [{}, {"author": {}}, {"author": {"id": ""}}]
    for missing in parents:
        with pytest.raises(BadKey, match=r"^PUT /notes/\{uuid\}: \{author.id\} has no value$"):
            notes.request(Operation.UPDATE, {}, {"uuid": "n1"}, missing)


@pytest.mark.parametrize(
    ("base_url", "zone", "named"),
    [
        ("clinic", "UTC", "base_url"),
        ("https://c.example.com/?a", "UTC", "base_url"),
        ("https://c.example.com", "Mars/One", "zone"),
        ("https://c.example.com", "../etc", "zone"),
    ],
)
def test_an_api_that_cannot_be_called_is_refused(base_url: str, zone: str, named: str) -> None:
    """Address and zone are checked at import."""
    with pytest.raises(RoutesInvalid, match=f"clinic: {named}"):
        LegacyApi("clinic", base_url=base_url, auth=None, zone=zone)


class Pages(LegacyApi):
    """Answers finds with these pages, and keeps the queries."""

    def send(self, request: LegacyRequest, *, deadline_s: float) -> Answered:
        self.headers.setdefault("asked", []).append(request.query)  # type: ignore[attr-defined]
        pages: Any = self.headers["pages"]
        number = len(self.headers["asked"])
        body = pages(number) if callable(pages) else pages[number - 1] if number <= len(pages) else []
        return Answered(Outcome.DONE, "GET /notes answered 200", 200, body=body)


def paged(pages: Any, page: str = "page") -> Collection:
    api = Pages("clinic", base_url="https://c.example.com", auth=None, zone="UTC", headers={"pages": pages})
    find = Find("GET /notes?title={title}&on={on}&kind=note", match={"title": "heading"}, page=page)
    return collection(api, find=find)


def test_a_find_asks_only_for_what_there_is_and_reads_all_pages() -> None:
    """A parameter without a value is left out, a fixed one stays, and pages end with the first empty one."""
    notes = paged(
        [[{"uuid": str(number), "heading": heading}] for number, heading in enumerate(("Gout", "Rash", "Gout"), 1)]
    )
    hits = notes.find({"title": "Gout", "on": None}, {}, deadline_s=5)
    assert [hit.keys["uuid"] for hit in hits] == ["1", "3"]
    asked: Any = notes.api.headers["asked"]
    assert asked == [f"title=Gout&kind=note&page={number}" for number in (1, 2, 3, 4)]


def test_values_of_a_query_are_encoded() -> None:
    """A value cannot add a parameter."""
    notes = paged([])
    notes.find({"title": "a&b=c é"}, {}, deadline_s=5)
    asked: Any = notes.api.headers["asked"]
    assert asked == ["title=a%26b%3Dc%20%C3%A9&kind=note&page=1"]


def test_an_api_that_does_not_know_the_page_ends_the_find() -> None:
    """The same page twice is the last one, and each record is one hit."""
    notes = paged(lambda number: [{"uuid": "1", "heading": "Gout"}])
    assert len(notes.find({"title": "Gout"}, {}, deadline_s=5)) == 1


def test_pages_without_end_are_no_answer() -> None:
    """A list that never ends is not searched for ever, and is not taken for "there is none"."""
    notes = paged(lambda number: [{"uuid": str(number), "heading": "Rash"}])
    with pytest.raises(LegacyUnavailable, match="more than 200 pages"):
        notes.find({"title": "Gout"}, {}, deadline_s=5)


@pytest.mark.parametrize("page", [None, {}, [7], [{"heading": "Gout"}], [{"uuid": None, "heading": "Gout"}]], ids=repr)
def test_a_list_that_cannot_be_read_is_no_answer(page: object) -> None:
    """No list, no records in it, or a record without its key: nothing is concluded."""
    with pytest.raises(LegacyUnavailable):
        paged([page]).find({"title": "Gout"}, {}, deadline_s=5)


def test_a_find_without_anything_to_match_is_refused() -> None:
    """Nothing equals nothing: every record without a title would be a hit."""
    with pytest.raises(LegacyError, match="find needs a value"):
        paged([]).find({"title": None}, {}, deadline_s=5)


def test_a_hit_says_which_sent_fields_differ() -> None:
    """Sent and held are compared in wire form, under the record's own names."""
    notes = paged([[{"uuid": "1", "heading": "Gout", "dose": Decimal("1.50"), "on": "", "by": "x", "own": 1}]], page="")
    (hit,) = notes.find({"title": "Gout", "dose": "1.5", "on": None, "by": "y", "new": 1}, {}, deadline_s=5)
    assert hit.differs == ("by", "new")
    assert "Gout" not in repr(hit)


def test_a_request_shows_no_values() -> None:
    """What stands in logs and errors of a request is its template, not its path, query or body."""
    notes = collection(update="PUT /notes/{uuid}?title={title}")
    request = notes.request(Operation.UPDATE, {"title": "Gout"}, {"uuid": "Doe-1985"}, {})
    assert (request.path, request.query) == ("/notes/Doe-1985", "title=Gout")
    assert "Gout" not in repr(request)
    assert "Doe" not in repr(request)
