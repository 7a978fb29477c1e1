"""The page that a lead reads: what it says, that it needs nothing from elsewhere, and that a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from worker.cli.reconciled import of as in_words
from worker.ledger.reconciling import Finding, KeptFinding, Mend, Verdict
from worker.reconcile.page import render
from worker.reconcile.report import OfType, Report

NOW = datetime(2026, 11, 29, 6, 0, tzinfo=UTC)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def of_type(name: str, resources: int, at_most: int | None = None, **counts: int) -> OfType:
    told = {verdict.value: counts.get(verdict.name.lower(), 0) for verdict in Verdict}
    return OfType(name, resources, resources + 5, 0, told, at_most)


def found(number: int, verdict: Verdict = Verdict.DIFFERS, **more: object) -> KeptFinding:
    values = {"reference": f"Patient/p{number}", "fields": ("last_name",), "mend": Mend.DUE, **more}
    return KeptFinding(number, NOW, Finding("Patient", verdict, "patient", **values))  # type: ignore[arg-type]


def told(*types: OfType, sample: int | None = None, finished: bool = True) -> Report:
    return Report(
        run=7,
        who="Ada <b>",
        started_at=NOW - timedelta(minutes=9),
        compared_at=NOW - timedelta(minutes=4),
        finished=finished,
        sample=sample,
        seed=3 if sample else None,
        since=None,
        repair=False,
        types=types,
        left_out={"Device": "the route is shadow"},
        mends={"due": 2, "person": 1},
        reasons=(("Patient", "unreadable", "GET /patients/{uuid} answered 500", 1),),
        normalised=("patient.last_name: upper and lower case",),
        unseen=("visit: records that only the legacy system has, because no list is declared",),
    )


def page(report: Report, *kept: KeptFinding) -> str:
    return render(report, kept, now=NOW)


def test_the_first_sentence_is_what_a_lead_wants_to_know() -> None:
    """How many are wrong, apart from those that could not be judged; or that all is well; and how old that is."""
    wrong = page(told(of_type("Patient", 100, equal=97, differs=2, unreadable=1)))
    assert "2 records are not as Medplum has them, 1 could not be judged." in wrong
    assert "4 min before this page was made" in wrong
    assert "Every record that was judged is as Medplum has it." in page(told(of_type("Patient", 100, equal=100)))
    assert "so far: the run was broken off" in page(told(of_type("Patient", 1, equal=1), finished=False))


def test_a_sample_says_that_it_is_one_and_what_it_may_miss() -> None:
    """The bound stands with the figures, the size and the seed in the head."""
    shown = page(told(of_type("Patient", 100, 33, equal=100), sample=100))
    assert "in a sample of 100 of each type" in shown
    assert "at most (95 %)" in shown
    assert '<td class="number">33</td>' in shown
    assert "seed 3" in shown


def test_few_in_a_million_can_be_seen() -> None:
    """What is not equal gets a sliver of its bar, and all slivers together are as long as the bar."""
    shown = page(told(of_type("Patient", 1_000_000, equal=999_997, differs=3)))
    widths = [float(width) for width in re.findall(r'<rect [^>]* width="([\d.]+)"', shown)]
    assert len(widths) == 2
    assert min(widths) >= 3.9
    assert sum(widths) == pytest.approx(790, abs=0.2)


def test_it_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    """No address, script or image stands in it, and what somebody else wrote is shown as text."""
    shown = page(told(of_type("Patient", 3, differs=1)), found(1, detail="<script>alert(1)</script>"))
    assert not re.search(r"https?://|<script|src=|@import|url\(", shown)
    assert "Ada &lt;b&gt;" in shown
    assert "&lt;script&gt;" in shown


def test_a_long_list_is_cut_and_says_where_the_rest_is() -> None:
    """A page of a million findings would be read by nobody."""
    shown = page(told(of_type("Patient", 1000, differs=400)), *(found(number) for number in range(400)))
    assert shown.count("<code>Patient/p") == 300
    assert "and 100 more" in shown


def test_a_terminal_is_told_the_same() -> None:
    """Table, findings, reasons, what does not count and what cannot be seen, and what can be done."""
    lines = list(in_words(told(of_type("Patient", 100, equal=98, differs=2)), [found(1), found(2)], now=NOW))
    assert lines[0].startswith("run 7: 2 records are not as Medplum has them; compared 4 min 0 s ago")
    assert "Patient/p1  differs: last_name" in lines
    assert "Device: not compared: the route is shadow" in lines
    assert "Patient, unreadable  1 × GET /patients/{uuid} answered 500" in lines
    assert lines[-2:] == [
        "2 findings can be mended by the sync: --repair --why … marks them due",
        "1 finding need a person: each says what to look at",
    ]


@pytest.mark.browser
def test_a_browser_shows_the_page(tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    """Chromium draws a bar for each type, in the page's own colours, under its own security policy."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        missing("there is no Chromium: apt-get install chromium")
    file = tmp_path / "page.html"
    types = of_type("Patient", 100, equal=98, differs=2), of_type("Condition", 40, equal=40)
    measure = "<script>document.title = 'it ran'</script>"  # the page's policy forbids it
    file.write_text(page(told(*types), found(1)).replace("</body>", f"{measure}</body>"), encoding="utf-8")
    shown = subprocess.run(
        [browser, *CHROMIUM, f"--user-data-dir={tmp_path}/profile", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    ).stdout
    assert "<title>Reconciliation, run 7</title>" in shown
    assert shown.count("<rect ") == 3
    assert shown.index("2 records are not as Medplum has them") < shown.index("<svg")
    assert "it ran" not in shown.partition("<body>")[0]
