"""The status page: plain HTML from plain values. No scripts, nothing from elsewhere, and no patient's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from worker.console.ready import Check

__all__ = ["render"]

LISTED = 200

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: #5a6475; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #e3e7ee; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .bad { color: #a3210f; font-weight: 600; }
code { font-size: .95em; } @media (prefers-color-scheme: dark) { body { background: #14181f; color: #dfe5ee; }
th, td { border-color: #2b3340; } .bad { color: #ff8a75; } }
"""


def render(status: Mapping[str, Any] | None, failed: Sequence[Mapping[str, Any]], made: Sequence[Check]) -> str:
    """Render the page. `status` is None when the ledger does not answer: the checks then say why."""
    parts = [_checks(made)]
    if status is not None:  # first what a person has to do, then what adds up, then the figures
        parts = [_identity(status), _failed(failed), *parts]
        parts += [_routes(status)]
        parts += [_numbers("Mirrors", status["mirrors"]), _numbers("Changes", status["changes"]), _others(status)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Reverse sync</title><style>{_STYLE}</style></head>"
        f"<body><h1>Reverse sync</h1>{''.join(parts)}</body></html>"
    )


def _checks(made: Sequence[Check]) -> str:
    rows = "".join(
        f"<tr><th>{escape(check.name)}</th><td{'' if check.ok else ' class=bad'}>{'ok' if check.ok else 'not ok'}</td>"
        f"<td>{escape(check.says)}</td></tr>"
        for check in made
    )
    return f"<h2>Now</h2><table>{rows}</table>"


def _identity(status: Mapping[str, Any]) -> str:
    holds = status["identity_holds"]
    words = "each is accounted for" if holds else "some are missing: accepted ≠ settled + open + purged"
    return f"<p{'' if holds else ' class=bad'}>{status['accepted']} changes accepted: {words}.</p>"


def _routes(status: Mapping[str, Any]) -> str:
    """Tell of each route whether it adds up, how late it is and how far it is proven; and which times are not."""
    rows = "".join(
        f"<tr><th>{escape(str(each['resource_type']))}</th><td>{escape(str(each['phase']))}</td>"
        f'<td class="number">{each["accepted"]}</td><td class="number">{each["changes"]["open"]}</td>'
        f"<td{'' if each['identity_holds'] else ' class=bad'}>{'yes' if each['identity_holds'] else 'no'}</td>"
        f'<td class="number">{_seconds(each["lag_seconds"])}</td>'
        f'<td class="number">{_seconds(each["watermark_seconds"])}</td>'
        f"<td>{escape(str(each['last_catch_up'] or ''))}</td></tr>"
        for each in status["routes"]
    )
    head = "<tr><th>route</th><th>phase</th><th>accepted</th><th>open</th><th>adds up</th><th>lag</th>"
    unproven = "".join(
        f"<li>{escape(str(each['resource_type']))}, {escape(str(each['from']))} to {escape(str(each['to']))}: "
        f"{escape(str(each['reason']))}</li>"
        for each in status["unproven"][:LISTED]
    )
    more = f"<h2>Not proven: {len(status['unproven'])}</h2><ul>{unproven}</ul>" if unproven else ""
    return (
        f"<h2>Routes</h2><table>{head}<th>not proven for</th><th>last catch-up</th></tr>{rows}</table>{more}"
        if rows
        else more
    )


def _seconds(number: float | None) -> str:
    return "–" if number is None else f"{number:.0f} s"


def _numbers(title: str, numbers: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th>{escape(str(name))}</th><td class="number">{escape(str(number))}</td></tr>'
        for name, number in numbers.items()
    )
    return f"<h2>{escape(title)}</h2><table>{rows}</table>"


def _others(status: Mapping[str, Any]) -> str:
    rest = {
        name.replace("_", " "): "–" if value is None else value
        for name, value in status.items()
        if not isinstance(value, (Mapping, list)) and name not in {"accepted", "identity_holds"}
    }
    return _numbers("And", rest)


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return "<h2>Needs a person</h2><p>Nothing.</p>"
    rows = "".join(
        f"<tr><td><code>{escape(str(row['reference']))}</code></td><td>{escape(str(row['reason'] or ''))}</td>"
        f"<td>{escape(str(row['detail'] or ''))}</td><td>{escape(str(row['since'] or ''))}</td></tr>"
        for row in failed[:LISTED]
    )
    more = f"<p>and {len(failed) - LISTED} more: <code>reverse-sync failed</code></p>" if len(failed) > LISTED else ""
    return (
        f"<h2>Needs a person: {len(failed)}</h2><table><caption>mend the cause, then "
        f"<code>reverse-sync replay REFERENCE</code></caption>"
        f"<tr><th>reference</th><th>reason</th><th>detail</th><th>since</th></tr>{rows}</table>{more}"
    )
