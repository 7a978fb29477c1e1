"""Runs of a comparison: cut off and gone on with, in samples, since a time, before systems that do not answer."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.sync.crosswalk import told
from tests.integration.sync.reconciling import begins, found, reconciles, reconciliation, said
from tests.integration.sync.story import OTHER, PATIENT, Story, condition, patient, practitioner
from worker.errors import LedgerError
from worker.ledger.reconciling import Run, Verdict
from worker.ledger.values import Phase
from worker.legacy import Normal
from worker.mapping import Skip
from worker.reconcile.looking import ApiSilent
from worker.reconcile.passes import Arguments, compared_types
from worker.reconcile.report import report

GET_PATIENT = {"method": "GET", "template": "/api/patients/{uuid}"}
FIND_PATIENT = {"method": "GET", "template": "/api/patients"}


def has_patients(story: Story, number: int) -> None:
    story.changes(*(patient(f"p{each}") for each in range(number)))
    story.settles()


class Cut(Exception):
    """The process is killed here."""


def goes_on_after(story: Story, pages: int, arguments: Arguments) -> tuple[Run, int]:
    """Kill a run after some pages, and go on with it. Returns it at its end, and how often a patient was read."""
    left = [pages]
    keep = story.ledger.keep_page

    def cut(*args: object, **more: object) -> Run:
        if not left[0]:
            raise Cut
        left[0] -= 1
        return keep(*args, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story.ledger, "keep_page", cut)
        with pytest.raises(Cut):
            reconciliation(story).run(begins(story, arguments), arguments)
    unfinished = story.ledger.unfinished_run(arguments.told(story.routes))
    assert unfinished is not None
    assert unfinished.pages == pages
    run = reconciliation(story).run(unfinished, arguments)
    reads = [call for call in story.calls("GET") if call["template"] == "/api/patients/{uuid}"]
    return run, len(reads)


@pytest.mark.parametrize("pages", [1, 2, 4, 6, 8, 9])
def test_wherever_it_is_cut_off_it_goes_on_and_counts_everything_once(
    story: Story, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """In the links, between two passes, in the search, in the list: each record is counted once."""
    monkeypatch.setattr("worker.reconcile.passes.AT_A_TIME", 2)
    has_patients(story, 4)
    story.saves(*(patient(f"n{each}") for each in range(3)))
    story.edits(f"patient/{story.records()[0]['number']}", last_name="Roe")
    run, _ = goes_on_after(story, pages, Arguments(("Patient",)))
    assert run.counts == {"Patient": {"equal": 3, "differs": 1, "missing": 3, "resources": 7, "listed": 4}}
    assert len(found(story, run)) == 4


def test_resources_of_one_moment_are_each_compared_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medplum gives many resources one time; cut off between them, none is left out and none comes twice."""
    monkeypatch.setattr("worker.reconcile.passes.AT_A_TIME", 2)
    story.faults(frozen_clock="2026-01-01T00:00:00.000Z")
    story.saves(*(patient(f"n{each}") for each in range(7)))
    for pages in (2, 3, 4):
        run, _ = goes_on_after(story, pages, Arguments(("Patient",), seed=pages))
        assert run.counts["Patient"]["missing"] == 7
        assert len({each.reference for each in found(story, run)}) == 7


