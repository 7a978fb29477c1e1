"""A run as one HTML page that needs nothing from elsewhere: a picture for a lead, then the figures and the list.

Pure, from plain values. No scripts, no patient's value; references point at a person only for who has Medplum.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from html import escape

from worker.ledger.reconciling import DRIFT, KeptFinding, Mend, Verdict
from worker.reconcile.report import OfType, Report, given

LISTED = 300
_WIDTH, _BAR, _LINE, _LEFT = 960, 22, 46, 170

COLOURS = {
    Verdict.EQUAL: "equal",
    Verdict.DIFFERS: "differs",
    Verdict.MISSING: "missing",
    Verdict.EXTRA: "extra",
    Verdict.DUPLICATE: "duplicate",
    Verdict.UNREADABLE: "unreadable",
    Verdict.PERSON: "person",
    Verdict.IN_FLIGHT: "flight",
    Verdict.KEPT: "kept",
}

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2330; --soft: #5a6475; --line: #e3e7ee; --bad: #a3210f;
--equal: #3f8f63; --differs: #d97a1a; --missing: #b3261e; --extra: #7a4fb5; --duplicate: #b0419a; --unreadable: #6b6257;
--person: #c9a200; --flight: #4c8fd6; --kept: #c3cad6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #dfe5ee; --soft: #9aa6b8; --line: #2b3340;
--bad: #ff8a75; --equal: #4aa777; --differs: #f0963c; --missing: #f0604f; --extra: #a586e0; --duplicate: #dd7bc8;
--unreadable: #a39a8c; --person: #e3c23c; --flight: #74aeea; --kept: #4a5566; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
background: var(--paper); color: var(--ink); }
h1 { font-size: 1.4rem; margin-bottom: .25rem; } h2 { font-size: 1.05rem; margin-top: 2.2rem; }
.verdict { font-size: 1.15rem; font-weight: 600; } .bad { color: var(--bad); } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; } caption { text-align: left; color: var(--soft); }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } td.zero { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 14px system-ui, sans-serif; }
svg .soft { fill: var(--soft); font-size: 12px; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .4rem 0 0; padding: 0; list-style: none;
font-size: .9rem; }
.key span { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem; }
code { font-size: .95em; overflow-wrap: anywhere; }
"""


