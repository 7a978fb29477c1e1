"""The beginning of a mapping: what it takes from resources, what it makes up, and the files that it writes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.errors import RoutesInvalid
from worker.mapping.r4 import AllergyIntolerance, Encounter, Observation, Patient
from worker.scaffold.elements import seen
from worker.scaffold.files import begin
from worker.scaffold.synthetic import kind, made_up

ROOT = Path(__file__).parents[3]
CANARY = "Zzyzx"

API = """\
from worker.legacy import LegacyApi

api = LegacyApi("practice", base_url="https://practice.example.com", auth=None, zone="UTC")
"""


def encounter(**more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": CANARY,
        "status": "finished",
        "class": {"code": CANARY},
        "subject": {"reference": f"Patient/{CANARY}", "display": CANARY},
        "period": {"start": "2026-11-01T10:00:00Z"},
        "_status": {"id": CANARY},
        **more,
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of mappings of its own, with an API and no mapping yet."""
    name = f"acme_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text('"""Mappings."""\n')
    (tmp_path / name / "practice.py").write_text(API)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module(f"{name}.practice")
    return name


def test_elements_are_counted_once_for_each_resource() -> None:
    """An element counts for a resource however often it is in a list, and what surrounds content is left out."""
    found = seen([encounter(), encounter(participant=[{"period": {}}, {"period": {}}]), encounter(meta={"a": 1})])
    assert found.looked_at == 3
    assert found.share(("status",)) == 100
    assert found.share(("participant", "period")) == 33
    assert ("meta",) not in found.carried
    assert ("_status",) not in found.carried
    assert ("subject",) not in found.leaves
    assert ("subject", "reference") in found.leaves


def test_what_is_made_up_is_a_resource_and_holds_no_value_that_was_seen() -> None:
    """The fixture has the elements that were seen, the models take it, and no value of theirs is in it."""
    made = made_up(Encounter, seen([encounter()]).leaves)
    assert CANARY not in json.dumps(made)
    assert made["class"] == {"code": "example"}
    assert made["subject"]["reference"].startswith(("Patient/", "Group/"))
    Encounter.model_validate(made)


def test_of_a_choice_one_is_made_up() -> None:
    """Two resources that carry different types of one element make a fixture with the more usual one."""
    seen_both = seen([{"deceasedDateTime": "2001"}, {"deceasedDateTime": "2001"}, {"deceasedBoolean": True}])
    made = made_up(Patient, seen_both.leaves)
    assert made["deceasedDateTime"] == "2001-02-03T10:15:00Z"
    Patient.model_validate(made)


def test_a_list_that_is_required_is_made_up_as_a_list() -> None:
    """Lists that have to be there are lists, too: those of resources inside, as those of the resource."""
    reaction = made_up(AllergyIntolerance, [("reaction", "manifestation", "text"), ("patient", "reference")])
    assert reaction["reaction"] == [{"manifestation": [{"text": "Example text"}]}]
    AllergyIntolerance.model_validate(reaction)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("valueQuantity", "value"), "Decimal"),
        (("effectiveDateTime",), "DateTime"),
        (("component", "code", "coding", "code"), "Code"),
        (("nothing",), ""),
    ],
)
def test_the_type_of_an_element_comes_from_the_model(path: tuple[str, ...], name: str) -> None:
    """However deep an element is, its FHIR type is known."""
    assert kind(Observation, path) == name


@pytest.mark.timeout(180)  # without mypy's cache it takes long
def test_the_files_work_as_they_are_written(package: str, tmp_path: Path) -> None:
    """The new module imports, type-checks strictly and passes its own new test, before anybody has touched it."""
    begin(package, Encounter, seen([encounter()]), tests=tmp_path / "tests").write()
    module = (tmp_path / package / "encounter.py").read_text()
    assert CANARY not in module
    assert '# 100 %  subject.reference: link(e.subject, "id")' in module
    assert "class.code: within e.class_fhir" in module
    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--import-mode=importlib"]
    tested = [sys.executable, "-m", "pytest", *options, str(tmp_path / "tests")]
    run(tested, tmp_path)
    checked = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    checked += ["--cache-dir", str(ROOT / ".mypy_cache")]  # where `make check` has read the libraries already
    run([*checked, f"{package}/encounter.py"], tmp_path)


def test_update_is_offered_once_however_often_it_is_asked_for(package: str, tmp_path: Path) -> None:
    """The command that new-mapping names next works beside a conftest that has imported the option, too."""
    begin(package, Encounter, seen([encounter()]), tests=tmp_path / "tests").write()
    (tmp_path / "tests" / "conftest.py").write_text("from worker.mapping.pairs import pytest_addoption\n")
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--import-mode=importlib",
        "-p",
        "worker.mapping.pairs",
    ]
    run([sys.executable, "-m", "pytest", *options, "--update", str(tmp_path / "tests")], tmp_path)


def run(command: list[str], folder: Path) -> None:
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=160
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_nothing_is_written_over(package: str, tmp_path: Path) -> None:
    """Where one of the files is there already, it is named and none is written."""
    beginning = begin(package, Encounter, seen([]), tests=tmp_path / "tests")
    (tmp_path / package / "encounter.py").write_text("mine")
    with pytest.raises(RoutesInvalid, match=r"encounter\.py"):
        beginning.write()
    assert (tmp_path / package / "encounter.py").read_text() == "mine"
    assert not (tmp_path / "tests").exists()


def test_a_module_that_is_no_package_is_refused() -> None:
    """Each type has a file of its own, so the mappings have to be a package."""
    with pytest.raises(RoutesInvalid, match="make it a package"):
        begin("worker.errors", Encounter, seen([]), tests=Path("tests"))


def test_without_an_api_there_is_nothing_to_map_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without a LegacyApi is told to begin with that."""
    (tmp_path / "bare_acme").mkdir()
    (tmp_path / "bare_acme" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RoutesInvalid, match="no LegacyApi"):
        begin("bare_acme", Encounter, seen([]), tests=tmp_path)