def test_more_of_one_moment_than_a_page_are_all_looked_at(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search by time cannot get beyond them on Medplum: they are gone through by their ids, and then the others."""
    monkeypatch.setattr("worker.reconcile.passes._COUNT", ("_count", "20"))
    story.faults(frozen_clock="2026-01-01T00:00:00.000Z")
    story.saves(*(practitioner(f"n{each}") for each in range(70)))
    story.faults(frozen_clock="2026-01-02T00:00:00.000Z")
    story.saves(practitioner("later"))
    run = reconciles(story, "Practitioner")
    assert run.counts["Practitioner"]["missing"] == 71


def test_a_sample_is_the_same_each_time_and_says_what_it_may_miss(story: Story) -> None:
    """So many of each type by a seed; another seed draws others; the bound is given."""
    has_patients(story, 12)
    for record in story.records():
        story.edits(f"patient/{record['number']}", last_name="Roe")

    def drawn(seed: int) -> list[str]:
        run = reconciles(story, "Patient", sample=4, seed=seed)
        assert run.counts["Patient"] == {"differs": 4, "resources": 4}
        return sorted(each.reference for each in found(story, run) if each.reference)

    assert drawn(1) == drawn(1)
    assert {tuple(drawn(seed)) for seed in range(1, 5)} != {tuple(drawn(1))}
    run = reconciles(story, "Patient", sample=4, seed=1)
    [of_type] = report(story.ledger, run, story.routes, {}).types
    assert (of_type.resources, of_type.known, of_type.at_most) == (4, 12, 12)


def test_a_sample_that_is_cut_off_goes_on_in_the_same_sample(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than were asked for, and the ones that an uncut run draws."""
    monkeypatch.setattr("worker.reconcile.passes.AT_A_TIME", 2)
    has_patients(story, 12)
    run, reads = goes_on_after(story, 2, Arguments(("Patient",), sample=6, seed=3))
    assert (run.counts["Patient"], reads) == ({"equal": 6, "resources": 6}, 6 + 2)


def test_since_a_time_only_what_changed_since_is_compared(story: Story) -> None:
    """A link that was written, a resource that changed, and one that was deleted since then; an old one is left out."""
    has_patients(story, 2)
    old = story.records()[0]["number"]
    story.sql("UPDATE links SET updated_at = '2020-01-01 00:00:00.000000'")
    story.edits(f"patient/{old}", last_name="Roe")
    since = story.reader.search("Patient", {"_count": "1", "_sort": "-_lastUpdated"}, deadline_s=9)
    newest = next(iter(since)).entries[0].last_updated
    assert newest is not None
    story.faults(frozen_clock="2031-01-01T00:00:00.000Z")
    story.saves(patient("p1", family="Poe"))
    run = reconciles(story, "Patient", since=newest + timedelta(milliseconds=1))
    assert said(story, run) == []  # beyond the time at which the run began
    story.faults(frozen_clock=None)
    story.saves(patient("p1", family="Loe"))
    story.removes("Patient/p0")
    run = reconciles(story, "Patient", since=newest + timedelta(milliseconds=1))
    assert said(story, run) == [
        ("Patient/p0", "extra", (), "due"),
        ("Patient/p1", "differs", ("last_name",), "due"),
    ]


def test_how_long_ago_is_counted_from_when_the_run_began(story: Story) -> None:
    """The same words an hour later go on with the same run, from the time that they meant when it began."""
    has_patients(story, 1)
    now = story.reader.server_time()
    assert now is not None
    first = Arguments(("Patient",), since=now - timedelta(hours=2), since_said="2h")
    later = replace(first, since=now + timedelta(hours=1))
    begins(story, first)
    run = story.ledger.unfinished_run(later.told(story.routes))
    assert run is not None
    assert reconciliation(story).run(run, later).counts["Patient"] == {"equal": 1, "resources": 1}


def test_a_record_that_cannot_be_read_is_told_and_does_not_hold_up_the_others(story: Story) -> None:
    """A refusal is an answer and is not asked for again; a failure is, a few times."""
    has_patients(story, 2)
    uuid = story.links("Patient/p0")[0]["keys"]["uuid"]
    story.breaks("status", {"method": "GET", "path": f"/api/patients/{uuid}"}, times=None, status=422)
    run = reconciles(story, "Patient")
    [line] = found(story, run)
    assert (line.reference, line.verdict, line.detail) == (
        "Patient/p0",
        Verdict.UNREADABLE,
        "GET /patients/{uuid} answered 422",
    )
    assert run.counts["Patient"]["equal"] == 1


def test_an_api_that_is_away_ends_the_run_which_goes_on_later(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every record is called unreadable because nobody answers: the run stops where it is."""
    monkeypatch.setattr("worker.reconcile.passes.AT_A_TIME", 4)
    monkeypatch.setattr("worker.reconcile.looking.SILENT_MOST", 3)
    has_patients(story, 6)
    story.breaks("status", GET_PATIENT, times=None, status=503)
    arguments = Arguments(("Patient",))
    with pytest.raises(ApiSilent, match="goes on from here"):
        reconciliation(story).run(begins(story, arguments), arguments)
    story.mends()
    unfinished = story.ledger.unfinished_run(arguments.told(story.routes))
    assert unfinished is not None
    run = reconciliation(story).run(unfinished, arguments)
    assert run.counts["Patient"]["equal"] == 6
    assert found(story, run) == []


def test_whether_there_is_a_second_one_is_not_said_where_nobody_can_look(story: Story) -> None:
    """The record is read and equal; that the look-up was refused is told apart."""
    has_patients(story, 1)
    story.breaks("status", FIND_PATIENT, times=1, status=400)
    run = reconciles(story, "Patient")
    assert run.counts["Patient"]["equal"] == 1
    [line] = found(story, run)
    assert (line.verdict, line.detail.partition(":")[0]) == (
        Verdict.UNREADABLE,
        "whether there is a second record cannot be told",
    )


def test_a_list_that_is_refused_is_told(story: Story) -> None:
    """That what only the legacy system has is not known is a finding, and not silence."""
    has_patients(story, 1)
    story.breaks("status", FIND_PATIENT, times=None, skip=2, status=405)  # a find asks for a second page
    [line] = found(story, reconciles(story, "Patient"))
    assert (line.verdict, line.reference, line.detail.partition(":")[0]) == (
        Verdict.UNREADABLE,
        None,
        "what only the legacy system has cannot be told",
    )


def test_a_change_in_the_middle_of_a_comparison_is_no_difference(story: Story) -> None:
    """Medplum and the clinic change between the two reads: the sync was at it, and nothing is said."""
    has_patients(story, 1)
    story.hooks.before = once(lambda: change_and_sync(story))
    run = reconciles(story, "Patient")
    assert said(story, run) == [("Patient/p0", "in flight", (), "nothing")]
    assert said(story, reconciles(story, "Patient")) == []


def change_and_sync(story: Story) -> None:
    story.changes(patient("p0", family="Roe"))
    story.syncs("Patient/p0")


def once(act: Callable[[], object]) -> Callable[[object], None]:
    left = [act]

    def hook(request: object) -> None:
        if left:
            left.pop()()

    return hook


def test_what_a_mapping_skips_is_kept(story: Story) -> None:
    """Nothing is compared of what the mapping leaves as it is, and it is counted."""
    skips = replace(story.routes["Condition"], function=lambda c, ctx: Skip("left as it is"))
    story.deploys({**story.routes, "Condition": skips})
    story.changes(patient(), condition())
    story.settles()
    run = reconciles(story, "Condition")
    assert (run.counts["Condition"], said(story, run)) == ({"kept": 1, "resources": 1, "listed": 0}, [])


def test_what_nobody_can_tell_from_a_deleted_record_is_no_finding(story: Story) -> None:
    """An API that keeps deleted records, and a declaration that does not say how: a grave is not called a record."""
    has_patients(story, 1)
    story.deletes("Patient/p0")
    story.settles()
    route = story.routes["Patient"]
    silent = replace(route, to=replace(route.to, gone=None, list_by=None))
    arguments = Arguments(("Patient",))
    run = reconciliation(story, routes={**story.routes, "Patient": silent}).run(begins(story, arguments), arguments)
    assert (said(story, run), run.counts["Patient"]) == ([], {"kept": 1, "resources": 1})
    told = report(story.ledger, run, {"Patient": silent}, {}).unseen
    assert any(line.startswith("patient: a deleted record that is back") for line in told)


def test_a_declared_normalisation_is_applied_and_told(story: Story) -> None:
    """What is declared not to count is no difference, and stands in the report."""
    story.changes(patient())
    story.settles()
    story.edits(f"patient/{story.record()['number']}", last_name="DOE")
    assert said(story, reconciles(story, "Patient")) == [(PATIENT, "differs", ("last_name",), "due")]
    route = story.routes["Patient"]
    softer = replace(route, to=replace(route.to, normalise={"last_name": (Normal.CASE,)}))
    routes = {**story.routes, "Patient": softer}
    arguments = Arguments(("Patient",))
    run = reconciliation(story, routes=routes).run(begins(story, arguments), arguments)
    assert said(story, run) == []
    assert "patient.last_name: upper and lower case" in report(story.ledger, run, routes, {}).normalised


def test_what_is_not_live_is_left_out_by_name(story: Story) -> None:
    """A route that only shadows has no records to compare; one that nobody declares is an error."""
    story.ledger.set_phase("Condition", Phase.SHADOW, who="Ada", why="not yet")
    chosen, left = compared_types(story.ledger, story.routes, ("Patient", "Condition"))
    assert (chosen, left) == (("Patient",), {"Condition": "the route is shadow"})
    story.ledger.activate({"Patient": "another"}, who="Ada", why="rolled out")
    assert "another version" in compared_types(story.ledger, story.routes, ("Patient",))[1]["Patient"]
    with pytest.raises(LedgerError, match="no route for Device"):
        compared_types(story.ledger, story.routes, ("Device",))


def test_the_command_line_tells_finds_repairs_and_shows_values_only_when_asked(story: Story, tmp_path: Path) -> None:
    """Table, JSON, CSV and page without a value; --values shows them and is recorded; --repair needs a reason."""
    story.changes(patient(), patient("p2", family="Quarksberg"))
    story.settles()
    story.edits(f"patient/{story.records()[1]['number']}", last_name="Zweistein")
    files = ["--csv", str(tmp_path / "found.csv"), "--html", str(tmp_path / "page.html")]
    plain = told(story, "reconcile", "--type", "Patient", *files)
    assert plain.returncode == 1
    assert f"{OTHER}  differs: last_name" in plain.stdout
    assert re.search(r"Patient +2 of 2 +1 +1 ", plain.stdout)
    everything = (
        plain.stdout
        + plain.stderr
        + "".join(path.read_text() for path in tmp_path.iterdir() if path.suffix in {".csv", ".html"})
    )
    assert "Quarksberg" not in everything
    assert "Zweistein" not in everything
    [line] = csv.DictReader((tmp_path / "found.csv").read_text().splitlines())
    assert (line["verdict"], line["reference"], line["fields"]) == ("differs", OTHER, "last_name")
    assert "1 record is not as Medplum has them" in (tmp_path / "page.html").read_text()
    assert story.sql("SELECT count(*) FROM operator_actions") == [(0,)]
    shown = told(story, "reconcile", "--type", "Patient", "--values").stdout
    assert 'last_name: "Zweistein" → "Quarksberg"' in shown
    assert story.sql("SELECT who, action FROM operator_actions") == [("Ada", "preview")]
    assert told(story, "reconcile", "--repair").returncode == 2
    given = json.loads(told(story, "reconcile", "--type", "Patient", "--repair", "--why", "seen", "--json").stdout)
    assert (given["drift"], given["mends"], given["findings"][0]["reference"]) == (1, {"due": 1}, OTHER)
    assert story.state(OTHER) == "due"
    assert story.sql("SELECT action, why, affected FROM operator_actions WHERE action = 'reconcile'") == [
        ("reconcile", "seen", 1)
    ]
