"""What the demo needs before anybody plays: a new folder, secrets, settings, a copy of the mappings, a command.

The copy of the example mappings differs in two places: the clinic promises that it acts soon or never, and one row of a
table is wrong, for the sixth act.
"""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ReverseSyncError

ROOT = Path(__file__).resolve().parents[2]
MAPPINGS = "clinic_mappings"
WRONG, RIGHT = '"W": "WID"', '"W": "WDW"'
_OURS = ("REVERSE_SYNC_", "DATABASE_URL", "REDIS_URL", "CELERY_", "FLOWER_", "PYTHON")
_OWNER_ALONE = 0o600
_SECRETS = ("webhook-secret", "webhook-token", "medplum-secret", "frontend-secret", "clinic-key")

# The stand-in's process dies for good when it is killed, so what it has not done within two seconds it never does.
# A real legacy system is given more time: see LegacyApi.
_PROMISE = '    "clinic",\n', '    "clinic",\n    deadline_s=5.0,\n    lands_within_s=2.0,\n'


@dataclass(frozen=True, slots=True)
class Row:
    """The row of the mapping that act six is about."""

    path: Path
    line: int

    def mend(self) -> None:
        """Make the edit that the sixth act asks for."""
        self.path.write_text(self.path.read_text(encoding="utf-8").replace(WRONG, RIGHT), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Scenery:
    """The folder of one demo, and what stands in it."""

    folder: Path
    logs: Path
    row: Row

    @classmethod
    @contextmanager
    def build(cls) -> Iterator[Scenery]:
        """Make everything anew, for one demo at a time.

        Raises:
            ReverseSyncError: another demo is running here.
        """
        var = Path(os.environ.get("REVERSE_SYNC_VAR") or ROOT / "var").resolve()
        var.mkdir(parents=True, exist_ok=True)
        with (var / "demo.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ReverseSyncError("another demo is running in this checkout: end that one first") from None
            shutil.rmtree(var / "demo", ignore_errors=True)
            yield cls(*_built(var))

    @property
    def url(self) -> str:
        """The ledger's URL."""
        return f"sqlite:///{self.folder}/ledger.db"

    def secret(self, name: str) -> str:
        return self._secret_file(name).read_text(encoding="utf-8")

    def common(self) -> dict[str, str]:
        """Give the settings that every process has, over an environment without any of the caller's own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return inherited | {
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "REVERSE_SYNC_BROKER_URL_FILE": str(self.folder / "broker" / "address"),
            "REVERSE_SYNC_DATABASE_URL": self.url,
            "REVERSE_SYNC_LOG_FORMAT": "text",
            "REVERSE_SYNC_PAYLOAD_KEY_FILE": str(self._secret_file("payload-key")),
            "REVERSE_SYNC_VAR": str(self.folder),
        }

    def receiver(self, port: int) -> dict[str, str]:
        """Give the settings of the receiver: nothing to write elsewhere with."""
        return self.common() | {
            "REVERSE_SYNC_PORT": str(port),
            "REVERSE_SYNC_WEBHOOK_SECRETS_FILE": str(self._secret_file("webhook-secret")),
            "REVERSE_SYNC_WEBHOOK_TOKEN_FILE": str(self._secret_file("webhook-token")),
        }

    def worker(self, medplum: str, clinic: str) -> dict[str, str]:
        """Give the settings of a worker: credentials for both sides."""
        return self.common() | {
            "REVERSE_SYNC_MEDPLUM_BASE_URL": medplum,
            "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "sync",
            "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET_FILE": str(self._secret_file("medplum-secret")),
            "REVERSE_SYNC_ROUTES": MAPPINGS,
            "REVERSE_SYNC_SEND_WITHIN_SECONDS": "2",
            "REVERSE_SYNC_SITE_CLINIC_KEY_FILE": str(self._secret_file("clinic-key")),
            "REVERSE_SYNC_SITE_CLINIC_URL": f"{clinic}/api",
        }

    def write_command(self, settings: Mapping[str, str]) -> Path:
        """Write `reverse-sync` with the demo's own settings around it: a command that can be typed as it is."""
        ours = {name: value for name, value in settings.items() if name.startswith(("REVERSE_SYNC_", "PYTHONPATH"))}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(ours.items())]
        call = f'exec {shlex.quote(sys.executable)} -m worker.cli "$@"'
        path = self.folder / "reverse-sync"
        path.write_text("\n".join(["#!/bin/sh", "# reverse-sync with the settings of the demo.", *lines, call, ""]))
        path.chmod(0o755)
        return path

    def _secret_file(self, name: str) -> Path:
        return self.folder / "secrets" / name


def command(process: str, *more: str) -> list[str]:
    """Return the command of a process from its line in the Procfile, with this Python's own programs."""
    lines = (line.partition(": ") for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines())
    program, *arguments = next(shlex.split(line) for name, _, line in lines if name == process)
    module = {"celery": ["-m", "celery"], "reverse-sync": ["-m", "worker.cli"], "python": []}[program]
    replaced = tuple(f"{argument.partition('=')[0]}=" for argument in more if "=" in argument)
    kept = [argument for argument in arguments if not (replaced and argument.startswith(replaced))]
    return [sys.executable, *module, *kept, *more]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(path: Path) -> str:
    """Write a path as short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _built(var: Path) -> tuple[Path, Path, Row]:
    folder, logs = var / "demo", var / "log"
    (folder / "secrets").mkdir(parents=True, mode=0o700)
    logs.mkdir(exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    for name in _SECRETS:
        _write_secret(folder / "secrets" / name, secrets.token_urlsafe(24))
    token = folder / "secrets" / "webhook-token"
    token.write_text(f"Bearer {token.read_text()}")
    _write_secret(folder / "secrets" / "payload-key", f"demo:{base64.b64encode(secrets.token_bytes(32)).decode()}")
    return folder, logs, _copy_mappings(folder / MAPPINGS)


def _write_secret(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ALONE), "w") as file:
        file.write(text)


def _copy_mappings(to: Path) -> Row:
    to.mkdir()
    for module in sorted((ROOT / "worker" / "mappings").glob("*.py")):
        source = module.read_text(encoding="utf-8").replace("worker.mappings", MAPPINGS)
        if module.name == "clinic.py":
            source = _with(source, *_PROMISE)
        if module.name == "patient.py":
            source = _with(source, RIGHT, WRONG)
        (to / module.name).write_text(source, encoding="utf-8")
    lines = (to / "patient.py").read_text(encoding="utf-8").splitlines()
    return Row(to / "patient.py", next(number for number, line in enumerate(lines, 1) if WRONG in line))


def _with(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise ReverseSyncError(f"the example mappings no longer have the place that the demo changes: {old.strip()}")
    return source.replace(old, new)