def render(told: Report, found: Iterable[KeptFinding], *, now: datetime) -> str:
    """Render the page; of what was found it lists the first few hundred."""
    parts = [_head(told, now), _picture(told), _figures(told), _mends(told), _reasons(told), _list(found, told.drift)]
    parts += [_lines("What does not count as a difference", told.normalised)]
    parts += [_lines("What this comparison cannot see", told.unseen)]
    style = _STYLE + "".join(
        f".{name} {{ fill: var(--{name}); background: var(--{name}); }}" for name in COLOURS.values()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Reconciliation, run {told.run}</title><style>{style}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def verdict_of(told: Report) -> str:
    """Say in one sentence what a lead wants to know."""
    untold = sum(each.counts[Verdict.UNREADABLE] for each in told.types)
    wrong = told.drift - untold
    said = [f"{wrong:,} {'record is' if wrong == 1 else 'records are'} not as Medplum has them"] if wrong else []
    said += [f"{untold:,} could not be judged"] if untold else []
    number = ", ".join(said) or "Every record that was judged is as Medplum has it"
    partly = "" if told.finished else " so far: the run was broken off"
    return number + (f" in a sample of {told.sample:,} of each type" if told.sample else "") + partly


def _head(told: Report, now: datetime) -> str:
    moment = f"{told.started_at:%Y-%m-%d %H:%M:%S} to {told.compared_at:%H:%M:%S} UTC"
    parts = [f"compared {moment}, {_age((now - told.compared_at).total_seconds())} before this page was made"]
    parts += [f"run {told.run}, by {escape(told.who)}"]
    parts += [f"what changed since {escape(told.since)}"] if told.since else []
    parts += [f"seed {told.seed}"] if told.sample else []
    return (
        f'<h1>Legacy system against Medplum</h1><p class="verdict{" bad" if told.drift else ""}">'
        f'{verdict_of(told)}.</p><p class="soft">{" · ".join(parts)}</p>'
    )


def _picture(told: Report) -> str:
    height = _LINE * max(1, len(told.types)) + 8
    rows = "".join(_row(each, number * _LINE + 8) for number, each in enumerate(told.types))
    used = [verdict for verdict in Verdict if any(each.counts[verdict] for each in told.types)]
    key = "".join(f'<li><span class="{COLOURS[one]}"></span>{escape(one.value)}</li>' for one in _ordered(used))
    words = "; ".join(f"{each.name}: {each.drift} of {_records(each)} not as they should be" for each in told.types)
    return (
        f'<svg role="img" aria-label="{escape(words)}" viewBox="0 0 {_WIDTH} {height}">{rows}</svg>'
        f'<ul class="key">{key}</ul>'
        '<p class="soft">What is not equal is drawn wider than it is, so that it can be seen.</p>'
    )


def _row(each: OfType, top: int) -> str:
    """Draw one type: what is not equal gets at least a sliver, or a lead would not see three in a million."""
    total, room = _records(each), _WIDTH - _LEFT
    shown = [(verdict, each.counts[verdict]) for verdict in _ordered(Verdict) if each.counts[verdict]]
    widths = [max(4.0, room * number / total) for _, number in shown] if total else []
    scale = room / sum(widths) if widths else 1.0
    x, bars = float(_LEFT), []
    for (verdict, number), width in zip(shown, widths, strict=True):
        bars.append(
            f'<rect class="{COLOURS[verdict]}" x="{x:.1f}" y="{top}" width="{width * scale:.1f}" height="{_BAR}">'
            f"<title>{escape(verdict.value)}: {number:,}</title></rect>"
        )
        x += width * scale
    said = f"{each.drift:,} of {total:,} records" if total else "no record"
    return (
        f'<text x="0" y="{top + 12}">{escape(each.name)}</text>'
        f'<text class="soft" x="0" y="{top + 28}">{said}</text>{"".join(bars)}'
    )


def _figures(told: Report) -> str:
    columns = _ordered(Verdict)
    head = "".join(f'<th class="number">{escape(one.value)}</th>' for one in columns)
    bound = '<th class="number">at most (95 %)</th>' if told.sample else ""
    rows = "".join(_figure_row(each, columns) for each in told.types)
    left = "".join(f"<p>{escape(name)}: not compared: {escape(why)}.</p>" for name, why in told.left_out.items())
    return (
        "<h2>Figures</h2><div class=scroll><table><caption>records; the resources that were looked at stand beside"
        f'</caption><tr><th>type</th><th class="number">looked at</th>{head}{bound}</tr>{rows}</table></div>{left}'
    )


def _figure_row(each: OfType, columns: list[Verdict]) -> str:
    cells = "".join(_number(each.counts[one]) for one in columns)
    bound = "" if each.at_most is None else _number(each.at_most)
    looked = f'<td class="number">{each.resources:,} of {max(each.known, each.resources):,}</td>'
    return f"<tr><th>{escape(each.name)}</th>{looked}{cells}{bound}</tr>"


def _mends(told: Report) -> str:
    if not told.mends:
        return ""
    done = "were given to the sync" if told.repair else "could be given to the sync by <code>--repair</code>"
    person = told.mends.get(Mend.PERSON, 0)
    return f"<p>{given(told.mends):,} {done}, {person:,} need a person.</p>"


def _reasons(told: Report) -> str:
    if not told.reasons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(verdict)}</td><td>{escape(why)}</td>{_number(number)}</tr>"
        for name, verdict, why, number in told.reasons[:LISTED]
    )
    return f"<h2>What could not be judged, or is known already</h2><table>{rows}</table>"


def _list(found: Iterable[KeptFinding], drift: int) -> str:
    rows, number = [], 0
    for kept in found:
        if kept.finding.verdict in DRIFT:
            number += 1
            rows.append(_finding(kept))
        if number == LISTED:
            break
    if not rows:
        return ""
    more = (
        f"<p>and {drift - number:,} more: <code>reverse-sync reconcile --csv FILE</code></p>" if drift > number else ""
    )
    head = "<tr><th>resource or record</th><th>verdict</th><th>fields</th><th>what to know</th><th>mended by</th></tr>"
    return f"<h2>What was found</h2><div class=scroll><table>{head}{''.join(rows)}</table></div>{more}"


def _finding(kept: KeptFinding) -> str:
    one = kept.finding
    named = one.reference or f"{one.collection} {one.key}"
    slot = f" ({escape(one.slot)})" if one.slot else ""
    mend = "a person" if one.mend is Mend.PERSON else "the sync"
    return (
        f"<tr><td><code>{escape(named)}</code>{slot}</td><td>{escape(one.verdict.value)}</td>"
        f"<td>{escape(', '.join(one.fields))}</td><td>{escape(one.detail)}</td><td>{mend}</td></tr>"
    )


def _lines(title: str, lines: Iterable[str]) -> str:
    said = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2><ul>{said}</ul>" if said else ""


def _ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Put what is equal first, as a bar is read."""
    some = set(verdicts)
    return [one for one in COLOURS if one in some]


def _records(each: OfType) -> int:
    return sum(each.counts.values())


def _number(number: int) -> str:
    return f'<td class="number{"" if number else " zero"}">{number:,}</td>'


def _age(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(0.0, seconds):.0f} s"  # noqa: PLR2004


__all__ = ["render", "verdict_of"]
