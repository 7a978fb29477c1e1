"""`reverse-sync preview` of files: with no ledger, no Medplum and no legacy system there."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_cli import ROOT, Run, shell  # noqa: F401  a fixture

PAIRS = ROOT / "tests/fixtures/mappings"


def pair(folder: str) -> str:
    return str(sorted((PAIRS / folder).glob("*.fhir.json"))[0])


def test_a_fixture_is_previewed_without_any_system(shell: Run, tmp_path: Path) -> None:  # noqa: F811
    """A resource in a file is mapped as it stands: braces for what is not known, and no ledger is made."""
    told = shell("preview", pair("condition"))
    assert told.code == 0, told.err
    assert "POST /patients/{patient.uuid}/problems" in told.out
    assert "waits for Patient/" in told.out
    assert not (tmp_path / "ledger.db").exists()
    [record] = shell("preview", pair("condition"), "--json").json["records"]
    assert record["requests"][0]["method"] == "POST"


def test_a_file_has_nothing_to_compare_with(shell: Run) -> None:  # noqa: F811
    """Records belong to references, not to files."""
    told = shell("preview", pair("condition"), "--against-legacy")
    assert (told.code, "goes with a reference" in told.err) == (2, True)


def test_a_file_that_is_no_resource_is_refused(shell: Run, tmp_path: Path) -> None:  # noqa: F811
    """What is no resource is told without quoting it."""
    (tmp_path / "x.json").write_text('{"family": "Quarksberg"}')
    told = shell("preview", str(tmp_path / "x.json"))
    assert told.code == 1
    assert "resourceType is missing" in told.err
    assert "Quarksberg" not in told.err + told.out
