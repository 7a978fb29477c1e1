"""The README's two commands, up to where the environment's own programs take over; and what is locked."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"^[a-z0-9.-]+", re.IGNORECASE)

PYTHONS = ["python3", "python3.11", "python3.12", "python3.13", "python3.14"]

# Stands in for uv: writes down what it is asked, and makes what uv would, with the path inside that uv would write.
FAKE_UV = """
import os, sys
from pathlib import Path

with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("FAIL_AT", "nowhere") in sys.argv:
    sys.exit(1)
if sys.argv[1] == "venv":
    programs = Path(sys.argv[-1]) / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
if "--editable" in sys.argv:
    python = next(a for a in sys.argv if a.startswith("--python=")).removeprefix("--python=")
    program = Path(python).with_name("reverse-sync")
    program.write_text(f'#!/bin/sh\\nexec "{python}" -c "import sys; print(*sys.argv[1:])" "$@"\\n')
    program.chmod(0o755)
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout of its own, with uv's stand-in first on PATH."""

    root: Path

    def make(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the script behind the Makefile."""
        path = f"{self.root / 'fakes'}:/usr/bin:/bin"
        return subprocess.run(
            [sys.executable, self.root / "deploy" / "make.py", *arguments],
            env={"PATH": path, "CALLS": str(self.root / "calls"), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def installs(self) -> int:
        """Count how often an environment was filled."""
        calls = self.root / "calls"
        return calls.read_text().count("--require-hashes") if calls.exists() else 0

    def fake(self, name: str, text: str) -> None:
        """Put a program on PATH."""
        program = self.root / "fakes" / name
        program.write_text(text)
        program.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """Copy the script and the locks to a place whose name has a space, with no real uv or python3 in reach."""
    root = tmp_path / "a checkout"
    (root / "deploy").mkdir(parents=True)
    (root / "fakes").mkdir()
    shutil.copy(ROOT / "deploy" / "make.py", root / "deploy")
    shutil.copytree(ROOT / "requirements", root / "requirements")
    made = Checkout(root)
    (root / "fakes" / "uv.py").write_text(FAKE_UV)
    made.fake("uv", f'#!/bin/sh\nexec "{sys.executable}" "$0.py" "$@"\n')
    for name in PYTHONS:
        made.fake(name, "#!/bin/sh\nexit 127\n")
    return made


@pytest.fixture
def script() -> ModuleType:
    """Import the script behind the Makefile."""
    spec = importlib.util.spec_from_file_location("make_script", ROOT / "deploy" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(name: str) -> dict[str, str]:
    """Read a lock as requirement → version, hashes checked on the way."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert all("--hash=sha256:" in line for line in lines)
    return dict(line.split("--hash")[0].strip().split("==", 1) for line in lines)


def test_the_environment_is_whole_and_knows_its_final_place(checkout: Checkout) -> None:
    """What was built under another name runs, passes its arguments on, and names the other name nowhere."""
    done = checkout.make("demo", "--once")
    program = checkout.root / ".venv" / "bin" / "reverse-sync"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "demo --once"
    assert ".venv.new" not in program.read_text()
    assert not (checkout.root / ".venv.new").exists()


def test_what_is_ready_is_not_made_again(checkout: Checkout) -> None:
    """A second demo installs nothing."""
    checkout.make("demo")
    assert checkout.make("demo").returncode == 0
    assert checkout.installs() == 1


def test_a_half_made_environment_is_healed(checkout: Checkout) -> None:
    """A folder without the stamp, such as a failed `python3 -m venv` leaves, is replaced; so is a half of our own."""
    for half in (".venv", ".venv.new", ".venv.old"):
        (checkout.root / half / "bin").mkdir(parents=True)
    assert checkout.make("demo").returncode == 0
    assert sorted(path.name for path in checkout.root.glob(".venv*")) == [".venv", ".venv.lock"]


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    """A system upgrade can take away the interpreter under a finished environment."""
    checkout.make("demo")
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert checkout.make("demo").returncode == 0
    assert checkout.installs() == 2


def test_an_environment_that_was_moved_is_made_again(checkout: Checkout) -> None:
    """Its scripts would start the interpreter of the old place, or none."""
    checkout.make("demo")
    moved = Checkout(checkout.root.rename(checkout.root.with_name("moved")))
    assert moved.make("demo").returncode == 0
    assert moved.installs() == 2


def test_a_changed_lock_is_installed(checkout: Checkout) -> None:
    """The stamp holds the lock's hash: what runs is what is pinned."""
    checkout.make("demo")
    lock = checkout.root / "requirements" / "run.txt"
    lock.write_text(lock.read_text() + "# another day\n")
    assert checkout.make("demo").returncode == 0
    assert checkout.installs() == 2


def test_the_demo_takes_runtime_packages_alone_and_the_environment_of_the_tests_too(checkout: Checkout) -> None:
    """`demo` installs run.txt; where test.txt is there already, it is enough."""
    checkout.make("demo")
    assert "test.txt" not in (checkout.root / "calls").read_text()
    checkout.make("bench")
    assert "test.txt" in (checkout.root / "calls").read_text()
    checkout.make("demo")
    assert checkout.installs() == 2


def test_a_failed_install_leaves_what_was_there(checkout: Checkout) -> None:
    """The step that failed is named, and the environment of before still stands."""
    checkout.make("demo")
    before = (checkout.root / ".venv" / "complete").read_text()
    lock = checkout.root / "requirements" / "run.txt"
    lock.write_text(lock.read_text() + "# another day\n")
    failed = checkout.make("demo", FAIL_AT="--require-hashes")
    assert failed.returncode != 0
    assert "this step failed" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (checkout.root / ".venv" / "complete").read_text() == before


def test_a_python_that_is_too_old_is_named_with_the_way_to_a_newer_one(checkout: Checkout) -> None:
    """No uv, and pythons that do not do: the error says which are there, what is needed, and what to type."""
    checkout.fake("uv", "#!/bin/sh\nexit 127\n")
    checkout.fake("python3", "#!/bin/sh\necho 3 9\n")
    failed = checkout.make("demo")
    assert failed.returncode != 0
    assert "Python 3.11 to 3.14 is needed, and python3 is 3.9. Install it" in failed.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_python_without_venv_is_named_before_it_leaves_half_a_folder(checkout: Checkout) -> None:
    """Bare Debian's python3 lacks ensurepip: nothing is begun with it."""
    checkout.fake("uv", "#!/bin/sh\nexit 127\n")
    checkout.fake("python3.11", "#!/bin/sh\necho 3 11\nexit 1\n")
    failed = checkout.make("test")
    assert failed.returncode != 0
    assert "Python 3.11 is here, but not its venv module. Install it" in failed.stderr
    assert not list(checkout.root.glob(".venv.new"))


@pytest.mark.parametrize(
    ("os_release", "line"),
    [
        ("ID=debian\n", "sudo apt-get install python3.11 python3.11-venv"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "sudo apt-get install python3.11 python3.11-venv"),
        ("ID=fedora\n", "sudo dnf install python3.12"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "sudo dnf install python3.12"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "sudo zypper install python312"),
        ("ID=arch\n", "sudo pacman -S python"),
        ("ID=plan9\n", "with this system's packages"),
    ],
)
def test_each_system_is_told_its_own_line(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, os_release: str, line: str
) -> None:
    """The family is read from os-release, ID before ID_LIKE; an unknown one is told so in words."""
    (tmp_path / "os-release").write_text(os_release)
    monkeypatch.setattr(script, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert line in script.advice("python", "3.11")


def test_macos_is_told_its_own_line(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homebrew refuses to run as root, so its line has no sudo."""
    monkeypatch.setattr("sys.platform", "darwin")
    assert script.advice("python").startswith("Install it: brew install python")


def test_clean_leaves_the_ledgers(checkout: Checkout) -> None:
    """Everything that can be made again goes; var/ stays."""
    checkout.make("demo")
    (checkout.root / "var").mkdir()
    (checkout.root / "var" / "ledger.db").write_text("rows")
    assert checkout.make("clean").returncode == 0
    assert not (checkout.root / ".venv").exists()
    assert (checkout.root / "var" / "ledger.db").read_text() == "rows"


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_a_lock_names_no_place(name: str) -> None:
    """Pins and hashes are all that a lock says: no registry, no file of the machine that made it."""
    text = (ROOT / "requirements" / name).read_text()
    assert not re.search(r"://|file:|--index|--find-links|--trusted|^/|\s/", text, re.MULTILINE)


def test_what_is_tested_is_what_runs() -> None:
    """Every pin of the runtime is the same pin in the tests' lock."""
    assert locked("run.txt").items() <= locked("test.txt").items()


def test_every_declared_dependency_is_locked() -> None:
    """A dependency that pyproject.toml gained without `make lock` is found here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = declared["project"]
    runtime = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    for lock, wanted in {"run.txt": runtime, "test.txt": declared["dependency-groups"]["test"]}.items():
        names = {NAME.match(entry).group().lower().replace(".", "-") for entry in wanted}  # type: ignore[union-attr]
        assert names <= {NAME.match(entry).group() for entry in locked(lock)}  # type: ignore[union-attr]


def test_the_makefile_knows_what_its_script_knows(script: ModuleType) -> None:
    """Each target of the Makefile is in the help, and the other way round."""
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    assert set(targets[1].split()) - {"help"} == set(re.findall(r"^make (\w+)", script.HELP, re.MULTILINE))


def test_the_wheel_has_all_that_the_packages_need(tmp_path: Path) -> None:
    """Scripts for the broker, migrations and pages travel with the code; the sandbox and the tests do not."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for package in ("worker", "webhook", "deploy"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"import setuptools.build_meta as b; print(b.build_wheel({str(tmp_path)!r}))"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build], cwd=source, capture_output=True, timeout=50, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(source)) for top in ("worker", "webhook") for path in (source / top).rglob("*.*")}
    assert wanted <= inside
    assert not [name for name in inside if not name.startswith(("worker/", "webhook/"))]


def test_no_setting_of_the_shell_reaches_a_test() -> None:
    """A developer's own DATABASE_URL is forgotten before the first test: no test can touch a ledger in use."""
    assert not [name for name in os.environ if name.startswith(("REVERSE_SYNC_", "DATABASE_URL", "REDIS_URL"))]
