"""What goes into the ledger and comes out of it: frozen values in the project's vocabulary. Never runs SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

Key = str | int
"""One key of a legacy record, in the JSON type that the API gave it."""

Keys = Mapping[str, Key]
"""All keys of a legacy record by name."""


class State(StrEnum):
    """Where a mirror stands. *Syncing* is not here: it is derived from the lease."""

    CURRENT = "current"  # nothing is asked for
    DUE = "due"  # somebody asked, or an attempt wants another
    WAITING = "waiting"  # for a link of a named reference
    FAILED = "failed"  # needs a person: a mapping, a value, a refusal
    HELD = "held"  # needs a decision: a conflict, or an outcome that nobody can know


class Disposition(StrEnum):
    """How a change ends. A change without one is open."""

    APPLIED = "applied"  # this version was read and written
    SUPERSEDED = "superseded"  # a later read was settled instead
    UNCHANGED = "unchanged"  # read; the legacy record already said the same
    ECHO = "echo"  # unchanged, and the version or its author is ours
    SKIPPED = "skipped"  # a rule says that it is not synced; the rule is named
    PHANTOM = "phantom"  # a delete hint for a resource that lives
    FAILED = "failed"  # read, and could not be written without a person
    DISMISSED = "dismissed"  # a person ended it, with a reason


class Source(StrEnum):
    """How a change came to be known."""

    NOTIFICATION = "notification"
    READ = "read"  # a version that nobody told us of, found by reading
    CATCH_UP = "catch-up"
    RECONCILE = "reconcile"


class Kind(StrEnum):
    """What a change row stands for."""

    VERSION = "version"
    DELETE = "delete"


class Operation(StrEnum):
    """What a write does to a legacy record."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    REPLACE = "replace"  # deletes a record whose place another one takes, or has taken


class Phase(StrEnum):
    """How far a route is let into the legacy system."""

    OFF = "off"  # changes are settled as skipped
    SHADOW = "shadow"  # everything but the send
    LIVE = "live"
    PAUSED = "paused"  # changes gather
    RETIRED = "retired"  # Medplum alone is the record now


class LinkState(StrEnum):
    """What is known of the legacy record behind a link."""

    LINKED = "linked"
    TOMBSTONE = "tombstone"  # deleted; the keys stay, so that a late answer is recognised
    HALF_REPLACED = "half-replaced"  # the old record is deleted, the new one not yet made
    LEFT_BEHIND = "left-behind"  # should be deleted and cannot be
    FORGOTTEN = "forgotten"  # a tombstone by a person's word: it is looked for before another record is made


class Origin(StrEnum):
    """How a link came to be."""

    CREATED = "created"  # the API answered our create with its key
    FOUND = "found"  # looked up after a create without an answer
    IMPORTED = "imported"  # `links import`: the legacy system had it before
    REBUILT = "rebuilt"  # `links rebuild`: from the identifier on the Medplum resource


class WriteOutcome(StrEnum):
    """What became of an announced write. A write without one may still act."""

    DONE = "done"
    NOT_DONE = "not-done"  # the legacy system certainly did not act
    WITHDRAWN = "withdrawn"  # never sent: its send-by time had passed, or the worker stopped
    REFUSED = "refused"
    GONE = "gone"
    EXISTS = "exists"
    CONFLICT = "conflict"
    LAPSED = "lapsed"  # never answered; its bound passed and a later write said the last word
    FOUND = "found"  # never answered; find showed its record


@dataclass(frozen=True, slots=True)
class Hint:
    """Something that says a resource changed; `version_id` None says that it was deleted."""

    reference: str
    version_id: str | None = None
    last_updated: datetime | None = None
    interaction: str = "update"
    author: str | None = None
    trace_id: str | None = None
    subscription: str | None = None
    body: bytes | None = None
    source: Source = Source.NOTIFICATION

    @property
    def resource_type(self) -> str:
        return self.reference.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `accept` did: rows made, hints that only woke, and the mirrors that went from not due to due.

    `queued` are those of them that it marked as queued, because the caller said that it will ring for so many: now it
    has to.
    """

    inserted: int
    repeated: int
    woken: tuple[str, ...]
    queued: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One route as the ledger knows it: what the receiver and the operator need of it."""

    resource_type: str
    phase: Phase
    mapping_version: str


@dataclass(frozen=True, slots=True)
class Link:
    """Crosswalk row: this resource and slot ↔ this legacy record."""

    id: int
    reference: str
    slot: str
    collection: str
    keys: Keys
    state: LinkState
    digest: str | None
    epoch: int
    parents: Mapping[str, str]
    look_at: datetime | None
    origin: Origin = Origin.CREATED
    version_id: str | None = None  # that was last written; none on a link that we never wrote to
    old_keys: Keys | None = None  # of the record whose place this one has taken, until that is deleted
    baseline: Mapping[str, object] | None = None  # the record as the API last answered or gave it back


