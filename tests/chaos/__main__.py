"""Plays a run and prints what it came to: `python -m tests.chaos --seed 1 --changes 20000 --database postgresql`.

The exit code is 1 where a promise did not hold; the folder with ledger, clinic, Medplum and logs is kept then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.acceptance.system import started
from tests.chaos.databases import provided
from tests.chaos.report import table
from tests.chaos.run import SETTINGS, Options, Run
from tests.chaos.verdict import Verdict

PER_SECOND: Final = 50  # changes, where --seconds is not given


def main(arguments: list[str]) -> int:
    options, file = _read(arguments)
    signal.signal(signal.SIGTERM, _end)
    for strike in options.plan():
        print(strike)
    folder = Path(tempfile.mkdtemp(prefix="reverse-sync-chaos-"))
    kept = True
    try:
        verdict = play(options, folder)
        kept = bool(verdict.broken)
    finally:
        if kept:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(table(options, verdict))
    if file is not None:
        file.write_text(json.dumps(told(options, verdict), indent=1) + "\n")
    return int(bool(verdict.broken))


def play(options: Options, folder: Path) -> Verdict:
    """Start everything in a folder, play, and end everything."""
    with (
        provided(options.database, folder) as database,
        started(folder, database_url=database.url, settings=SETTINGS) as system,
    ):
        run = Run(options, system, database, _say)
        try:
            return run.play()
        finally:
            run.blows.calm_processes()


def told(options: Options, verdict: Verdict) -> dict[str, Any]:
    """Give the verdict as JSON."""
    plain = {name: getattr(verdict, name) for name in Verdict.__slots__}
    asked = {name: getattr(options, name) for name in Options.__slots__}
    return {"options": asked, "holds": not verdict.broken, **plain}


def _read(arguments: list[str]) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Faults under traffic, and a verdict.")
    parser.add_argument("--seed", type=int, default=1, help="draws the plan (default: 1)")
    parser.add_argument("--changes", type=int, default=20_000, help="versions made in Medplum (default: 20000)")
    parser.add_argument("--seconds", type=float, help=f"of traffic (default: {PER_SECOND} changes a second)")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="of the ledger")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    given = parser.parse_args(arguments)
    seconds = given.seconds or given.changes / PER_SECOND
    return Options(given.seed, given.changes, seconds, given.database), given.json


def _say(text: str) -> None:
    print(text, flush=True)


def _end(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
