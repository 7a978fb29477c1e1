"""Attachments as values: which Binary they name, and that nothing is ever taken from another address."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from worker.errors import Unmappable
from worker.legacy import Call, File, LegacyApi, Unsupported
from worker.legacy.file import filled, marked, unmarked
from worker.mapping import Context, Fields, Mapped, Phase, Result, apply, file, route
from worker.mapping.pairs import mapped
from worker.mapping.r4 import DocumentReference
from worker.medplum.resource import model

NOTIFICATIONS = Path(__file__).parents[2] / "fixtures" / "notifications"
ATTEMPTS = sorted(NOTIFICATIONS.glob("02[567]-documentreference-*.json"))
SIGNED = "?Expires=1795347003&Signature=W2Z"

none = Unsupported("not in this test")
letters = LegacyApi("clinic", base_url="https://clinic.example.com", auth=None, zone="UTC").collection(
    "letter", keys=("id",), create=Call("POST /letters"), update="PUT /letters/{id}", delete=none, find=none
)


@route(DocumentReference, to=letters, phase=Phase.LIVE)
def letter(d: DocumentReference, ctx: Context) -> Result:
    fields: Fields = {"title": d.content[0].attachment.title, "pages": [{"content": file(d.content[0].attachment)}]}
    return fields


def document(**attachment: Any) -> bytes:
    body = {
        "resourceType": "DocumentReference",
        "id": "d1",
        "status": "current",
        "content": [{"attachment": attachment}],
    }
    return json.dumps(body).encode()


def named(**attachment: Any) -> File | None:
    read = model(document(**attachment))
    assert isinstance(read, DocumentReference)
    return file(read.content[0].attachment)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("Binary/b1", File("b1")),
        ("Binary/b1/_history/v2", File("b1", "v2")),
        ("https://api.medplum.com/fhir/R4/Binary/b1", File("b1", base="https://api.medplum.com/fhir/R4/")),
        (f"https://storage.medplum.com/binary/b1/v2{SIGNED}", File("b1", "v2")),
        (f"http://localhost:8103/storage/b1/v2{SIGNED}", File("b1", "v2")),
    ],
)
def test_a_url_names_a_binary(url: str, found: File) -> None:
    """As it was written, or presigned as Medplum sends it."""
    assert named(url=url) == found


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example.com/letter.pdf",
        f"https://files.example.com/letters/17{SIGNED}",
        "https://storage.medplum.com/binary/b1/v2",
        f"https://storage.medplum.com/binary/../b1{SIGNED}",
        "Binary/..",
        "Binary/b1/../../Patient/p1",
        "Patient/p1",
        "file:///etc/passwd",
    ],
)
def test_what_names_no_binary_is_refused(url: str) -> None:
    """Nothing is fetched because of a foreign address, and a path leads nowhere else; the words hold no URL."""
    with pytest.raises(Unmappable) as refused:
        named(url=url)
    assert "example" not in str(refused.value)


def test_a_binary_of_another_server_is_no_file_of_ours() -> None:
    """An absolute reference is ours below our Medplum's address alone: the same id elsewhere is another file."""
    shown = {"record": "letter", "fields": {"title": None, "pages": [{"content": "→ Binary/b1"}]}}
    assert mapped(letter, document(url="https://api.medplum.com/fhir/R4/Binary/b1")) == [shown]
    for url in ("https://other.example/fhir/R4/Binary/b1", "https://api.medplum.com.example/fhir/R4/Binary/b1"):
        refused = mapped(letter, document(url=url))
        assert isinstance(refused, dict)
        assert refused["why"] == "an attachment of another server"


def test_content_in_the_resource_itself_is_the_content() -> None:
    """Base64 as it came; an attachment that is not there is none, and one without anything is refused."""
    assert named(data="aGk=") == File(data="aGk=")
    assert file(None) is None
    with pytest.raises(Unmappable):
        named(title="letter.pdf")


def digest(body: bytes) -> bytes:
    read = model(body)
    result = apply(letter, read, Context.of(read, zone="UTC", medplum="https://api.medplum.com"))
    assert isinstance(result, Mapped)
    return result.records[0].canonical()


def test_another_signature_is_no_change_and_another_content_is() -> None:
    """The recorded attempts of one event differ in signatures alone; another version of the Binary is another file."""
    bodies = [base64.b64decode(json.loads(path.read_text(encoding="utf-8"))["body_base64"]) for path in ATTEMPTS]
    assert len(set(bodies)) > 1
    assert len(set(map(digest, bodies))) == 1
    url = "https://storage.medplum.com/binary/b1/{}" + SIGNED
    assert digest(document(url=url.format("v1"))) != digest(document(url=url.format("v2")))
    assert digest(document(data="aGk=")) != digest(document(data="aG8="))


def test_a_fixture_pair_shows_the_name() -> None:
    """Without a network: where the file is, not what it holds."""
    assert mapped(letter, document(url="Binary/b1", title="Letter")) == [
        {"record": "letter", "fields": {"title": "Letter", "pages": [{"content": "→ Binary/b1"}]}}
    ]


def test_the_ledger_keeps_the_name_and_gives_the_file_back() -> None:
    """What is announced holds no content but what stood in the resource, and can be sent again as it was."""
    fields = {"a": File("b1", "v1"), "of": [{"c": File(data="aGk=")}], "n": 7}
    kept = json.loads(json.dumps(marked(fields)))
    assert unmarked(kept) == fields
    assert filled(unmarked(kept), lambda each: each.data or "Y29udGVudA==") == {
        "a": "Y29udGVudA==",
        "of": [{"c": "aGk="}],
        "n": 7,
    }


@pytest.mark.parametrize("sent", [File("b1"), marked(File("b1"))])
def test_the_content_of_a_file_is_not_compared(sent: object) -> None:
    """Neither when it is mapped nor as it was announced; what stands beside it is."""
    assert letters.differing({"page": sent, "title": "Letter"}, {"page": "aGk=", "title": "Letters"}) == ("title",)


def test_a_file_has_no_content_in_what_it_says_of_itself() -> None:
    """Neither in its text nor in its repr."""
    assert "aGk=" not in f"{File(data='aGk=')} {File(data='aGk=')!r}"
