"""Each row of `docs/legacy-api.md` on looking records up, against a server that behaves so; what finds never tell."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.errors import LegacyUnavailable, RoutesInvalid
from worker.legacy import Answer, Collection, Find, Header, Hit, LegacyApi, Outcome, Wire

Start = Callable[[Behaviour], Vendor]
JANE = {"last_name": "Doe", "birth_date": "02/28/1985", "phone": "555"}
CANARIES = ("Canary-Doe", "02/28/1985", "1985")
CANARY: dict[str, object] = {"last_name": "Canary-Doe", "birth_date": "02/28/1985"}


def patients(api: LegacyApi, **declared: Any) -> Collection:
    usual: dict[str, Any] = {
        "keys": ("id",),
        "create": "POST /patients",
        "update": "PUT /patients/{id}",
        "delete": "DELETE /patients/{id}",
        "find": Find("GET /patients?name={last_name}&dob={birth_date}", match=("last_name", "birth_date")),
    }
    return api.collection("patient", **(usual | declared))


def found(collection: Collection, fields: dict[str, object] | None = None) -> list[Hit]:
    try:
        return collection.find(fields or JANE, {}, deadline_s=10)
    finally:
        collection.api.close()


def record(id_: object = 1, **other: object) -> dict[str, object]:
    return {"id": id_, **JANE, **other}


def test_a_look_up_by_business_fields(vendor: Start) -> None:
    """The query is the API's own, filled from mapped fields."""
    server = vendor(lambda asked: Says(200, [record()]))
    (hit,) = found(patients(server.api()))
    assert hit.keys == {"id": 1}
    assert hit.differs == ()
    assert server.last.query == {"name": "Doe", "dob": "02/28/1985"}


def test_an_api_that_ignores_unknown_filters(vendor: Start) -> None:
    """Everything comes back, and only what is equal on our side is a hit."""
    everybody = [record(1, last_name="Roe"), record(2), record(3, birth_date="01/01/1985"), record(4, last_name=None)]
    server = vendor(lambda asked: Says(200, everybody))
    assert [hit.keys["id"] for hit in found(patients(server.api()))] == [2]


def test_several_hits_are_all_told(vendor: Start) -> None:
    """Never the first: whoever asked sees that there are two, and in which field one differs."""
    server = vendor(lambda asked: Says(200, [record(1), record(2, phone="556")]))
    assert [hit.differs for hit in found(patients(server.api()))] == [(), ("phone",)]


def test_a_duplicate_that_is_silently_made_is_looked_for_first(vendor: Start) -> None:
    """`before_create` says so; the engine asks before its first create."""
    find = Find("GET /patients?name={last_name}", match=("last_name",), before_create=True)
    collection = patients(vendor(lambda asked: Says(200, [])).api(), find=find)
    assert isinstance(collection.find_by, Find)
    assert collection.find_by.before_create


@pytest.mark.parametrize(
    ("declared", "status", "body"),
    [
        ({"means": {404: Outcome.GONE}}, 404, None),
        ({"means": {Answer(200, has="code", equal="none"): Outcome.GONE}}, 200, {"code": "none"}),
    ],
)
def test_an_empty_list_that_is_none(vendor: Start, declared: dict[str, Any], status: int, body: object) -> None:
    """404 with null means that there is nobody, where that is declared; elsewhere it is no answer."""
    server = vendor(lambda asked: Says(status, body))
    find = Find("GET /patients?name={last_name}", match=("last_name",))
    with pytest.raises(LegacyUnavailable):
        found(patients(server.api(), find=find))
    find = Find("GET /patients?name={last_name}", match=("last_name",), **declared)
    assert found(patients(server.api(), find=find)) == []


def test_hits_that_keep_their_keys_elsewhere(vendor: Start) -> None:
    """`keys` of a find says where; a key that a create answers in a header is its own name in a hit."""
    server = vendor(lambda asked: Says(200, {"results": [record("x") | {"resource": {"pid": 7}}]}))
    find = Find("GET /patients?name={last_name}", match=("last_name",), keys={"id": "resource.pid"})
    assert found(patients(server.api(items="results"), find=find))[0].keys == {"id": 7}
    by_location = patients(server.api(items="results"), keys={"id": Header("Location", after="/")})
    assert found(by_location)[0].keys == {"id": "x"}


