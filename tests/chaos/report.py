"""The verdict as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tests.chaos.verdict import Verdict

if TYPE_CHECKING:
    from tests.chaos.run import Options

SHOWN: Final = 20
WIDTH: Final = 42


def table(options: Options, verdict: Verdict) -> str:
    """Lay the figures out, the promises last."""
    lines = [f"seed {options.seed}, {options.database}"]
    for name, value in verdict.figures.items():
        lines += _row(name, value)
    lines += _row("beyond the promise", verdict.beyond)
    lines += _row("beyond the promise, undetected", len(verdict.beyond_undetected))
    lines += _row("still needs a person", verdict.remaining or 0)
    lines += _row("of these, explained by no fault", len(verdict.unexplained))
    lines += _row("duplicates, detected", len(verdict.duplicates_detected))
    lines += _row("duplicates, undetected", len(verdict.duplicates_undetected))
    lines += _row("order violations", len(verdict.backward))
    lines += _row("on the wrong record", len(verdict.astray))
    lines += _row("lost", len(verdict.lost))
    lines += _row("accounting identity", "holds" if verdict.identity_holds else "BROKEN")
    broken = verdict.broken
    more = [f"… and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
    return "\n".join([*lines, *broken[:SHOWN], *more, "NOT KEPT" if broken else "kept"])


def _row(name: str, value: object) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{name:<{WIDTH}} {value:>10}" if isinstance(value, int | float) else f"{name:<{WIDTH}} {value}"]
    rows = [f"  {inner:<{WIDTH + 16}} {many:>8}" for inner, many in value.items()]
    return [name, *rows] if rows else [f"{name:<{WIDTH}} {0:>10}"]
