"""What came of taking links over: counts, and each refusal with its place and why. Holds no value of a patient."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from worker.ledger.crosswalk import Judged, Verdict

SHOWN_MOST = 200
_NAMED = re.compile(r"[A-Z]\w+/[\w.-]+( \(.*\))?|\d{4}-\d\d-\d\d [\d:]+", re.ASCII)  # what differs from line to line


@dataclass(slots=True)
class Report:
    """Counts by verdict; refusals are told as they come and the first of them kept."""

    tell: Callable[[str], object] = lambda line: None
    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    def note(self, where: str, judged: Judged) -> None:
        """Take one verdict in; `where` names a line or a reference."""
        self.seen += 1
        self.counts[judged.verdict] += 1
        if judged.verdict is Verdict.REFUSED:
            self.reasons[_NAMED.sub("…", judged.why)] += 1
            if len(self.refusals) < SHOWN_MOST:
                self.refusals.append((where, judged.why))
        if self.seen % 1000 == 0:
            self.tell(f"{self.seen:,} looked at, {self.counts[Verdict.REFUSED]:,} refused")

    def as_counts(self) -> dict[str, int]:
        """Give the counts as they are recorded."""
        return {"seen": self.seen, **{name.value: self.counts[name] for name in Verdict}}

    def lines(self, *, applied: bool) -> Iterator[str]:
        """Tell it to a person."""
        linked = "linked" if applied else "would be linked"
        yield f"{self.counts[Verdict.LINKED]:>9,}  {linked}"
        yield f"{self.counts[Verdict.KNOWN]:>9,}  linked already, the same"
        yield f"{self.counts[Verdict.REFUSED]:>9,}  refused"
        for where, why in self.refusals:
            yield f"           {where}: {why}"
        left = self.counts[Verdict.REFUSED] - len(self.refusals)
        if left > 0:
            yield f"           and {left:,} more; by reason:"
            for why, number in self.reasons.most_common(20):
                yield f"           {number:>9,}  {why}"
