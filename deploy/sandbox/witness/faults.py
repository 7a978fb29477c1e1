"""The rules by which a system misbehaves: reading them, and picking the one that acts on a request.

Pure but for the counters of its own rules. How a fault looks on the wire is `visit.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What happens to a request; the package's docstring has the table."""

    STATUS = "status"
    DELAY = "delay"
    REFUSE = "refuse"
    RESET_BEFORE = "reset_before"
    RESET_AFTER = "reset_after"
    LATE = "late"
    DRIP = "drip"
    HANG = "hang"
    INTERIM = "1xx"


_DEFAULTS: Mapping[Kind, Mapping[str, object]] = {
    Kind.STATUS: {"status": 500, "body": {"error": {"code": "fault"}}, "headers": {}, "saves": False},
    Kind.DELAY: {"seconds": 1, "saves": False},
    Kind.REFUSE: {},
    Kind.RESET_BEFORE: {},
    Kind.RESET_AFTER: {},
    Kind.LATE: {"seconds": 1, "answer": "reset"},
    Kind.DRIP: {"seconds": 0.5, "part": "body", "saves": True},
    Kind.HANG: {"saves": False},
    Kind.INTERIM: {"seconds": 0.5, "saves": False},
}


class BadRuleError(ValueError):
    """A rule that cannot be read; its message says why."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a rule is for: all parts that are given must agree."""

    method: str | None = None
    path: str = ""
    template: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict)

    def fits(self, method: str, path: str, template: str | None, body: object) -> bool:
        """Say whether a request is meant; `body` is None where it was not read."""
        sent = body if isinstance(body, dict) else {}
        return (
            self.method in (None, method)
            and path.startswith(self.path)
            and self.template in (None, template)
            and all(name in sent and sent[name] == value for name, value in self.fields.items())
        )


@dataclass(slots=True)
class Rule:
    """One fault and whom it meets; `times` and `skip` count down."""

    match: Match
    kind: Kind
    own: Mapping[str, Any]
    times: int | None = None
    skip: int = 0

    def acts(self) -> bool:
        """Count one request that fits, and say whether it is met."""
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    def shown(self) -> dict[str, Any]:
        match = {f.name: getattr(self.match, f.name) for f in fields(Match) if getattr(self.match, f.name)}
        return {"match": match, "kind": self.kind, "times": self.times, "skip": self.skip, **self.own}


@dataclass(slots=True)
class Faults:
    """The rules in force, in the order in which they came."""

    rules: list[Rule] = field(default_factory=list)

    @property
    def look_inside(self) -> bool:
        """Whether a body must be read before a rule can be picked."""
        return any(rule.match.fields for rule in self.rules)

    def pick(self, method: str, path: str, template: str | None, body: object) -> Rule | None:
        """Find the first rule that acts on a request, and use it up by one."""
        for rule in self.rules:
            if rule.times != 0 and rule.match.fits(method, path, template, body) and rule.acts():
                return rule
        return None


def read_rules(content: object) -> list[Rule]:
    """Read a rule or a list of rules as they come as JSON, or raise BadRuleError."""
    return [_read_rule(rule) for rule in (content if isinstance(content, list) else [content])]


def _read_rule(content: object) -> Rule:
    if not isinstance(content, dict) or content.get("kind") not in list(Kind):
        raise BadRuleError(f"kind is one of {', '.join(Kind)}")
    kind = Kind(content["kind"])
    rest = {name: value for name, value in content.items() if name not in ("match", "kind", "times", "skip")}
    if unknown := rest.keys() - _DEFAULTS[kind].keys():
        raise BadRuleError(f"{kind} has no {', '.join(sorted(unknown))}")
    own = {**_DEFAULTS[kind], **rest}
    _check_own(own)
    times, skip = content.get("times"), content.get("skip", 0)
    if not (times is None or _is_count(times)) or not _is_count(skip):
        raise BadRuleError("times is null or a count, skip is a count")
    return Rule(_read_match(content.get("match", {})), kind, own, times, skip)


def _check_own(own: Mapping[str, object]) -> None:
    allowed = {"answer": ("reset", "nothing"), "part": ("head", "body"), "saves": (True, False)}
    for name, values in allowed.items():
        if name in own and own[name] not in values:
            raise BadRuleError(f"{name} is one of {', '.join(map(str, values))}")
    if isinstance(own.get("seconds", 0), bool) or not isinstance(own.get("seconds", 0), int | float):
        raise BadRuleError("seconds is a number")
    if own.get("status", 200) not in range(200, 600) or not isinstance(own.get("headers", {}), dict):
        raise BadRuleError("status is 200 to 599, headers an object")


def _read_match(content: object) -> Match:
    known = {f.name for f in fields(Match)}
    if not isinstance(content, dict) or content.keys() - known:
        raise BadRuleError(f"match knows {', '.join(sorted(known))}")
    if not all(isinstance(value, dict if name == "fields" else str) for name, value in content.items()):
        raise BadRuleError("match: fields is an object, the rest are texts")
    return Match(**content)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
