"""What is switched wrong at the moment. Values and their parsing; the rooms that they concern look them up.

Faults live in memory: a restarted process behaves well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from .javascript import Json
from .outcome import bad_request

__all__ = ["Faults", "Rule"]


@dataclass(slots=True)
class Rule:
    """One kind of bad answer of the API, for the requests that match all that is set."""

    status: int | None = None  # None: the right answer, late or dripping
    types: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    path: str = "/fhir/R4"  # prefix; "/oauth2" for tokens
    times: int | None = None  # None: until cleared
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0  # one byte of the body each so many seconds
    after: bool = False  # the operation is done all the same, only its answer is lost
    headers: dict[str, str] = field(default_factory=dict)

    def matches(self, path: str, method: str, type_: str, client: str) -> bool:
        """Tell whether this rule is for that request, and count it."""
        if self.times == 0 or not path.startswith(self.path):
            return False
        wanted = ((self.types, type_), (self.methods, method), (self.clients, client))
        if any(allowed and value not in allowed for allowed, value in wanted):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(slots=True)
class Faults:
    """The switches; each name is a member of `POST /sandbox/faults`."""

    api: list[Rule] = field(default_factory=list)
    stale_get: bool = False
    stale_search: bool = False
    hidden: dict[str, list[str]] = field(default_factory=dict)
    hidden_fields: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    expire_tokens: bool = False
    units_per_minute: int | None = None
    concurrent_writers: bool = False
    frozen_clock: str | None = None
    early_delete_seconds: float = 0.0
    drop_rate: float = 0.0
    drop_types: list[str] = field(default_factory=list)
    duplicate_rate: float = 0.0
    delay_seconds: float = 0.0
    reorder_seconds: float = 0.0
    hold_deliveries: bool = False
    retry_scale: float = 1.0
    switch_off_after: int | None = None
    # The version number up to which a stale search sees; set when `stale_search` is switched on.
    stale_search_at: int = 0

    def switch(self, wanted: Json) -> None:
        """Change these members; an unknown name is refused and nothing changes."""
        known = {each.name for each in fields(self)} - {"stale_search_at"}
        if unknown := sorted(wanted.keys() - known):
            raise bad_request(f"Unknown faults: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            rules = [Rule(**rule) for rule in wanted.get("api") or []]
        except TypeError:
            raise bad_request(f"Unknown member in a rule of api; known: {', '.join(Rule.__slots__)}") from None
        for name, value in wanted.items():
            setattr(self, name, rules if name == "api" else value)

    def clear(self) -> None:
        """Switch everything right again."""
        for each in fields(self):
            setattr(self, each.name, getattr(_RIGHT, each.name))
        self.api, self.hidden, self.hidden_fields, self.drop_types = [], {}, {}, []

    def hides(self, client: str, type_: str, id_: str = "") -> bool:
        """Tell whether this client's access policy leaves the type, or that one resource, out."""
        hidden = self.hidden.get(client, ())
        return type_ in hidden or f"{type_}/{id_}" in hidden

    def hidden_members(self, client: str, type_: str) -> frozenset[str]:
        """Return the members that this client does not get to see."""
        return frozenset(self.hidden_fields.get(client, {}).get(type_, ()))

    def shown(self) -> Json:
        """Return the switches as JSON."""
        return asdict(self)


_RIGHT = Faults()
