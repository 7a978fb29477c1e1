"""Behind the Makefile: makes the virtual environment where it is missing, then becomes the command in it.

It runs on whatever python3 a system has (3.8 or later), because finding a newer one is its first task; so it imports
the standard library alone. It installs nothing outside this checkout, but for the browser in CI.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
NEW = ROOT / ".venv.new"
OLD = ROOT / ".venv.old"

PYTHONS = ["python3", "python3.14", "python3.13", "python3.12", "python3.11"]
OLDEST, NEWEST = (3, 11), (3, 14)  # the locks' wheels exist for these

# `run` is everything that serves, `test` is that and the tools: an environment of `test` does for both.
LOCKS = {"run": ROOT / "requirements" / "run.txt", "test": ROOT / "requirements" / "test.txt"}
LOCKED = {
    "run": ["--extra=postgres", "--extra=broker", "--group=install"],
    "test": [
        "--extra=postgres",
        "--extra=broker",
        "--group=install",
        "--group=test",
        "--constraint=requirements/run.txt",
    ],
}
COMPILE = ["pip", "compile", "--quiet", "--no-config", "--universal", "--python-version=3.11", "--generate-hashes"]
COMPILE += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command=make lock", "pyproject.toml"]

# By file, so that what a file starts once serves all its tests; three at a time, because most wait for processes; in
# the order of testpaths, the longest first: else files with few tests would be left for the end, one behind the other.
SIDE_BY_SIDE = ["--numprocesses=3", "--dist=loadfile", "--no-loadscope-reorder"]

CHECKS = [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"], ["lint-imports", "--no-logo"]]
LEFTOVERS = [".hypothesis", ".import_linter_cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", "build", "dist"]

OS_RELEASE = Path("/etc/os-release")
FAMILIES = {
    "debian": "debian",
    "ubuntu": "debian",
    "fedora": "fedora",
    "rhel": "fedora",
    "suse": "suse",
    "arch": "arch",
}
INSTALL = {
    "debian": {"python": "apt-get install python3 python3-venv", "browser": "apt-get install chromium"},
    "fedora": {"python": "dnf install python3.12", "browser": "dnf install chromium"},
    "suse": {"python": "zypper install python312", "browser": "zypper install chromium"},
    "arch": {"python": "pacman -S python", "browser": "pacman -S chromium"},
    "macos": {"python": "brew install python@3.13", "browser": "brew install --cask google-chrome"},
}

HELP = """\
make demo     watch notifications become legacy records, on this machine alone (ARGS=--once: end by itself)
make test     make check, then every test that ends within minutes (ARGS='-k broker': some of them)
make check    format, lint, strict types, import contract
make bench    measure, print the ratios and write docs/benchmarks.md
make chaos    kill, freeze and cut under traffic, and judge (ARGS="--seed 1 --changes 20000 --database postgresql")
make mutants  take each rule of the protocol out of a copy of the code, and print what caught it (ARGS='M1 M7')
make lock     pin requirements/*.txt anew from pyproject.toml (ARGS=--upgrade: to the newest versions)
make clean    remove the virtual environment and caches; never var/, which holds ledgers

The virtual environment .venv is made where it is missing or unfinished, and again when its lock has changed."""


class Missing(Exception):
    """This system lacks something; the message says what, and the line that installs it."""


def main(command: str, arguments: list[str]) -> int:
    """Run one target of the Makefile; return the exit code, or never where it becomes the command itself."""
    os.chdir(ROOT)
    if command == "demo":
        become(environment("run"), "reverse-sync", "demo", *arguments)
    if command == "bench":
        become(environment("test"), "python", "-m", "tests.bench", *arguments)
    if command == "chaos":
        become(environment("test"), "python", "-m", "tests.chaos", *arguments)
    if command == "mutants":
        become(environment("test"), "python", "-m", "tests.machine.mutants", *arguments)
    if command == "test":
        programs = environment("test")
        provide_browser()
        return check(programs) or become(programs, "pytest", *SIDE_BY_SIDE, *arguments)
    if command == "check":
        return check(environment("test"))
    if command == "lock":
        return pin(arguments)
    if command == "clean":
        return clean()
    print(HELP)
    return 0 if command == "help" else 2


def become(programs: Path, name: str, *arguments: str) -> NoReturn:
    """Replace this process by a program of the environment: Ctrl-C and the exit code are then its own."""
    os.environ["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    sys.stdout.flush()
    os.execv(programs / name, [str(programs / name), *arguments])  # noqa: S606 - no shell in between is the point


def check(programs: Path) -> int:
    """Run every check, so that one run names all that is wrong; return 1 if one of them found something."""
    failed = False
    for name, *arguments in CHECKS:
        say(" ".join([name, *arguments]))
        failed |= subprocess.call([programs / name, *arguments], stdin=subprocess.DEVNULL) != 0
    return int(failed)


def pin(arguments: list[str]) -> int:
    """Write the locks anew: one resolution for every Python and system that we serve, with the hashes of its files."""
    with tempfile.TemporaryDirectory() as place:
        uv = find_uv()
        if uv is None:
            must([find_python(), "-m", "venv", place])
            must([f"{place}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"])
            uv = f"{place}/bin/uv"
        for name, options in LOCKED.items():
            must([uv, *COMPILE, *options, *arguments, "--output-file", str(LOCKS[name].relative_to(ROOT))])
            say(f"pinned {LOCKS[name].relative_to(ROOT)}")
    return 0


def clean() -> int:
    """Remove what can be made again. A ledger cannot, so var/ stays."""
    caches = [cache for top in ("deploy", "tests", "webhook", "worker") for cache in (ROOT / top).rglob("__pycache__")]
    for leftover in [VENV, NEW, OLD, *(ROOT / name for name in LEFTOVERS), *ROOT.glob("*.egg-info"), *caches]:
        remove(leftover)
    say("the virtual environment and caches are gone; var/ is as it was")
    return 0


def environment(lock: str) -> Path:
    """Return the folder of the programs that `lock` pins; make it first if it is missing, unfinished or out of date."""
    with alone():
        if not is_ready(lock):
            build(lock)
    return VENV / "bin"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one make at a time work on the environment; the lock ends with its process, however that ends."""
    with (ROOT / ".venv.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another make, which is at work on .venv")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_ready(lock: str) -> bool:
    """Tell whether .venv was finished, in this place, from what the lock says today, and whether its Python starts."""
    try:
        finished = (VENV / "complete").read_text()
    except OSError:
        return False
    return finished in {stamp(lock), stamp("test")} and run(VENV / "bin" / "python", "-c", "").returncode == 0


def stamp(lock: str) -> str:
    """Return what a finished environment says of itself: its lock, and its place, which its scripts name."""
    return f"{lock} {hashlib.sha256(LOCKS[lock].read_bytes()).hexdigest()} {ROOT}\n"


def build(lock: str) -> None:
    """Make the environment under another name, then put it in its place.

    What stands at .venv is left alone until the new one is whole: a failure or a Ctrl-C on the way breaks nothing. An
    environment cannot simply be renamed, because its scripts begin with their own path: `relocate` corrects them.
    """
    remove(NEW)
    remove(OLD)
    install = begin_environment()
    say(f"installing {LOCKS[lock].relative_to(ROOT)} into .venv; the first time it can take a minute")
    must([*install, "--require-hashes", "--only-binary=:all:", "-r", str(LOCKS[lock])])
    must([*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    relocate(NEW, VENV)
    (NEW / "complete").write_text(stamp(lock))
    if VENV.exists() or VENV.is_symlink():
        VENV.rename(OLD)
    NEW.rename(VENV)
    remove(OLD)


def begin_environment() -> list[str]:
    """Make an environment with nothing in it; return the command that installs into it."""
    uv = find_uv()
    if uv:
        versions = f">={dotted(OLDEST)},<{dotted((NEWEST[0], NEWEST[1] + 1))}"
        must([uv, "venv", "--quiet", "--no-project", "--prompt=reverse-sync", f"--python={versions}", str(NEW)])
        return [uv, "pip", "install", "--quiet", f"--python={NEW}/bin/python"]
    must([find_python(), "-m", "venv", "--prompt=reverse-sync", str(NEW)])
    return [f"{NEW}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]


def relocate(here: Path, there: Path) -> None:
    """Let the scripts in `here` say that they are in `there`."""
    for script in (here / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            if bytes(here) in content:
                script.write_bytes(content.replace(bytes(here), bytes(there)))


def find_uv() -> str | None:
    """Return uv where it is here and starts; a shim of a version manager can be on PATH and do neither."""
    uv = shutil.which("uv")
    return uv if uv and run(uv, "--version").returncode == 0 else None


def find_python() -> str:
    """Return a Python that the locks are made for and that can make environments."""
    incomplete = ""
    unfit: list[str] = []
    for name in PYTHONS:
        version, can_make_environments = probe(name)
        if version and OLDEST <= version <= NEWEST:
            if can_make_environments:
                return name
            incomplete = incomplete or dotted(version)
        elif version:
            unfit.append(f"{name} is {dotted(version)}")
    if incomplete:
        raise Missing(f"Python {incomplete} is here, but not its venv module. {advice('python', incomplete)}")
    here = ", ".join(unfit) or "there is none"
    needed, wanted = f"{dotted(OLDEST)} to {dotted(NEWEST)}", dotted(OLDEST) if unfit else ""
    raise Missing(f"Python {needed} is needed, and {here}. {advice('python', wanted)}")


def probe(python: str) -> tuple[tuple[int, int] | None, bool]:
    """Return the version of a Python, None if it does not start, and whether it can make environments."""
    asked = run(python, "-c", "import sys; print(*sys.version_info[:2], flush=True); import ensurepip, venv")
    words = asked.stdout.split()
    return ((int(words[0]), int(words[1])) if words else None), asked.returncode == 0


def provide_browser() -> None:
    """Install the browser that a test asks for, in CI; elsewhere only say how, as those tests are then skipped."""
    asking = (
        test for test in (ROOT / "tests").rglob("test_*.py") if "mark.browser" in test.read_text(encoding="utf-8")
    )
    if not any(asking) or any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return
    if os.environ.get("CI") == "true" and os.geteuid() == 0 and system() == "debian":
        must(["apt-get", "-qq", "update"])
        must(["apt-get", "-qq", "install", "-y", "--no-install-recommends", "chromium"])
    else:
        say(f"tests in a browser are skipped: there is no Chromium. {advice('browser')}")


def advice(what: str, version: str = "") -> str:
    """Return the sentence that tells how this system installs what it lacks: the line itself where we know it."""
    line = INSTALL.get(system(), {}).get(what, "")
    if version and system() == "debian":
        line = line.replace("python3", f"python{version}")
    if line and os.geteuid() != 0 and system() != "macos":
        line = f"sudo {line}"
    uv = "; or install uv, which brings a Python of its own" if what == "python" else ""
    return f"Install it: {line}{uv}" if line else f"Install it with this system's packages{uv}"


def system() -> str:
    """Return the family of this system as INSTALL names it, or nothing for one that we do not know."""
    if sys.platform == "darwin":
        return "macos"
    lines = OS_RELEASE.read_text().splitlines() if OS_RELEASE.exists() else []
    facts = dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)
    names = [facts.get("ID", ""), *facts.get("ID_LIKE", "").split()]
    return next((FAMILIES[name] for name in names if name in FAMILIES), "")


def dotted(version: tuple[int, int]) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


def say(text: str) -> None:
    """Tell the person at the terminal what happens now, in order with what the commands print."""
    print(f"make: {text}", flush=True)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Ask a program something in silence; one that is not there answers with a failure."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError:
        return subprocess.CompletedProcess(command, 127, "", "")


def must(command: list[str]) -> None:
    """Run a step that nothing can go on without."""
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1] if sys.argv[1:] else "help", sys.argv[2:]))
    except Missing as lack:
        sys.exit(f"make: {lack}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"make: this step failed, see above: {' '.join(map(str, failure.cmd))}")
    except KeyboardInterrupt:
        sys.exit(130)
