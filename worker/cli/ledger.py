"""The ledger and the person, as every command needs them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from worker.errors import LedgerOutdated, LedgerUnavailable, SettingsInvalid
from worker.ledger import Ledger
from worker.settings import Settings

_LONGEST_NAME = 120  # the ledger's column
_MIGRATE = "run `reverse-sync migrate`"


@contextmanager
def opened() -> Iterator[Ledger]:
    """Open the ledger of the settings, one that is there: connecting to a missing SQLite file would make an empty one.

    Raises:
        LedgerOutdated: there are no tables, or those of another release.
        LedgerUnavailable: the database cannot be reached now.
    """
    settings = Settings.read()
    path = settings.database_url.removeprefix("sqlite:///")
    if path != settings.database_url and not Path(path).exists():
        raise LedgerOutdated(f"there is no ledger at {path}: {_MIGRATE}, or set REVERSE_SYNC_DATABASE_URL")
    with closing(Ledger.of(settings, connections=1)) as ledger:
        try:
            yield ledger
        except LedgerUnavailable:
            _refuse_outdated(settings.database_url)
            raise


def _refuse_outdated(url: str) -> None:
    """Name the likely reason of a statement that failed. Asked only then: to know it takes Alembic, and 0.2 s."""
    from worker.ledger.migrate import outdated

    if outdated(url):
        raise LedgerOutdated(f"the ledger's tables are not those of this release: {_MIGRATE}") from None


def operator() -> str:
    """Name who acts: REVERSE_SYNC_OPERATOR, else the login of the terminal, else the account of this process.

    Raises:
        SettingsInvalid: nobody can be named.
    """
    name = os.environ.get("REVERSE_SYNC_OPERATOR", "").strip() or _login()
    if not name or len(name) > _LONGEST_NAME:
        raise SettingsInvalid("REVERSE_SYNC_OPERATOR should name who acts, in at most 120 characters: it is recorded")
    return name


def _login() -> str:
    try:
        return os.getlogin()
    except OSError:  # no terminal
        pass
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return ""