def test_pages_that_are_counted(vendor: Start) -> None:
    """`page` names the parameter, and the first empty page ends it."""
    server = vendor(lambda asked: Says(200, [record(int(asked.query["p"]))] if int(asked.query["p"]) < 3 else []))
    find = Find("GET /patients?name={last_name}", match=("last_name",), page="p")
    assert [hit.keys["id"] for hit in found(patients(server.api(), find=find))] == [1, 2]


def test_pages_that_are_offset(vendor: Start) -> None:
    """`offset` names the parameter that counts the records before a page, and the first empty page ends it."""
    pages = {"0": [record(1), record(2)], "2": [record(3)], "3": []}
    server = vendor(lambda asked: Says(200, pages[asked.query["start"]]))
    find = Find("GET /patients?name={last_name}", match=("last_name",), offset="start")
    assert [hit.keys["id"] for hit in found(patients(server.api(), find=find))] == [1, 2, 3]
    assert server.lines[-1] == "GET /api/patients?name=Doe&start=3"


@pytest.mark.parametrize("counted", ["page", "offset"])
def test_an_api_that_does_not_count_is_asked_twice(vendor: Start, counted: str) -> None:
    """One that ignores the parameter gives the same page again: what it has is all there is."""
    server = vendor(lambda asked: Says(200, [record(1)]))
    way: dict[str, Any] = {counted: "n"}
    find = Find("GET /patients?name={last_name}", match=("last_name",), **way)
    assert [hit.keys["id"] for hit in found(patients(server.api(), find=find))] == [1]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "link", ["{url}/api/patients?after=1", "/api/patients?after=1", "?after=1", "patients?after=1"]
)
def test_pages_that_name_the_next(vendor: Start, link: str) -> None:
    """`next` is followed below the API's own address, absolute or not, until there is none."""

    def behaviour(asked: Asked) -> Says:
        following = None if "after" in asked.query else link.format(url=server.url)
        return Says(200, {"data": [record(1 if following else 2)], "links": {"next": following}})

    server = vendor(behaviour)
    find = Find("GET /patients?name={last_name}", match=("last_name",), next="links.next")
    assert [hit.keys["id"] for hit in found(patients(server.api(items="data"), find=find))] == [1, 2]
    assert server.lines == ["GET /api/patients?name=Doe", "GET /api/patients?after=1"]


@pytest.mark.parametrize(
    "link",
    ["http://192.0.2.1/api/patients", "//192.0.2.1/api/patients", "https://127.0.0.1/api/x", "/other", "../admin",
     "http://u:p@127.0.0.1/api/x", "file:///etc/passwd", "http://[/", "/api/../admin", 7],
)  # fmt: skip
def test_a_next_page_elsewhere_is_never_fetched(vendor: Start, link: object) -> None:
    """Foreign text does not lead us to another address: the find was not answered."""
    server = vendor(lambda asked: Says(200, {"data": [record()], "next": link}))
    find = Find("GET /patients?name={last_name}", match=("last_name",), next="next")
    with pytest.raises(LegacyUnavailable):
        found(patients(server.api(items="data"), find=find))
    assert len(server.asked) == 1


def test_next_pages_without_end_are_no_answer(vendor: Start) -> None:
    """A page that names itself as the next is not asked for for ever."""
    server = vendor(lambda asked: Says(200, {"data": [], "next": "?again=1"}))
    find = Find("GET /patients?name={last_name}", match=("last_name",), next="next")
    with pytest.raises(LegacyUnavailable, match="more than 200 pages"):
        found(patients(server.api(items="data"), find=find))


@pytest.mark.parametrize("two", [("page", "next"), ("page", "offset"), ("offset", "next")])
def test_ways_to_the_next_page_exclude_each_other(two: tuple[str, str]) -> None:
    """Two ways to come to the next page are one too many."""
    ways: dict[str, Any] = dict.fromkeys(two, "x")
    with pytest.raises(RoutesInvalid, match="one of page, offset and next"):
        Find("GET /a", match=("b",), **ways)


