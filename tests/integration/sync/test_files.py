"""Files: read from our own Medplum when a write carries them, and known by name everywhere else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.legacy.vendor import Asked, Says, Vendor
from tests.integration.sync.story import BOUND_S, Story, only
from tests.integration.sync.test_preview import previews
from worker.legacy import Call, Find
from worker.mapping import Context, Phase, Result, file, required, route
from worker.mapping.r4 import DocumentReference
from worker.sync import End

LETTER = "DocumentReference/d1"
CONTENT = b"%PDF-1.7 a letter \xff"


class Archive:
    """A legacy system that keeps documents, and has a lost answer on demand."""

    def __init__(self) -> None:
        self.held: dict[int, dict[str, Any]] = {}
        self.fails_with: int | None = None

    def __call__(self, asked: Asked) -> Says:
        if asked.method == "GET":
            return Says(200, [{**record, "id": key} for key, record in self.held.items()])
        key = len(self.held) + 1 if asked.method == "POST" else int(asked.path.rpartition("/")[2])
        self.held[key] = asked.json()
        if self.fails_with is not None:
            status, self.fails_with = self.fails_with, None
            return Says(status)
        return Says(201, {"id": key})


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def vendor(story: Story, archive: Archive) -> Iterator[Vendor]:
    """Route documents to an archive that takes them as base64."""
    with Vendor(archive) as vendor:
        api = vendor.api()
        documents = api.collection(
            "document",
            keys=("id",),
            create=Call("POST /documents"),
            update="PUT /documents/{id}",
            delete="DELETE /documents/{id}",
            find=Find("GET /documents", match=("fhir_id",)),
        )

        @route(DocumentReference, to=documents, phase=Phase.LIVE)
        def letter(d: DocumentReference, ctx: Context) -> Result:
            attachment = d.content[0].attachment
            return {"title": attachment.title, "content": required(file(attachment)), "fhir_id": ctx.fhir_id}

        story.routes = {**story.routes, "DocumentReference": letter}
        story.ledger.register_routes({name: (each.phase, each.version) for name, each in story.routes.items()})
        yield vendor
        api.close()


def binary(content: bytes = CONTENT, **more: Any) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"resourceType": "Binary", "id": "b1", "contentType": "application/pdf", "data": data, **more}


def letter(title: str = "Letter", url: str = "Binary/b1") -> dict[str, Any]:
    attachment = {"title": title, "contentType": "application/pdf", "url": url}
    return {
        "resourceType": "DocumentReference",
        "id": "d1",
        "status": "current",
        "content": [{"attachment": attachment}],
    }


def test_a_file_is_sent_with_its_content(story: Story, archive: Archive, vendor: Vendor) -> None:
    """The presigned URL that Medplum gives is not called: its Binary is read from Medplum, byte for byte."""
    story.saves(binary())
    story.changes(letter())
    assert story.syncs(LETTER).kind is End.DONE
    assert base64.b64decode(archive.held[1]["content"]) == CONTENT
    assert story.dispositions(LETTER) == ["applied"]


def test_a_new_signature_alone_writes_nothing(story: Story, archive: Archive, vendor: Vendor) -> None:
    """Each read brings another URL for the same content: unchanged, and the file is not even read."""
    story.saves(binary())
    story.changes(letter())
    story.settles()
    story.changes(letter() | {"description": "which nobody maps"})
    story.settles()
    assert story.dispositions(LETTER) == ["applied", "unchanged"]
    assert [asked.method for asked in vendor.asked] == ["POST"]


def test_the_ledger_holds_no_content(story: Story, vendor: Vendor) -> None:
    """What was announced knows the file by name."""
    story.saves(binary())
    story.changes(letter())
    story.settles()
    sent = story.ledger.last_sent(LETTER, "")
    assert sent is not None
    assert sent["content"] == {"→ file": {"binary": "b1", "version": "current", "data": ""}}


def test_a_create_with_a_file_that_was_saved_and_answered_by_500_is_found(
    story: Story, archive: Archive, vendor: Vendor
) -> None:
    """Its record is told by everything else, and there is one (protocol 3d)."""
    story.saves(binary())
    story.changes(letter())
    archive.fails_with = 500
    assert story.syncs(LETTER).kind is End.AGAIN
    story.clock.forward(BOUND_S)
    story.settles()
    assert list(archive.held) == [1]
    assert only(story.links(LETTER))["keys"] == {"id": 1}


def test_a_file_that_is_not_there_needs_a_person(story: Story, archive: Archive, vendor: Vendor) -> None:
    """Nothing is sent without it: failed, in words; once it is there, a new version goes through."""
    story.changes(letter())
    story.settles()
    assert (story.state(LETTER), story.mirror(LETTER)["reason"]) == ("failed", "invalid")
    assert "Binary" in story.mirror(LETTER)["detail"]
    assert vendor.asked == []
    story.saves(binary())
    story.changes(letter("Letter again"))
    story.settles()
    assert story.state(LETTER) == "current"


def test_a_medplum_that_does_not_answer_for_a_file_is_asked_later(
    story: Story, archive: Archive, vendor: Vendor
) -> None:
    """It is Medplum's trouble, not the resource's: again by itself, and nothing was announced."""
    story.saves(binary())
    story.changes(letter())
    story.faults(api=[{"types": ["Binary"], "status": 503, "times": 1}])
    assert story.syncs(LETTER).kind is End.AGAIN
    assert story.shown(LETTER)["writes"] == []
    story.settles()
    assert story.state(LETTER) == "current"


def test_a_preview_names_the_file_and_reads_it_not(story: Story, vendor: Vendor) -> None:
    """Where the content would stand, the Binary is named: nothing is read but the resource."""
    story.saves(letter())
    [planned] = previews(story, LETTER).records[0].requests
    assert planned.body == {"title": "Letter", "content": "→ Binary/b1", "fhir_id": "d1"}
    assert vendor.asked == []


def test_a_foreign_address_is_never_called(story: Story, vendor: Vendor) -> None:
    """A URL that names no Binary is unmappable, and nobody is asked for it."""
    story.changes(letter(url=f"{vendor.url}/letter.pdf"))
    story.settles()
    assert (story.state(LETTER), story.mirror(LETTER)["reason"]) == ("failed", "unmappable")
    assert vendor.asked == []
