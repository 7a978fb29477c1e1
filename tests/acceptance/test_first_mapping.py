"""The documentation's first mapping, as it is written: each command is run, each file is what stands there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.legacies import PRACTICE
from tests.acceptance.system import ROOT, SECRET, TOKEN, System, started

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

PAGE: Final = ROOT / "docs" / "first-mapping.md"
STEP: Final = re.compile(
    r"(?:^`(?P<path>[^`\n]+)`\n\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$|^<!-- by hand: (?P<hand>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)
ACME: Final = replace(PRACTICE, routes="acme.mappings", types=("Practitioner", "Patient"))
WORKERS: Final = ("worker", "worker2")
WITHIN_S: Final = 60.0
COMMAND_S: Final = 120.0

Json = dict[str, Any]

JANE: Final[Json] = {"resourceType": "Patient", "id": "jane", "name": [{"family": "Doe", "given": ["Jane"]}]}
ALLERGY: Final[Json] = {
    "resourceType": "AllergyIntolerance",
    "id": "1f0c",
    "patient": {"reference": "Patient/jane"},
    "code": {"text": "Penicillin G"},
    "onsetDateTime": "2019",
    "reaction": [
        {"manifestation": [{"text": "Hives"}], "severity": "mild"},
        {"manifestation": [{"text": "Wheezing"}], "severity": "severe"},
    ],
}
OLD: Final[Json] = {name: ALLERGY[name] for name in ("resourceType", "patient", "code")} | {"id": "old"}
BEFORE: Final[Json] = ALLERGY | {"reaction": ALLERGY["reaction"][:1]}


@dataclass(slots=True)
class Reader:
    """Somebody who does what the page says, step by step, in a project of its own."""

    system: System
    project: Path
    said: str = ""
    written: list[str] = field(default_factory=list)

    def follow(self, page: str) -> None:
        """Do every step; fail at the first one that does not do what stands there."""
        steps = list(STEP.finditer(page))
        assert 2 * sum(step["kind"] is not None for step in steps) == len(re.findall("^ *```", page, re.MULTILINE))
        for step in steps:
            match step["kind"], step["path"]:
                case None, None:
                    self._by_hand[step["hand"]]()
                case "sh", None:
                    self.said = "".join(map(self._run, step["text"].splitlines()))
                case "", None:
                    self._is_in(step["text"], self.said)
                case "", path:
                    self._is_in(step["text"], self._file(path).read_text())
                case "json", path:
                    assert self._file(path).read_text() == step["text"], path
                case "python", path:
                    assert self._file(path).exists(), f"{path}: no command has begun it"
                    self._file(path).write_text(step["text"])
                    self.written.append(path)
                case other:
                    raise AssertionError(f"nobody knows what to do with {other}")

    @property
    def _by_hand(self) -> Mapping[str, Callable[[], None]]:
        return {
            "start the workers anew": self._start_the_workers_anew,
            "subscribe AllergyIntolerance": self._subscribe,
            "save AllergyIntolerance/1f0c": self._save,
            "wait until it is written": lambda: self.system.settle(WITHIN_S),
        }

    def _run(self, command: str) -> str:
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.project,
            env={**self.system.settings, "PATH": programs},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _is_in(self, expected: str, text: str) -> None:
        """Find each of the lines; what the page cannot know, as a key that the practice gives, is … there."""
        for line in expected.splitlines():
            pattern = re.escape(line).replace("…", ".+")
            assert re.search(f"^{pattern}$", text, re.MULTILINE), f"not there: {line}\n{text}"

    def _file(self, path: str) -> Path:
        return self.project / path

    def _start_the_workers_anew(self) -> None:
        processes = self.system.processes
        processes.signal(signal.SIGTERM, WORKERS)
        processes.end(WORKERS, WITHIN_S)
        self.system.restart(*WORKERS)

    def _subscribe(self) -> None:
        endpoint = f"{self.system.urls['web']}/medplum"
        self.system.medplum.subscribe("AllergyIntolerance", endpoint, secret=SECRET, authorization=TOKEN)

    def _save(self) -> None:
        self.system.medplum.write([ALLERGY])
        self.system.settle(WITHIN_S)
        assert allergies(self.system) == [], "a shadow sends nothing"


@pytest.fixture
def reader(folder: Path) -> Iterator[Reader]:
    """Lend a project with an API and live patients, in a system of its own, with allergies that nobody has mapped."""
    project = folder / "project"
    begin(project)
    with started(folder, legacy=ACME) as system:
        system.medplum.write([JANE, OLD, BEFORE])
        system.settle(WITHIN_S)
        yield Reader(system, project)


def begin(project: Path) -> None:
    """Make the project where the page begins: the practice's declaration and its patients, in a package."""
    mappings = project / "acme" / "mappings"
    mappings.mkdir(parents=True)
    (project / "acme" / "__init__.py").write_text("")
    (mappings / "__init__.py").write_text('"""The practice, one file for each resource type."""\n')
    declared = (ROOT / "tests" / "acceptance" / "practice_mappings.py").read_text()
    (mappings / "practice.py").write_text(declared.replace("tests.acceptance.times", "acme.times"))
    shutil.copy(ROOT / "tests" / "acceptance" / "times.py", project / "acme")


def allergies(system: System) -> list[Json]:
    """Return what the practice's charts say of allergies."""
    return [record["data"] for name, record in system.clinic.records().items() if name.startswith("allergy/")]


def files(project: Path) -> dict[str, bytes]:
    """Read the project's own files, without what tools keep beside them."""
    paths = (path for path in project.rglob("*") if path.is_file())
    kept = {str(path.relative_to(project)): path for path in paths}
    return {name: path.read_bytes() for name, path in kept.items() if "cache" not in name}


def test_a_new_resource_type_takes_one_file_from_new_mapping_to_a_live_record(reader: Reader) -> None:
    """Who follows the page writes one file, changes no other, and has the allergy in the practice's chart, once."""
    before = files(reader.project)
    reader.follow(PAGE.read_text())
    after = files(reader.project)
    assert reader.written == ["acme/mappings/allergy_intolerance.py"]
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "acme/mappings/allergy_intolerance.py",
        "tests/mappings/test_allergy_intolerance.py",
        "tests/mappings/allergy_intolerance/example.fhir.json",
        "tests/mappings/allergy_intolerance/example.legacy.json",
    }
    assert [name for name, content in after.items() if b"Penicillin" in content] == []
    [held] = allergies(reader.system)
    assert (held["substance"], held["reaction"], held["severity"]) == ("Penicillin G", "Hives; Wheezing", "severe")
    assert held["noted_on"] == "2019-01-01"
    reader.system.assert_accounted()
    changed = ALLERGY | {"code": {"text": "Penicillin V"}}
    reader.system.medplum.write([changed])
    reader.system.settle(WITHIN_S)
    assert [record["substance"] for record in allergies(reader.system)] == ["Penicillin V"]


@pytest.mark.long  # a strict type check from nothing
def test_the_one_file_is_strictly_typed(tmp_path: Path) -> None:
    """mypy has nothing to say of the module that stands on the page."""
    begin(tmp_path)
    [module] = [step for step in STEP.finditer(PAGE.read_text()) if step["kind"] == "python"]
    (tmp_path / module["path"]).write_text(module["text"])
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", module["path"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
