"""`reverse-sync`: the operator's command line. It asks and tells; what it asks for is done in other rooms.

Errors of ours are told in their own words without a traceback: exit code 78 for settings, 1 for everything else. An
error that nobody foresaw is told by its type and place alone, because its text can hold a patient's value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from worker.cli import ask, catch_up, links, mapping, operate, processes, reconcile, recovered, routes, subscriptions
from worker.errors import ReverseSyncError, SettingsInvalid, where

__all__ = ["commands", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Keep a legacy system true while its team moves to Medplum.

    Settings come from the environment (REVERSE_SYNC_…); `reverse-sync check` tells what is missing.
    """


for _command in (
    *ask.COMMANDS,
    *operate.COMMANDS,
    *catch_up.COMMANDS,
    *links.COMMANDS,
    *mapping.COMMANDS,
    *routes.COMMANDS,
    *recovered.COMMANDS,
    *subscriptions.COMMANDS,
    *reconcile.COMMANDS,
    *processes.COMMANDS,
):
    commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    try:
        commands(arguments, prog_name="reverse-sync")
    except SettingsInvalid as problem:
        _end(str(problem), os.EX_CONFIG)
    except ReverseSyncError as problem:
        _end(str(problem), 1)
    except Exception as bug:
        _end(f"a defect: {type(bug).__name__} at {where(bug)}", os.EX_SOFTWARE)


def _end(words: str, code: int) -> None:
    print(f"reverse-sync: {words}", file=sys.stderr)
    sys.exit(code)
