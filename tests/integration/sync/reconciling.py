"""What the stories of comparisons are told with: one run in this process, as the command makes it."""

from __future__ import annotations

from dataclasses import replace

from tests.integration.sync.story import Story
from worker.ledger.reconciling import Finding, Run
from worker.links.asking import Asking
from worker.mapping import Routes
from worker.reconcile.comparing import Comparing
from worker.reconcile.looking import TRIES
from worker.reconcile.passes import Arguments, Reconciliation, beginning
from worker.reconcile.report import findings

Said = tuple[str, str, tuple[str, ...], str]


def begins(story: Story, arguments: Arguments, *, who: str = "Ada") -> Run:
    action = None
    if arguments.repair:
        action = story.ledger.begin_action(who=who, action="reconcile", why="seen", arguments={})
    return story.ledger.begin_run(
        arguments.told(story.routes), beginning(story.ledger, arguments), who=who, action=action
    )


def reconciliation(story: Story, *, routes: Routes | None = None, fresh_s: float = 0.0) -> Reconciliation:
    asking = replace(Asking(story.reader, story.gate), sleep=lambda s: None, tries=TRIES)
    comparing = Comparing(
        ledger=story.ledger,
        routes=routes or story.routes,
        asking=asking,
        medplum_base_url=str(story.medplum.base_url),
        threads=2,
        fresh_s=fresh_s,
    )
    return Reconciliation(
        ledger=story.ledger,
        routes=routes or story.routes,
        asking=asking,
        comparing=comparing,
        who="Ada",
        why="seen",
    )


def reconciles(story: Story, *types: str, fresh_s: float = 0.0, **more: object) -> Run:
    """Compare everything once."""
    arguments = Arguments(types or tuple(story.routes), **more)  # type: ignore[arg-type]
    return reconciliation(story, fresh_s=fresh_s).run(begins(story, arguments), arguments)


def found(story: Story, run: Run) -> list[Finding]:
    return [kept.finding for kept in findings(story.ledger, run.id)]


def said(story: Story, run: Run) -> list[Said]:
    """Tell each finding by whom, verdict, fields and what mends it."""
    return sorted(
        (each.reference or f"{each.collection} {each.key}", each.verdict.value, each.fields, each.mend.value)
        for each in found(story, run)
    )
