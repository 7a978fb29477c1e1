"""The machine: draws what happens next, and after each step checks what may never be.

Hypothesis makes a failure small; what is found becomes a story of its own in test_found.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.machine.crew import Worker
from tests.machine.legacy_model import Fate
from tests.machine.medplum_model import OWN, Content
from tests.machine.world import ALL, C1, D1, GHOST, LEASE_S, P1, P2, PLAIN, REPLACING, Bench, Clinic, World

contents = st.builds(
    Content,
    word=st.sampled_from(["A", "B", "A", "B", "A", "B", "A", "B", "C", None]),
    active=st.sampled_from([True] * 7 + [False]),
    of=st.sampled_from([P1] * 7 + [P2]),
    sees=st.sampled_from([False, False, True]),
    uses=st.sampled_from([("home",), ("home", "work"), ("home", "work"), ("work",), ()]),
)
resources = st.sampled_from([P1, P1, P1, *ALL])
any_index = st.integers(0, 7)
fates = st.sampled_from([None, *Fate])
to_the_end = 60
RESTLESS_STEPS = 10
stops = st.sampled_from(
    [
        *["the end"] * 5,
        "after a read",
        "announced, and not yet sent",
        "a write is under way",
        "a write is under way",
        "before record",
        "before finish",
    ]
)


class Machine(RuleBasedStateMachine):
    """Everything at once; no process freezes between its last check and the socket."""

    bench: ClassVar[Bench]
    clinic: ClassVar[Clinic] = PLAIN
    freezes: ClassVar[bool] = False
    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.bench, self.clinic, freezes=self.freezes)
        self.next_rest = RESTLESS_STEPS
        self.taken = -1  # invariants are checked once before the first step

    @initialize(there=st.sampled_from([(), (P1,), (P1, C1), (P1, P2, D1), ALL]))
    def begins(self, there: tuple[str, ...]) -> None:
        """Begin with resources that are written and linked."""
        for of in there:
            self._saves(of, Content(sees=True), "Practitioner/x")
            self.world.delivers()
            worker = self.world.begins(of)
            assert worker is not None
            self.world.finishes(worker)
        self.world.waits(60.0)

    # Medplum

    @rule(of=resources, content=contents, told=st.booleans(), by_us=st.booleans())
    def writes(self, of: str, content: Content, told: bool, by_us: bool) -> None:
        self._saves(of, content, OWN if by_us else "Practitioner/x")
        if told:
            self.world.delivers(-1, with_body=content.word == "A")

    @rule(of=resources, told=st.booleans())
    def deletes(self, of: str, told: bool) -> None:
        if self.world.medplum.content(of) is not None:
            self.world.deletes(of)
            if told:
                self.world.delivers(-1)

    @precondition(lambda self: self.world.pending)
    @rule(which=any_index, end=st.sampled_from(["comes", "comes", "comes, and again", "is lost"]))
    def notification(self, which: int, end: str) -> None:
        which %= len(self.world.pending)
        if end == "is lost":
            self.world.drops(which)
        else:
            self.world.delivers(which, keep=end != "comes")

    @rule(of=st.sampled_from([*ALL, GHOST]), number=st.integers(-2, 3))
    def forges(self, of: str, number: int) -> None:
        if number < 0 or of == GHOST:
            self.world.forges_a_delete(of)
        else:
            self.world.repeats(of, number)

    # workers

    @rule(
        of=resources,
        content=contents,
        untold=st.one_of(st.none(), st.none(), contents),
        after=st.sampled_from([0.0, 2.0, 2.0, 61.0]),
        fate=fates,
        stop=stops,
        dies=st.booleans(),
    )
    def changes(
        self, of: str, content: Content, untold: Content | None, after: float, fate: Fate | None, stop: str, dies: bool
    ) -> None:
        """Have a version written, told and tried at once, as on most days; the next may be there before it is told."""
        self.world.waits(after)
        self._saves(of, content, "Practitioner/x")
        self.world.delivers(-1)
        if untold is not None:
            self._saves(of, untold, "Practitioner/x")
        if fate is not None:
            self.world.fated(fate)
        self._goes(self.world.begins(of), stop, dies)

    @rule(of=st.sampled_from(ALL), content=contents, newer=contents, stop=stops)
    def meanwhile(self, of: str, content: Content, newer: Content, stop: str) -> None:
        """Have a version told in the middle of an attempt, which then goes on to its end."""
        self.world.waits(2.0)
        self._saves(of, content, "Practitioner/x")
        self.world.delivers(-1)
        worker = self.world.begins(of)
        self._goes(worker, stop, dies=False)
        self._saves(of, newer, "Practitioner/x")
        self.world.delivers(-1)
        if worker is not None:
            self.world.steps(worker, to_the_end)

    @rule(which=any_index, stop=stops, dies=st.booleans())
    def tries(self, which: int, stop: str, dies: bool) -> None:
        self._goes(self.world.starts(which), stop, dies)

    @precondition(lambda self: self.world.workers)
    @rule(which=any_index, steps=st.sampled_from([1, 1, 2, 3, *[to_the_end] * 2]))
    def goes_on(self, which: int, steps: int) -> None:
        self.world.steps(self.world.workers[which % len(self.world.workers)], steps)

    @rule(
        of=st.sampled_from(ALL),
        older=contents,
        newer=contents,
        stop=stops,
        after=st.sampled_from([0.0, 30.0, 90.0, 90.0]),
    )
    def overtaken(self, of: str, older: Content, newer: Content, stop: str, after: float) -> None:
        """Freeze a worker until its lease is over, have another one write a newer version, and let it go on."""
        self.world.waits(2.0)
        self._saves(of, older, "Practitioner/x")
        self.world.delivers(-1)
        frozen = self.world.begins(of)
        self._goes(frozen, "frozen before its bytes leave" if self.freezes else stop, dies=False)
        self.world.waits(LEASE_S, beating=False)
        self.world.waits(after)
        self._saves(of, newer, "Practitioner/x")
        self.world.delivers(-1)
        other = self.world.begins(of)
        if other is not None:
            self.world.finishes(other)
        if frozen is not None:
            self.world.steps(frozen, to_the_end)

    @rule(of=st.sampled_from([P1, P2]), fate=fates, stop=stops, dies=st.booleans(), stays=st.booleans())
    def comes_back(self, of: str, fate: Fate | None, stop: str, dies: bool, stays: bool) -> None:
        """Have a deleted record brought back, and deleted again if it does not stay."""
        for active in (False, True, *([] if stays else [False])):
            self.world.waits(2.0)
            self._saves(of, Content(active=active), "Practitioner/x")
            self.world.delivers(-1)
            if active and fate is not None:
                self.world.fated(fate)
            self._goes(self.world.begins(of), stop if active else "the end", dies and active)

    @rule(gone=st.booleans())
    def orphaned(self, gone: bool) -> None:
        """Have a problem wait for a patient who cannot be mapped, and who then is not to be there at all."""
        for of, content in (
            (P1, Content(active=False)),
            (P1, Content(word=None)),
            (C1, Content("C")),
            (P1, None if gone else Content(active=False)),
        ):
            self.world.waits(2.0)
            if content is None:
                self.world.deletes(of)
            else:
                self._saves(of, content, "Practitioner/x")
            self.world.delivers(-1)
            self._goes(self.world.begins(of), "the end", dies=False)

    @precondition(lambda self: self.world.workers)
    @rule(which=any_index)
    def kills(self, which: int) -> None:
        worker = self.world.workers[which % len(self.world.workers)]
        if not self.freezes or "frozen" not in worker.at:  # a hole that the protocol admits
            self.world.kills_worker(worker)

    @rule(seconds=st.sampled_from([0.4, 2.0, 2.0, 21.0, 61.0, 61.0, 90.0, 90.0]), beating=st.booleans())
    def waits(self, seconds: float, beating: bool) -> None:
        self.world.waits(seconds, beating=beating)
        if not beating:
            self.world.ledger.free_leases()

    @rule(what=st.sampled_from(["medplum", "hide", "look-up", "ledger"]), of=st.sampled_from(ALL))
    def breaks(self, what: str, of: str) -> None:
        match what:
            case "medplum":
                self.world.medplum.troubles = 1
            case "hide":
                self.world.hides(of)
            case "look-up":
                self.world.legacy.look_troubles = 1
            case "ledger":
                self.world.watched.away = True

    @precondition(lambda self: self.taken >= self.next_rest)
    @rule()
    def comes_to_rest(self) -> None:
        """Have quiet in the middle of the story: what is wrong by now is found before something else mends it."""
        self.world.rests()
        self.world.converged()
        self.next_rest = self.taken + RESTLESS_STEPS

    @rule(does=st.sampled_from(["pause", "pause all", "resume", "resume", "replay", "replay"]), of=st.sampled_from(ALL))
    def person(self, does: str, of: str) -> None:
        if does == "resume":
            self.world.ledger.resume([], who="the machine", why="seen")
        elif does == "replay":
            self.world.replays(of)
        else:
            scope = "*" if does == "pause all" else of.split("/", maxsplit=1)[0]
            self.world.ledger.pause([scope], who="the machine", why="to see")

    def _goes(self, worker: Worker | None, stop: str, dies: bool) -> None:
        """Let a worker go on to a place, and die there or be left standing."""
        if worker is None:
            return
        while not worker.done and worker.at != stop:
            self.world.steps(worker)
        if dies and not worker.done:
            self.world.kills_worker(worker)

    def _saves(self, of: str, content: Content, author: str) -> None:
        if of == P1:
            content = replace(content, sees=False)  # nobody refers to himself, nor in a circle
        if of == P2:
            content = replace(content, of=P1)
        self.world.saves(of, content, author=author, older_s=float(len(self.world.pending) % 2 * 5))

    @invariant()
    def holds(self) -> None:
        self.taken += 1
        self.world.check()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.world.rests()
                self.world.converged()
                self.steps["examples"] += 1  # whole ones: hypothesis breaks some off and does not count them
                self.steps["steps"] += self.taken
            self.steps["writes"] += self.world.legacy.writes
            for kind, times in self.world.ends.items():
                self.steps[f"ended {kind}"] += times
        finally:
            self.world.ends_all()


class FreezingMachine(Machine):
    """A process may freeze between its last check and the socket, and lives on: the order breaks, and it is mended."""

    freezes = True
    steps: ClassVar[Counter[str]] = Counter()

    @rule(of=st.sampled_from(ALL), parent=st.sampled_from([P1, P1, P2]))
    def crossed(self, of: str, parent: str) -> None:
        """Have a frozen write land after a newer one, and both answers come after that, the older one's first."""
        standing = []
        for word, stop in (("A", "the end"), ("B", "frozen before its bytes leave"), ("C", "a write is under way")):
            self.world.waits(LEASE_S, beating=word == "A")
            self.world.ledger.free_leases()
            self.world.waits(90.0)
            self._saves(of, Content(word, of=parent), "Practitioner/x")
            self.world.delivers(-1)
            worker = self.world.begins(of)
            self._goes(worker, stop, dies=False)
            if worker is not None:
                standing.append(worker)
        for worker in standing:
            self.world.steps(worker, to_the_end)


class ReplacingMachine(Machine):
    """The legacy system cannot change every record: some are made anew, under another patient too, or brought back."""

    clinic = REPLACING
    steps: ClassVar[Counter[str]] = Counter()

    @rule(
        of=st.sampled_from([D1, D1, C1]),
        content=contents,
        fate=fates,
        met=st.sampled_from([(0,), (1,), (0, 1)]),
        stop=stops,
        dies=st.booleans(),
    )
    def replaces(
        self, of: str, content: Content, fate: Fate | None, met: tuple[int, ...], stop: str, dies: bool
    ) -> None:
        """Have a record made anew, and the first of its two writes, or the second, or both, meet a fate."""
        for changed in (content, replace(content, word="B" if content.word == "A" else "A")):
            self.world.waits(61.0)
            self._saves(of, changed, "Practitioner/x")
            self.world.delivers(-1)
            last = changed is not content
            if last and fate is not None:
                for number in range(max(met) + 1):
                    self.world.fated(fate if number in met else Fate.ACTS)
            self._goes(self.world.begins(of), stop if last else "the end", dies and last)
