"""Starts the demo and ends it: whatever happens, no process is left behind."""

from __future__ import annotations

import argparse
import sys

from deploy.demo.cast import Cast, Spoiled
from deploy.demo.ending import Ending, Signalled
from deploy.demo.play import Play
from deploy.demo.scenery import Scenery
from deploy.demo.stage import Died, Stage
from deploy.demo.teller import Teller
from worker.errors import ReverseSyncError


def main() -> int:
    parser = argparse.ArgumentParser(prog="reverse-sync demo", description="Watch notifications become legacy records.")
    parser.add_argument("--once", action="store_true", help="end by itself; edit and replay by itself in the sixth act")
    options = parser.parse_args()
    teller, ending = Teller(), Ending()
    ending.listen()
    try:
        with Scenery.build() as scenery, Stage(scenery.logs, ending) as stage:
            interactive = not options.once and sys.stdin.isatty() and sys.stdout.isatty()
            return _perform(Play(Cast(scenery, stage), teller, interactive=interactive), teller)
    except Signalled as ended:
        return 128 + ended.number
    except ReverseSyncError as problem:
        teller.say(str(problem))
        return 1


def _perform(play: Play, teller: Teller) -> int:
    """Return the exit code: 0 only if everything was as it has to be."""
    try:
        play.perform()
    except (Died, Spoiled, ReverseSyncError) as trouble:
        teller.say(f"\nThe demo cannot go on: {trouble}")
        return 1
    except Signalled as ended:
        teller.say("\nEnding …")
        return 128 + ended.number
    try:
        play.stay()
    except Signalled:
        teller.say("\nEnding …")
    except Died as trouble:
        teller.say(str(trouble))
        return 1
    return 0 if play.held else 1


if __name__ == "__main__":
    sys.exit(main())
