"""Subscriptions: which change fires one, and what its rest-hook request looks like. Pure but for the register."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from .javascript import Json
from .resources import PARAMETERS
from .store import Token

__all__ = ["TRACEPARENT", "Register", "Subscription", "hook_headers", "split_values"]

_SECRET = (
    "https://www.medplum.com/fhir/StructureDefinition/subscription-secret",
    "https://www.medplum.com/fhir/StructureDefinition-subscriptionSecret",
)
_MORE = "https://medplum.com/fhir/StructureDefinition/subscription-"
_DEFAULT_RETRIES = 4
_SUCCESS = ((200, 399),)
_NEVER_FIRE = frozenset({"_author"})
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Condition:
    """One parameter of a criteria: any of the tokens, or none of them."""

    name: str
    wanted: tuple[tuple[str | None, str], ...]  # system (None: any) and value
    negated: bool

    def holds(self, tokens: Iterable[Token]) -> bool:
        """Tell whether a resource with these tokens meets it."""
        found = any(
            name == self.name and (system is None or system == of) and value == it
            for name, of, it in tokens
            for system, value in self.wanted
        )
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Subscription:
    """An active Subscription with a rest-hook."""

    id: str
    type: str
    conditions: tuple[Condition, ...] | None  # None: something in the criteria is unknown, so it never fires
    interaction: str | None
    endpoint: str
    headers: tuple[str, ...]
    secret: str | None
    retries: int
    success: tuple[tuple[int, int], ...]

    def fires(self, type_: str, interaction: str, tokens: Iterable[Token]) -> bool:
        """Tell whether a change is sent; only the new version's tokens count, whatever it was before."""
        if type_ != self.type or self.conditions is None or self.interaction not in {None, interaction}:
            return False
        return all(condition.holds(tokens) for condition in self.conditions)

    def delivered(self, status: int) -> bool:
        """Tell whether this answer counts as received."""
        return any(low <= status <= high for low, high in self.success)


class Register:
    """The active Subscriptions, kept in step with the stored resources."""

    def __init__(self) -> None:
        self._by_id: dict[str, Subscription] = {}

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._by_id.values()))

    def get(self, id_: str) -> Subscription | None:
        """Return an active one."""
        return self._by_id.get(id_)

    def note(self, resource: Json) -> None:
        """Take over a created or updated Subscription."""
        if (subscription := _read(resource)) is None:
            self._by_id.pop(resource["id"], None)
        else:
            self._by_id[subscription.id] = subscription

    def forget(self, id_: str) -> None:
        """Drop a deleted one."""
        self._by_id.pop(id_, None)

    def replace(self, resources: Iterable[Json]) -> None:
        """Take over what is stored, for instance after a rollback."""
        self._by_id.clear()
        for resource in resources:
            self.note(resource)


def _read(resource: Json) -> Subscription | None:
    channel = resource.get("channel")
    if resource.get("status") != "active" or not isinstance(channel, dict) or channel.get("type") != "rest-hook":
        return None
    type_, _, query = str(resource.get("criteria", "")).partition("?")
    retries = _extension(resource, _MORE + "max-attempts")
    return Subscription(
        id=resource["id"],
        type=type_,
        conditions=_conditions(query),
        interaction=_text(_extension(resource, _MORE + "supported-interaction")),
        endpoint=str(channel.get("endpoint", "")),
        headers=tuple(map(str, channel.get("header", ()))),
        secret=_text(_extension(resource, *_SECRET)),
        retries=retries if isinstance(retries, int) else _DEFAULT_RETRIES,
        success=_ranges(_text(_extension(resource, _MORE + "success-codes"))),
    )


def _extension(resource: Json, *urls: str) -> object:
    """Return the value of the first extension with one of these URLs, whichever `value[x]` it is."""
    for extension in resource.get("extension", []):
        if extension.get("url") in urls:
            return next((value for name, value in extension.items() if name.startswith("value")), None)
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _ranges(codes: str | None) -> tuple[tuple[int, int], ...]:
    """Read `200,201` or `200-299,410`."""
    if codes is None:
        return _SUCCESS
    bounds = [code.strip().partition("-") for code in codes.split(",")]
    return tuple((int(low), int(high or low)) for low, _, high in bounds)


def _conditions(query: str) -> tuple[Condition, ...] | None:
    found = []
    for parameter, value in parse_qsl(query, keep_blank_values=True):
        name, _, modifier = parameter.partition(":")
        if name not in PARAMETERS - _NEVER_FIRE or modifier not in {"", "not"}:
            return None
        found.append(Condition(name, tuple(_wanted(value)), modifier == "not"))
    return tuple(found)


def _wanted(value: str) -> Iterator[tuple[str | None, str]]:
    for one in split_values(value):
        system, bar, code = one.rpartition("|")
        yield (system if bar else None), code


def split_values(value: str) -> list[str]:
    r"""Split at commas; `\,`, `\|` and `\\` stand for themselves."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:\\.|[^,\\])+", value)]


def hook_headers(subscription: Subscription, interaction: str, deleted: str, body: bytes, trace_id: str) -> Headers:
    """Return the headers of one request in Medplum's order.

    A channel header with the exact name of an earlier one takes its place; with another spelling it comes as a second
    one beside it; its value ends at its second colon. One without a colon raises ValueError.
    """
    headers = {
        "Content-Type": "application/fhir+json",
        "X-Medplum-Subscription": subscription.id,
        "X-Medplum-Interaction": interaction,
    }
    if interaction == "delete":
        headers["X-Medplum-Deleted-Resource"] = deleted
    for header in subscription.headers:
        name, value, *_ = header.split(":")
        headers[name.strip()] = value.strip()
    if subscription.secret:
        headers["X-Signature"] = hmac.new(subscription.secret.encode(), body, hashlib.sha256).hexdigest()
    headers["x-trace-id"] = trace_id
    if TRACEPARENT.fullmatch(trace_id):
        headers["traceparent"] = trace_id
    return _side_by_side(headers)


def _side_by_side(headers: dict[str, str]) -> Headers:
    grouped: dict[str, list[tuple[str, str]]] = {}
    for name, value in headers.items():
        same = grouped.setdefault(name.lower(), [])
        same.append((same[0][0] if same else name, value))
    return [header for same in grouped.values() for header in same]
