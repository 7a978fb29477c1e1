"""The play: six acts over what the cast does, and the two systems held against each other at the end."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.demo.cast import LOOK_EVERY_S, WORKERS, Cast, Spoiled, Status
from deploy.demo.frontend import Change, FrontEnd, Recorded
from deploy.demo.scenery import RIGHT, ROOT, WRONG, shown
from deploy.demo.teller import Teller
from worker.cli.words import count, span

__all__ = ["Play"]

ROUTED = ("Practitioner", "Patient", "Condition")
SUBSCRIBED = (*ROUTED, "Observation")  # it has no route: accepted, and skipped with the reason
BETWEEN_CHANGES_S = 0.02
AWAY_S = 8.0

ARRIVES = (
    "Medplum sends what a real server was recorded to send, and a front end makes {count} changes: bursts, deletes, "
    "children before their parents. Each notification is in the ledger before it is answered."
)
APPLIED = (
    "Workers read each resource's current state from Medplum, map it, and announce each write in the ledger before "
    "they send it. Of a burst only the last state has to be written."
)
DIES = "It slows down, and then its server is killed with writes under way, while the front end goes on working."
WAITS = (
    "Notifications are accepted as ever. The gate in front of the clinic closes and lets one call through now and "
    "then, to see; what is due stays in the ledger."
)
BACK = "Nobody does anything: the next call that is let through is answered, the gate opens, and the backlog drains."
REFUSED = (
    "One row of the mapping is wrong: for a widowed patient it says WID, a word that the clinic does not know. That "
    "needs a person, and says so; everything else goes on."
)


class Play:
    """One performance. `held` tells at the end whether everything was as it has to be."""

    def __init__(self, cast: Cast, teller: Teller, *, interactive: bool) -> None:
        self._cast, self._teller, self._interactive = cast, teller, interactive
        self._front_end = FrontEnd()
        self._began = time.monotonic()
        self._typed = ""
        self.held = False

    def perform(self) -> None:
        """Play it to the end.

        Raises:
            Died: a process ended that should not have.
            Spoiled: something did not come about in time.
        """
        self._open()
        self._arrives()
        self._applied()
        later = self._clinic_dies()
        self._all_waits(later)
        self._clinic_is_back()
        self._one_is_refused()
        self._compare()

    def stay(self) -> None:
        """On a terminal, go on until somebody ends it."""
        if not self._interactive:
            return
        self._teller.say(
            "\nEverything goes on running, for you to look around. Ctrl-C ends it and leaves nothing behind."
        )
        while True:
            self._cast.refuse_dead()
            time.sleep(1.0)

    def _open(self) -> None:
        scenery, teller = self._cast.scenery, self._teller
        teller.say("Reverse sync: Medplum and a legacy clinic as stand-ins, and everything in between for real.")
        teller.say(f"It takes about a minute. Files are in {shown(scenery.folder)}, logs in {shown(scenery.logs)}.")
        self._cast.enter(SUBSCRIBED, teller.progress)
        self._typed = shown(scenery.write_command(self._cast.settings))
        teller.say()
        names = "Medplum · clinic · broker · web · 2 workers · dispatch · beat · console · Flower"
        teller.fact("running", f"{names}   (after {self._since()})")
        teller.fact("Flower", f"{self._cast.flower}   each task: SUCCESS, RETRY (by itself), FAILURE (needs a person)")
        teller.fact("console", f"{self._cast.console}   readiness, figures, what needs a person")

    def _arrives(self) -> None:
        changes = list(self._front_end.opening())
        self._teller.act(1, "It arrives", ARRIVES.format(count=sum(change.count for change in changes)))
        self._replay(Recorded.read(ROOT / "tests" / "fixtures" / "notifications", frozenset(SUBSCRIBED)))
        self._write(changes, lambda: f"{self._cast.status()['accepted']:,} accepted")
        self._until_delivered()
        status = self._cast.status()
        self._teller.good(f"{status['accepted']:,} changes accepted, {_settled(status):,} of them settled already")

    def _replay(self, recorded: Recorded) -> None:
        """Send what was recorded, then what a front end would do so that the clinic can take it."""
        medplum = self._cast.medplum
        medplum.write(recorded.missing())
        medplum.load(recorded.versions, notify=True)
        medplum.write(recorded.completed(), recorded.deletes)
        for reference in recorded.claimed:
            medplum.claim_deleted(reference)

    def _applied(self) -> None:
        self._teller.act(2, "It is applied", APPLIED)
        self._drain(within_s=60)
        changes = self._cast.status()["changes"]
        self._teller.good(
            f"{changes['applied']:,} applied, {changes['superseded']:,} superseded before they were written"
        )

    def _clinic_dies(self) -> Sequence[Change]:
        """Return the changes that the front end has still to make."""
        changes = list(self._front_end.afternoon())
        third = len(changes) // 3
        self._teller.act(3, "The clinic dies", DIES)
        self._write(changes[:third], lambda: "the clinic answers")
        self._cast.clinic.slow_down(AWAY_S)
        self._write(changes[third : 2 * third], lambda: "the clinic is slow")
        self._cast.until(
            lambda: self._cast.status()["unresolved_writes"] >= 3,  # noqa: PLR2004 - some
            "writes to be under way",
            within_s=15,
            meanwhile=lambda: self._teller.progress("waiting for writes to be under way"),
        )
        under_way = self._cast.status()["unresolved_writes"]
        self._cast.kill_clinic()
        self._teller.bad(f"the clinic's process is killed, with {count(under_way, 'write')} under way")
        return changes[2 * third :]

    def _all_waits(self, later: Sequence[Change]) -> None:
        self._teller.act(4, "All waits, nothing fails", WAITS)
        end = time.monotonic() + AWAY_S
        self._write(later, self._waiting)
        self._until_delivered()
        while time.monotonic() < end:
            self._teller.progress(self._waiting())
            time.sleep(LOOK_EVERY_S)
        status = self._cast.status()
        if _needs_person(status):
            raise Spoiled(f"something failed that should have waited: {self._typed} failed")
        waits = status["mirrors"]["due"] + status["mirrors"]["waiting"]
        self._teller.good(
            f"{count(waits, 'resource')} wait, 0 failed; oldest for {span(status['oldest_open_seconds'] or 0)}"
        )

    def _clinic_is_back(self) -> None:
        self._teller.act(5, "The clinic is back", BACK)
        self._cast.start_clinic(self._cast.clinic.port)
        began = time.monotonic()
        self._drain(within_s=90)
        self._teller.good(f"drained in {span(time.monotonic() - began)}")
        if unheard := self._cast.clinic.unheard():
            writes = count(unheard, "write")
            self._teller.good(f"{writes} had been saved though nobody heard the answer; none was made twice")

    def _one_is_refused(self) -> None:
        self._teller.act(6, "One is refused", REFUSED)
        change = self._front_end.widowed()
        reference = f"Patient/{change.resources[0]['id']}"
        self._cast.medplum.write(change.resources)
        self._cast.until(lambda: _needs_person(self._cast.status()) > 0, "the clinic to refuse it", within_s=30)
        self._teller.say()
        self._teller.task("$", f"{self._typed} failed")
        for line in self._cast.run([str(self._cast.scenery.folder / "reverse-sync"), "failed"]).splitlines():
            self._teller.say(f"     {line}".rstrip())
        self._teller.say()
        self._ask(reference)
        self._drain(within_s=60)
        self._teller.good(f"{reference} is in the clinic")

    def _ask(self, reference: str) -> None:
        row = self._cast.scenery.row
        self._teller.task("edit", f"{shown(row.path)}, line {row.line}:  {WRONG}  →  {RIGHT}")
        self._teller.task("type", f"{self._typed} replay {reference} --yes")
        self._teller.say()
        if not self._interactive:
            self._teller.tell("Nobody is at a terminal, so the demo does both.")
            self._mend(reference)
            return
        self._teller.tell(
            "Edit here, type in another terminal; the workers start anew when you save. Enter: the demo does it."
        )
        self._wait_for_person(reference)

    def _mend(self, reference: str) -> None:
        self._cast.scenery.row.mend()
        self._restart_workers()
        command = str(self._cast.scenery.folder / "reverse-sync")
        self._cast.run([command, "replay", reference, "--yes", "--why", "the row for widowed is mended"])

    def _wait_for_person(self, reference: str) -> None:
        """Wait until somebody has edited and replayed. Workers that refuse an edit say so, and the wait goes on."""
        path = self._cast.scenery.row.path
        seen = _stamp(path)
        while not self._cast.is_current(reference):
            self._teller.progress(f"{reference} is failed, and waits for you")
            self._cast.refuse_dead(*WORKERS)
            if _enter_within(LOOK_EVERY_S):
                self._mend(reference)
            elif _stamp(path) != seen:
                self._restart_workers()
            seen = _stamp(path)

    def _restart_workers(self) -> None:
        self._teller.progress("the workers start anew")
        complaint = self._cast.restart_workers()
        if complaint is None:
            self._teller.good("the workers have the mapping as it is now")
        else:
            self._teller.bad("a worker does not start with this edit:")
            self._teller.say(complaint)

    def _compare(self) -> None:
        from deploy.demo.verdict import compare, routes_of

        cast, teller = self._cast, self._teller
        teller.say()
        teller.progress("comparing every resource with its legacy record")
        truth = [line for resource_type in ROUTED for line in cast.medplum.truth(resource_type)]
        links = [link for resource_type in ROUTED for link in cast.ledger.links_of(resource_type)]
        verdict = compare(truth, cast.clinic.records(), links, routes_of(cast.settings), cast.medplum.url)
        status = cast.status()
        self.held = verdict.agrees and bool(status["identity_holds"]) and not _needs_person(status)
        for fault in verdict.faults:
            teller.bad(fault)
        if self.held:
            teller.good(
                f"Every resource agrees with its legacy record and every change is accounted for ({self._since()})."
            )
        kinds = ", ".join(f"{number:,} {what}" for what, number in verdict.compared.items())
        teller.fact("compared", f"{len(truth):,} resources: {kinds}; doubled: {verdict.doubled}")
        self._tell_identity(status)
        for name, url in (("Flower", cast.flower), ("console", cast.console)):
            teller.fact(name, url)
        teller.fact("look around", f"{self._typed} status      {self._typed} show REF")

    def _tell_identity(self, status: Status) -> None:
        dispositions = {**status["changes"], "purged": status["purged"]}
        terms = [f"{number:,} {name}" for name, number in dispositions.items() if number]
        wrong = "" if status["identity_holds"] else "   WHICH DOES NOT ADD UP"
        self._teller.fact("accepted", f"{status['accepted']:,} = {' + '.join(terms)}{wrong}")
        if status["changes"]["open"]:
            self._teller.fact("open", "told deletes of what lives: looked at again after a minute, then called phantom")

    def _write(self, changes: Sequence[Change], words: Callable[[], str]) -> None:
        total, done = sum(change.count for change in changes), 0
        for change in changes:
            self._cast.medplum.write(change.resources, change.deletes)
            done += change.count
            self._teller.progress(f"{done} of {total} written, {words()}", done, total)
            time.sleep(BETWEEN_CHANGES_S)

    def _until_delivered(self) -> None:
        self._cast.until(lambda: self._cast.medplum.undelivered() == 0, "the receiver to take everything", within_s=60)

    def _drain(self, *, within_s: float) -> None:
        self._cast.until(
            lambda: _is_quiet(self._cast.status()),
            "everything to be settled",
            within_s=within_s,
            meanwhile=self._settling,
        )
        if _needs_person(self._cast.status()):
            raise Spoiled(f"something needs a person that should not: {self._typed} failed")

    def _settling(self) -> None:
        status = self._cast.status()
        done, of = _settled(status), status["accepted"]
        mirrors = status["mirrors"]
        parents = f", {mirrors['waiting']} waiting for a parent" if mirrors["waiting"] else ""
        self._teller.progress(f"{done:,} of {of:,} settled, {mirrors['due']} due{parents}", done, of)

    def _waiting(self) -> str:
        status = self._cast.status()
        mirrors = status["mirrors"]
        waits = mirrors["due"] + mirrors["waiting"]
        return f"{status['accepted']:,} accepted, {waits} wait, {_needs_person(status)} failed"

    def _since(self) -> str:
        return span(time.monotonic() - self._began)


def _settled(status: Status) -> int:
    return int(status["accepted"] - status["changes"]["open"])


def _needs_person(status: Status) -> int:
    return int(status["mirrors"]["failed"] + status["mirrors"]["held"])


def _is_quiet(status: Status) -> bool:
    mirrors = status["mirrors"]
    return not (mirrors["due"] or mirrors["waiting"] or status["syncing"] or status["unresolved_writes"])


def _stamp(path: Path) -> tuple[int, int]:
    """Tell one state of a file from another; editors replace files, so it may be away for a moment."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size


def _enter_within(seconds: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and bool(sys.stdin.readline())
