"""Why a notification does not come: by what the Subscription says, and by what became of Medplum's attempts. Pure.

Each cause says what to do. None shows a secret, a header's value, or anything of a resource.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pydantic import SecretStr

from worker.mapping.criteria import never_fires
from worker.subscriptions.failures import Failure
from worker.subscriptions.found import Found

__all__ = ["Cause", "Expected", "Kind", "Receivers", "by_attempts", "by_subscription", "nothing_sent"]

_APPLY: Final = "`reverse-sync subscriptions apply` mends it"


class Kind(StrEnum):
    """What is wrong."""

    MISSING = "Subscription missing"
    OFF = "Subscription off"
    CRITERIA = "criteria"
    ENDPOINT = "endpoint"
    HEADER = "header"
    SECRET = "secret"  # noqa: S105 - the name of a cause
    NETWORK = "network"
    INTERACTIONS = "interactions"
    LEDGER = "ledger"
    RECEIVER = "receiver"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause. `silent`: Medplum sends nothing at all because of it, so no attempt can be seen."""

    kind: Kind
    words: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """What a Subscription of a type should say, as far as this environment knows."""

    resource_type: str
    endpoint: str
    token: SecretStr | None = field(repr=False)
    secrets: Sequence[SecretStr] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receivers:
    """The receivers that live, and those of them that do not know the secret that Medplum signs with."""

    alive: int
    ignorant: Collection[str] = ()


def by_subscription(found: Found | None, expected: Expected) -> list[Cause]:
    """Say what is wrong with a Subscription itself, the gravest first."""
    if found is None:
        why = f"Medplum has no Subscription of ours for {expected.resource_type}: {_APPLY}"
        return [Cause(Kind.MISSING, why, silent=True)]
    causes = []
    if not found.active:
        said = f"{found.reference} has the status {found.status or 'none'}, so Medplum sends nothing: {_APPLY}"
        causes.append(Cause(Kind.OFF, said, silent=True))
    silent = never_fires(found.criteria)
    if silent is not None:
        causes.append(Cause(Kind.CRITERIA, f"the criteria never fires: {silent}; {_APPLY}", silent=True))
    elif found.resource_type != expected.resource_type:
        said = f"the criteria is for {found.resource_type}, not for {expected.resource_type}: {_APPLY}"
        causes.append(Cause(Kind.CRITERIA, said, silent=True))
    if str(found.channel.get("type")) != "rest-hook":
        causes.append(Cause(Kind.ENDPOINT, f"the channel is no rest-hook: {_APPLY}", silent=True))
    if found.endpoint != expected.endpoint:
        said = f"it sends to {found.endpoint}, and REVERSE_SYNC_ENDPOINT is {expected.endpoint}: {_APPLY}"
        causes.append(Cause(Kind.ENDPOINT, said))
    causes += _headers(found, expected)
    if not found.secret:
        causes.append(Cause(Kind.SECRET, f"it has no secret, so nothing is signed: {_APPLY}"))
    elif found.secret not in {one.get_secret_value() for one in expected.secrets}:
        causes.append(Cause(Kind.SECRET, f"its secret is none that the ledger or this environment knows: {_APPLY}"))
    if found.interaction:
        said = f"only {found.interaction} is sent: the interactions are narrowed; {_APPLY}"
        causes.append(Cause(Kind.INTERACTIONS, said))
    return causes


def _headers(found: Found, expected: Expected) -> list[Cause]:
    causes = []
    for header in found.headers:
        name, colon, value = header.partition(":")
        if not colon:
            said = f"one of its headers has no colon, which stops all deliveries without a word: {_APPLY}"
            causes.append(Cause(Kind.HEADER, said, silent=True))
        elif ":" in value:
            said = f"its header {name.strip()} holds a second colon, and Medplum cuts the value there: {_APPLY}"
            causes.append(Cause(Kind.HEADER, said))
    if causes or expected.token is None:
        return causes
    sent = [
        value.strip()
        for name, _, value in (header.partition(":") for header in found.headers)
        if name.strip().lower() == "authorization"
    ]
    if sent != [expected.token.get_secret_value()]:
        what = "another value than" if sent else "none, and the receivers expect"
        said = f"its Authorization header has {what} REVERSE_SYNC_WEBHOOK_TOKEN: {_APPLY}"
        causes.append(Cause(Kind.HEADER, said))
    return causes