@dataclass(frozen=True, slots=True)
class OpenWrite:
    """An announced write without an outcome, opened for the one who has to find out."""

    id: int
    slot: str
    collection: str
    operation: Operation
    bound: datetime
    fields: Mapping[str, object] | None
    parents: Mapping[str, str]
    idempotency_key: str | None = None
    parent_keys: Mapping[str, Keys] = field(default_factory=dict)  # by the parent's name, as they were sent


@dataclass(frozen=True, slots=True)
class DeleteHint:
    """The one open delete hint of a resource."""

    last_received_at: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """A mirror held by one attempt: the fencing token and all that was known when it was taken."""

    reference: str
    token: int
    instance: str
    hints: int
    starts: int
    attempts: int
    claimed_at: datetime
    applied_version: str | None  # none where a deletion was settled last, or nothing was
    applied_updated: datetime | None
    links: tuple[Link, ...]
    unresolved: tuple[OpenWrite, ...]
    delete_hint: DeleteHint | None
    open_versions: frozenset[str]
    notified: Mapping[str, bytes]
    sent_by_medplum: bool
    absent_since: datetime | None
    released: bool
    phase: Phase
    asked: bool  # somebody asked; else it is a look that the mirror takes by itself
    recovering: bool = False  # the ledger was set back in time, and nobody has said yet that all is well
    reason: str | None = None  # why the attempt before did not settle
    active_version: str | None = None  # of the route's mapping; none: nobody knows
    shadowed: bool = False  # what would have been sent is kept

    def lets_pass(self, reason: str) -> bool:
        """Tell whether a person has let it pass what it was held for."""
        return self.released and self.reason == reason

    @property
    def resource_type(self) -> str:
        return self.reference.partition("/")[0]

    @property
    def never_seen(self) -> bool:
        """Tell that nothing but a delete hint is known of the resource, which anybody who stole one can forge."""
        known = self.links or self.unresolved or self.open_versions or self.applied_version
        return self.delete_hint is not None and not known


@dataclass(frozen=True, slots=True)
class Announcement:
    """A write that is about to be sent."""

    slot: str
    collection: str
    operation: Operation
    fields: Mapping[str, object]
    parents: Mapping[str, str]
    template: str
    version_id: str | None
    mapping_version: str
    send_within_s: float
    deadline_s: float
    lands_within_s: float
    parent_keys: Mapping[str, Keys] = field(default_factory=dict)
    idempotency_key: str | None = None
    uses: Mapping[str, Keys] = field(default_factory=dict)  # the keys of other records in path and fields, by reference
    spares_digest: bool = False  # it deletes a record that the link names no more
    write_back: bool = False  # a new key is to be put on the Medplum resource
    before_image: bytes | None = None  # the record as it was, where the write changes what is not known to be ours


@dataclass(frozen=True, slots=True)
class Announced:
    """The row that stands for an announced write."""

    id: int
    bound: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an announced write, as it goes into the ledger. No outcome: nobody knows yet."""

    outcome: WriteOutcome | None
    status: int | None = None
    detail: str = ""
    words: bytes | None = None
    keys: Keys | None = None
    digest: str | None = None
    baseline: bytes | None = None  # the record as the API answered or gave it back, as JSON
    look_again: bool = False
    replaces: bool = False  # the record that was made takes the place of the link's, which is there still


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ends that knows what Medplum holds."""

    disposition: Disposition
    version_id: str | None
    last_updated: datetime | None
    read_at: datetime
    deleted: bool = False
    author: str | None = None
    rule: str | None = None
    reason: str | None = None
    own: bool = False  # by its author, we wrote this version ourselves

    def said(self, disposition: Disposition, rule: str | None = None) -> Settlement:
        """Say another disposition of what was read, and by which rule."""
        return replace(self, disposition=disposition, rule=rule)


class Wait(StrEnum):
    """What came of a wish to wait for another resource's link."""

    WAITS = "waits"
    CAME = "came"  # the link is there by now
    NO_RECORD = "no record"  # the other one is settled without a record, or waits for this one


class Refusal(StrEnum):
    """Why a mirror could not be claimed."""

    UNKNOWN = "unknown"  # no such mirror
    NOT_DUE = "not due"
    NOT_YET = "not yet"  # due, but not before a time
    LEASED = "leased"  # somebody is at it
    PAUSED = "paused"
    HELD = "held"
    SUSPECT = "suspect"  # its last start had no end: only alone, in a child process


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """A claim that was refused, and until when if that is known."""

    why: Refusal
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeptToken:
    """A legacy API's token as all workers find it. `left_s` None: nobody said when it ends."""

    content: Mapping[str, object] = field(repr=False)
    left_s: float | None
    unended: bool  # who renewed it last died, or lost the ledger, between asking and keeping
    rests: bool  # the last renewal failed a moment ago
