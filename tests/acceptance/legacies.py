"""The legacy systems at the other end: how each stand-in is started, and the routes that lead to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Legacy:
    """One of them. `api` is where its API begins; `site` are its site's settings, in which `{url}` is its address."""

    name: str
    api: str
    routes: str
    types: tuple[str, ...]
    options: tuple[str, ...]
    site: Mapping[str, str] = field(repr=False)

    def settings(self, url: str) -> dict[str, str]:
        """Give the settings of ours that lead to it, by name without the prefix."""
        site = {f"SITE_{self.name.upper()}_{name}": value.format(url=url) for name, value in self.site.items()}
        return {"ROUTES": self.routes, **site}


CLINIC: Final = Legacy(
    name="clinic",
    api="/api/",
    routes="tests.acceptance.clinic_mappings",
    types=("Practitioner", "Patient", "Condition"),
    options=("--api-key", "the key of the clinic"),
    site={"URL": "{url}/api", "KEY": "the key of the clinic"},
)

PRACTICE: Final = Legacy(
    name="practice",
    api="/v2/",
    routes="tests.acceptance.practice_mappings",
    types=("Practitioner", "Patient", "Appointment", "Condition"),
    options=("--token-seconds", "5"),  # many end in a test, each renewed by a refresh token that can be used once
    site={
        "URL": "{url}",
        "USERNAME": "practice-username",
        "PASSWORD": "practice-password",
        "CLIENT_ID": "practice-client-id",
        "CLIENT_SECRET": "practice-client-secret",
    },
)
