"""`python -m worker.console`: the console as a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from worker.console.app import serve
from worker.errors import SettingsInvalid
from worker.settings import BrokerSettings

__all__ = ["main"]


def main(arguments: Sequence[str] = ()) -> int:
    """Serve until told to stop, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.console", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; there is no login: keep it private"
    )
    parser.add_argument("--port", type=int, default=8081, help="the port to listen on; 0 takes a free one")
    given = parser.parse_args(arguments)
    try:
        settings = BrokerSettings.read()
    except SettingsInvalid as problem:
        print(f"refusing to start: {problem}", file=sys.stderr)
        return 1
    serve(settings, host=given.host, port=given.port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
