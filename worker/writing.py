"""One write to the legacy system: announced, sent, recorded. `protocol.md` 3a to 3c.

Never decides what is written; `plan` does, and `sending` in which order. Never looks anything up.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from worker.calling import Caller
from worker.comparing import carries
from worker.ends import Again, Fail, Hold
from worker.errors import LegacyUnavailable
from worker.ledger import Ledger
from worker.ledger.values import Announced, Announcement, Answer, Claim, Keys, OpenWrite, Operation, WriteOutcome
from worker.legacy import Answered, Call, File, LegacyRequest, Outcome
from worker.legacy.file import filled, marked, unmarked
from worker.legacy.wire import as_json
from worker.looking import Target
from worker.mapping import Conflict, MappedRecord, Route

PARENT_LOOKS = timedelta(seconds=10)  # how often it is asked whether a parent has found out what became of its write
FILE_S = 20.0  # the longest that reading one file from Medplum may take
_DELETES = frozenset({Operation.DELETE, Operation.REPLACE})


@dataclass(frozen=True, slots=True)
class Write:
    """A write that is decided on.

    `current` is the record as it was read before, where it was; `keep` says that it goes with this write and is kept;
    `notes` are what a person should read beside the answer.
    """

    operation: Operation
    target: Target
    record: MappedRecord | None = None
    current: Mapping[str, object] | None = field(default=None, repr=False)
    keep: Mapping[str, object] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    undelete: bool = False
    replaces: bool = False  # a create whose record takes the place of the link's
    of_old: bool = False  # a delete of a record that the link names no more
    look_again: bool = False
    repeats: OpenWrite | None = None  # sent once more as it was, under the same idempotency key: an answer is wanted


class Content(Protocol):
    """Reads what a Binary of Medplum holds."""

    def __call__(self, binary: str, *, deadline_s: float) -> bytes: ...


class Writer:
    """Sends the writes of one attempt. The last answer is handed to whoever settles, so that both go in together."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        caller: Caller,
        claim: Claim,
        route: Route[Any],
        version_id: str | None,
        keys: Mapping[str, Keys],
        send_within_s: float,
        content: Content,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._caller, self._claim, self._route = ledger, caller, claim, route
        self._content = content
        self._version_id, self._keys = version_id, keys
        self._send_within_s, self._monotonic = send_within_s, monotonic
        self._unrecorded: tuple[int, Answer] | None = None
        self.wrote = False

    def last_answer(self) -> tuple[int, Answer] | None:
        """Hand over the answer that is not yet in the ledger."""
        answer, self._unrecorded = self._unrecorded, None
        return answer

    def record_last(self) -> None:
        """Put the last answer into the ledger."""
        last = self.last_answer()
        if last is not None and not self._ledger.record(*last):
            raise Again("lease lost", "another attempt took over, or a person has to decide", counts=False)

    def send(self, write: Write) -> bool:
        """Announce, send and take the answer. Returns False where a create met a record that is there already."""
        self.record_last()
        collection = write.target.collection
        fields = self._fields(write)
        key = _idempotency_key(write)
        request = self._request(write, {name: filled(value, self._read) for name, value in fields.items()}, key)
        with self._caller.through(collection) as leave:
            self._caller.go_on()
            deadline_s = self._caller.budget.call_s("write", collection.api.deadline_s)
            began = self._monotonic()
            announced = self._announce(write, fields, request, deadline_s, key)
            if self._monotonic() - began > self._send_within_s:
                self._ledger.record(announced.id, Answer(WriteOutcome.WITHDRAWN, detail="too late to send"))
                raise Again("withdrawn", "too late to send: the announcement took too long", counts=False)
            if request is None:
                answered = Answered(Outcome.GONE, "read before the write: the record is gone")
            else:
                answered = collection.api.send(request, deadline_s=deadline_s)
                leave(answered)
        return self._took(write, fields, announced, answered)

    def withhold(self, write: Write, reason: str, why: str) -> Hold:
        """Write down what would be sent beside what is there, so that a person can see both; nothing is sent."""
        self.record_last()
        announced = self._announce(write, self._fields(write), None, 0.0)
        self._ledger.record(announced.id, Answer(WriteOutcome.WITHDRAWN, detail=why))
        return Hold(reason, why)

    def found(self, write: Write, keys: Keys, record: Mapping[str, object]) -> None:
        """Link a record that is there without a create: announced as one all the same, so that all its rules hold."""
        self.record_last()
        fields = self._fields(write)
        announced = self._announce(write, fields, self._request(write, fields), 0.0)
        digest = None if write.record is None else self.digest(write.record)  # it agrees in all that would be sent
        self.adopt(announced.id, keys, record, detail="looked up before the create: nothing was sent", digest=digest)

    def adopt(
        self,
        write_id: int,
        keys: Keys,
        record: Mapping[str, object],
        *,
        detail: str = "",
        digest: str | None = None,
        replaces: bool = False,
    ) -> None:
        """Record that a create has made the record that was found."""
        answer = Answer(
            WriteOutcome.FOUND,
            keys=keys,
            detail=detail,
            digest=digest,
            replaces=replaces,
            baseline=self._baseline(record),
        )
        if not self._ledger.record(write_id, answer):
            raise Again("lease lost", "another attempt took over, or the record is another's", counts=False)

    def digest(self, record: MappedRecord) -> str:
        return self._ledger.sealer.digest(record.canonical())

    def _fields(self, write: Write) -> Mapping[str, object]:
        if write.repeats is not None:
            return {name: unmarked(value) for name, value in (write.repeats.fields or {}).items()}
        return {} if write.record is None else write.record.resolve(self._keys)

    def _read(self, file: File) -> str:
        """Read the content of a file, before anything is announced: Medplum may take its time over it."""
        if file.data:
            return file.data
        content = self._content(file.binary, deadline_s=self._caller.budget.call_s("file", FILE_S))
        return base64.b64encode(content).decode()

    def _request(self, write: Write, fields: Mapping[str, object], key: str | None = None) -> LegacyRequest | None:
        """Build the request; None where it is made of a record that is gone."""
        target = write.target
        operation = Operation.DELETE if write.operation in _DELETES else write.operation
        if target.collection.needs_current(operation, undelete=write.undelete) and write.current is None:
            return None
        return target.collection.request(
            operation,
            fields,
            target.keys,
            target.parent_keys,
            idempotency_key=key,
            undelete=write.undelete,
            current=write.current,
        )

    def _announce(
        self,
        write: Write,
        fields: Mapping[str, object],
        request: LegacyRequest | None,
        deadline_s: float,
        key: str | None = None,
    ) -> Announced:
        target, record = write.target, write.record
        return self._ledger.announce(
            self._claim,
            Announcement(
                slot=target.slot,
                collection=target.collection.name,
                operation=write.operation,
                fields={name: marked(value) for name, value in fields.items()},
                parents=target.parents,
                parent_keys=target.parent_keys,
                template="(not sent)" if request is None else request.template,
                version_id=self._version_id,
                mapping_version=self._route.version,
                send_within_s=self._send_within_s,
                deadline_s=deadline_s,
                lands_within_s=target.collection.api.lands_within_s,
                idempotency_key=key,
                uses={each: self._keys[each] for each in record.references()} if record is not None else {},
                spares_digest=write.of_old,
                write_back=self._route.identifier is not None and write.operation is Operation.CREATE,
                before_image=None if write.keep is None else as_json(write.keep).encode(),
            ),
        )

    def _took(self, write: Write, fields: Mapping[str, object], announced: Announced, answered: Answered) -> bool:
        """Write down what a call came to; what ends the attempt is raised once it is in the ledger."""
        done = answered.outcome is Outcome.DONE or (answered.outcome is Outcome.GONE and write.operation in _DELETES)
        record = answered.record
        told = record is not None and carries(write.target.collection, fields, record)
        self._unrecorded = (
            announced.id,
            Answer(
                outcome=None if answered.outcome is Outcome.UNKNOWN else WriteOutcome(answered.outcome),
                status=answered.status,
                detail="; ".join((answered.detail, *write.notes)),
                words=answered.words,
                keys=answered.keys if write.operation is Operation.CREATE else None,
                digest=None if write.record is None else self.digest(write.record),
                baseline=self._baseline(record) if told and write.record is not None else None,
                look_again=write.look_again,
                replaces=write.replaces,
            ),
        )
        if done:
            self.wrote = True
            if write.record is not None and not told:
                self._read_back(write, answered.keys or write.target.keys)
            return True
        if answered.outcome is Outcome.EXISTS and write.operation is Operation.CREATE:
            return False
        self.record_last()
        raise self._stop(write, announced, answered)

    def _stop(self, write: Write, announced: Announced, answered: Answered) -> Again | Fail | Hold:
        """Say how the attempt ends by what was answered."""
        match answered.outcome:
            case Outcome.UNKNOWN:
                return Again("unknown outcome", answered.detail, until=announced.bound)
            case Outcome.NOT_DONE:
                return Again("legacy", answered.detail, after_s=answered.retry_after_s or 0.0)
        return self._for_the_parents_sake(write, answered) or _stop_of(write, answered)

    def _for_the_parents_sake(self, write: Write, answered: Answered) -> Again | None:
        """8: what it stands under may have been deleted in this moment, which a later attempt knows."""
        if not write.target.parents:
            return None
        if self._claim.attempts == 0:
            return Again("legacy", f"{answered.detail}; looked at once more, because its parent may be gone")
        open_until = self._ledger.in_doubt_until(sorted(set(write.target.parents.values())))
        if open_until is None:
            return None
        until = max(open_until, self._claim.claimed_at) + PARENT_LOOKS
        return Again("legacy", f"{answered.detail}; its parent is in doubt itself", until=until, counts=False)

    def _read_back(self, write: Write, keys: Keys) -> None:
        """11: know what the record says after our write, where the answer did not tell."""
        target, collection = write.target, write.target.collection
        if self._route.conflict is Conflict.OFF or not collection.can_read:
            return
        self.record_last()
        record = None
        with suppress(LegacyUnavailable, Again):  # then the next write takes what is there for what was known
            record = self._caller.ask(
                collection, lambda left_s: collection.read(keys, target.parent_keys, deadline_s=left_s)
            )
        if record is not None:
            self._ledger.keep_baseline(self._claim, target.slot, as_json(record).encode())

    def _baseline(self, record: Mapping[str, object] | None) -> bytes | None:
        if record is None or self._route.conflict is Conflict.OFF:
            return None
        return as_json(record).encode()


def _idempotency_key(write: Write) -> str | None:
    """Give a create the key under which it can be sent again, where the API takes one."""
    if write.repeats is not None:
        return write.repeats.idempotency_key
    create = write.target.collection.create
    takes_one = write.operation is Operation.CREATE and isinstance(create, Call) and bool(create.idempotency)
    return str(uuid.uuid4()) if takes_one else None


def _stop_of(write: Write, answered: Answered) -> Fail | Hold:
    match answered.outcome:
        case Outcome.GONE if write.operation is Operation.UPDATE:
            return Hold("gone", f"{answered.detail}: the legacy system no longer has the record that we wrote")
        case Outcome.CONFLICT:
            return Hold("conflict", answered.detail)
    return Fail("refused", answered.detail)
