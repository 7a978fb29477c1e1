"""Runs mutants, several at a time, each in a copy of the code, and prints what caught them.

    python -m tests.machine.mutants [NAME …]

Ends with 1 where one survived, or could not be tried, or where the copy without any mutation does not pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.machine.mutants.listed import MUTANTS
from tests.machine.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("worker", "webhook", "deploy", "tests", "docs", "pyproject.toml")
EXAMPLES = "200"
SLOWEST_S = 1200
NONE = Mutant("none", "the code as it is", ())
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    caught_by: str | None
    trouble: str
    seconds: float

    @property
    def good(self) -> bool:
        return not self.trouble and (self.caught_by is not None) is (self.mutant is not NONE)

    def line(self) -> str:
        said = self.caught_by or ("passes" if self.mutant is NONE and not self.trouble else "SURVIVED")
        return f"{self.mutant.name:28} {self.mutant.rule:64} {self.trouble or said} ({self.seconds:.0f} s)"


def main(names: Sequence[str]) -> int:
    """Try these mutants, or all."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant {', '.join(sorted(unknown))}")
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        trials = [pool.submit(judge, mutant) for mutant in (*chosen, _as_it_is(chosen))]
        for trial in as_completed(trials):
            print(f"  … {trial.result().line()}", flush=True)
    verdicts = [trial.result() for trial in trials]
    caught = sum(verdict.good for verdict in verdicts[:-1])
    print("\n".join(verdict.line() for verdict in verdicts))
    print(f"{caught} of {len(chosen)} mutants caught in {time.monotonic() - began:.0f} s")
    return 0 if all(verdict.good for verdict in verdicts) else 1


def judge(mutant: Mutant) -> Verdict:
    """Try one mutant in a copy of its own."""
    began = time.monotonic()
    with copied() as root:
        places = [edit for edit in mutant.edits if edit.places(root) != 1]
        if places:
            return Verdict(mutant, None, f"the old text is not in one place of {places[0].file}", 0)
        for edit in mutant.edits:
            edit.apply(root)
        for asked in mutant.asked:
            caught_by, trouble = _ask(root, asked, mutant)
            if caught_by is not None or trouble:
                return Verdict(mutant, caught_by, trouble, time.monotonic() - began)
    return Verdict(mutant, None, "", time.monotonic() - began)


@contextmanager
def copied() -> Iterator[Path]:
    """Copy what is needed to run tests into a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="reverse-sync-mutant-"))
    try:
        for name in COPIED:
            here, there = ROOT / name, folder / name
            if here.is_dir():
                shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
            elif here.exists():
                shutil.copy(here, there)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_it_is(chosen: Sequence[Mutant]) -> Mutant:
    asked = dict.fromkeys(each for mutant in chosen for each in mutant.asked)
    object.__setattr__(NONE, "asked", tuple(asked))
    return NONE


def _ask(root: Path, asked: str, mutant: Mutant) -> tuple[str | None, str]:
    """Run one test on the copy. Returns what caught the mutant, and what went wrong."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    machine = {"MACHINE_EXAMPLES": EXAMPLES, "MACHINE_SEEDED": "1", "MACHINE_ROUGH": "1"}
    environment = kept | machine | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SLOWEST_S, check=False
        )

    try:
        where = python("-c", "import worker, webhook; print(worker.__file__)")
        if not where.stdout.startswith(str(root)):
            return None, "the copy is not what is imported" if where.returncode == 0 else "it does not import"
        ran = python("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=900", asked)
    except subprocess.TimeoutExpired:
        return None, f"{asked} hangs"
    if ran.returncode == 1:
        found = _FAILED.search(ran.stdout)
        return found[1] if found else asked, ""
    return None, "" if ran.returncode == 0 else f"{asked} cannot be run (pytest ended with {ran.returncode})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