@pytest.mark.parametrize(
    ("wire", "sent", "held"),
    [
        (Wire(date="%m/%d/%Y"), "02/28/1985", "1985-02-28"),
        (Wire(date="%m/%d/%Y"), "02/28/1985", "1985-02-28T00:00:00"),
        (Wire(), "2024-03-10T03:30:00", "2024-03-10T07:30:00Z"),
        (Wire(), "09:05:00", "09:05"),
        (Wire(date="%Y%m%d"), "20241101", "2024-11-01"),
        (Wire(boolean=("Y", "N")), "Y", True),
        (Wire(boolean=(1, 0)), 0, False),
        (Wire(numbers="text"), "1.50", 1.5),
        (Wire(), None, ""),
        (Wire(), " Doe", "Doe "),
    ],
)
def test_what_is_read_back_is_normalised_by_the_same_wire(
    vendor: Start, wire: Wire, sent: object, held: object
) -> None:
    """APIs give values back in another form than they take: that is no difference."""
    server = vendor(lambda asked: Says(200, [record(value=held)]))
    (hit,) = found(patients(server.api(wire=wire)), JANE | {"value": sent})
    assert hit.differs == ()


@pytest.mark.parametrize(
    ("wire", "sent", "held"),
    [
        (Wire(date="%m/%d/%Y"), "02/28/1985", "1985-02-27"),
        (Wire(), "2024-03-10T03:30:00", "2024-03-10T03:30:00Z"),
        (Wire(), "1900-01-01T09:05:00", "09:05:00"),
        (Wire(boolean=("Y", "N")), "Y", False),
        (Wire(), "007", "7"),
        (Wire(), "10", "1000"),
        (Wire(), "10", "10:00"),
        (Wire(), "20241101", "2024-11-01"),
        (Wire(date="%Y%m%d"), "20241101", "2024111"),
        (Wire(), "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00"),
        (Wire(), "x", True),
        (Wire(), [1, 2], [1]),
    ],
)
def test_what_says_something_else_differs(vendor: Start, wire: Wire, sent: object, held: object) -> None:
    """Normalising never makes equal what is not."""
    server = vendor(lambda asked: Says(200, [record(value=held)]))
    (hit,) = found(patients(server.api(wire=wire)), JANE | {"value": sent})
    assert hit.differs == ("value",)


class Lines(logging.Handler):
    """Keeps whatever any logger says, with its arguments and its trace."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, line: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*line.exc_info)) if line.exc_info and line.exc_info[0] else ""
        self.said.append(f"{line.getMessage()} {line.args!r} {trace}")


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("body", [b"<Canary-Doe>", {"error": "Canary-Doe 02/28/1985"}, [7], [{"name": "Canary-Doe"}]])
def test_values_of_a_find_never_leave(
    vendor: Start, status: int, body: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong: no log line, error, chain or repr holds what was asked for or answered."""
    lines, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(lines)
    root.setLevel(logging.DEBUG)
    try:
        server = vendor(lambda asked: Says(status, body, {"Location": "/?name=Canary-Doe"}))
        with pytest.raises(LegacyUnavailable) as raised:
            found(patients(server.api(errors=("error",))), CANARY)
    finally:
        root.removeHandler(lines)
        root.setLevel(level)
    assert server.last.query["name"] == "Canary-Doe"
    told = "".join([*lines.said, *traceback.format_exception(raised.value), repr(raised.value), *capfd.readouterr()])
    assert not [line for line in told.splitlines() if any(canary in line for canary in CANARIES)]
    assert "GET /patients?name={last_name}&dob={birth_date}" in str(raised.value)


def test_values_of_a_find_that_nobody_answers_never_leave(vendor: Start) -> None:
    """A dead API's error names the template, and hangs no request on itself or its chain."""
    server = vendor(lambda asked: Says())
    collection = patients(server.api(base_url="http://127.0.0.1:9/api"))
    with pytest.raises(LegacyUnavailable) as raised:
        found(collection, CANARY)
    told = "".join(traceback.format_exception(raised.value))
    assert not [line for line in told.splitlines() if any(canary in line for canary in CANARIES)]
    assert raised.value.__cause__ is None
