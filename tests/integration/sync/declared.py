"""Routes with other options than the example's, for one story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.integration.sync.story import Story


def declare(story: Story, of: str, *, to: Mapping[str, Any] | None = None, **options: Any) -> None:
    """Declare a type's route anew: `to` names what is another thing in its collection."""
    route = story.routes[of]
    collection = replace(route.to, **(to or {}))
    story.routes = {**story.routes, of: replace(route, to=collection, **options)}


def image(story: Story, of: str, *, column: str = "before_image") -> bytes | None:
    """Open what is sealed on a resource's only link."""
    [(sealed, slot)] = story.sql(f"SELECT {column}, slot FROM links WHERE reference = :of", of=of)  # noqa: S608
    if sealed is None:
        return None
    return story.ledger.sealer.open(bytes(sealed), table="links", reference=of, version=slot, column=column)