_AUTHORIZATION, _UNAVAILABLE, _NOT_THERE = frozenset({401, 403}), 503, frozenset({404, 405, 410})
_NETWORK: Final = (
    (("ECONNREFUSED",), "the connection was refused: nothing listens there, or a firewall answers"),
    (("ENOTFOUND", "EAI_AGAIN"), "its host's name is not known to Medplum's resolver"),
    (("timeout", "ETIMEDOUT", "AbortError"), "there was no answer in time: see firewall and load balancer"),
    (("ECONNRESET", "socket hang up"), "the connection was cut: does a proxy close it?"),
    (("certificate", "CERT_", "SSL", "TLS"), "its certificate is not one that Medplum trusts"),
    (("EHOSTUNREACH", "ENETUNREACH"), "there is no way to its host from Medplum"),
)


def by_attempts(attempts: Sequence[Failure], found: Found, by_itself: Sequence[Cause], receivers: Receivers) -> Cause:
    """Say what is wrong by the last attempt that failed; `by_itself` is what the Subscription showed."""
    last = max(attempts, key=lambda one: one.attempt)
    shown = {cause.kind: cause for cause in reversed(by_itself)}
    if last.status is None:
        known = (words for signs, words in _NETWORK if any(sign in last.error for sign in signs))
        return Cause(Kind.NETWORK, f"Medplum cannot reach {found.endpoint}: {next(known, 'no answer came')}")
    if last.status in _AUTHORIZATION:
        return shown.get(Kind.HEADER) or shown.get(Kind.SECRET) or _unauthorized(last.status, receivers)
    if last.status in _NOT_THERE:
        said = f"{found.endpoint} answered {last.status}: it is not POST /medplum of this service"
        return Cause(Kind.ENDPOINT, f"{said}; correct REVERSE_SYNC_ENDPOINT, or the proxy's path, then apply")
    if last.status == _UNAVAILABLE:
        said = "the receiver answered 503: it is up and cannot write its ledger now (or a proxy found no receiver)"
        return Cause(Kind.LEDGER, f"{said}; see its log and the database")
    return shown.get(Kind.ENDPOINT) or Cause(Kind.RECEIVER, f"the receiver answered {last.status}: see its log")


def _unauthorized(status: int, receivers: Receivers) -> Cause:
    if receivers.ignorant:
        said = f"a receiver ({next(iter(receivers.ignorant))}) does not know the secret that Medplum signs with"
        return Cause(Kind.SECRET, f"{said}: does it have the same REVERSE_SYNC_PAYLOAD_KEY and database?")
    if not receivers.alive:
        return Cause(Kind.ENDPOINT, f"it was answered {status}, and no receiver of this ledger lives: whose is it?")
    said = f"the receiver answered {status} though it knows the secret: its REVERSE_SYNC_WEBHOOK_TOKEN is another one"
    return Cause(Kind.HEADER, f"{said} than the Subscription's Authorization header; give both the same")


def nothing_sent(by_itself: Sequence[Cause], *, delivered: bool) -> Cause:
    """Say what is wrong where no attempt failed, and yet nothing came."""
    if delivered:
        wrong = next((cause for cause in by_itself if cause.kind is Kind.ENDPOINT), None)
        said = "Medplum's request was answered as taken, but not by a receiver of this ledger"
        return wrong or Cause(
            Kind.ENDPOINT, f"{said}: see what answers at REVERSE_SYNC_ENDPOINT (a redirect counts too)"
        )
    if by_itself:
        return by_itself[0]
    said = "Medplum sent nothing, and the Subscription is as it should be"
    return Cause(Kind.UNKNOWN, f"{said}: does the Medplum server's worker run, and can it reach its Redis?")
