"""Every error of the worker, as one tree. No message here ever holds a value from a patient's record.

ReverseSyncError
├── SettingsInvalid            a setting is missing, misspelt or contradictory: refuse to start
│   └── RoutesInvalid          the module of the routes cannot be used
├── LedgerError
│   ├── LedgerUnavailable      the database cannot be reached or written now
│   ├── LedgerOutdated         migrations are missing
│   ├── LedgerForeign          the ledger belongs to another Medplum project or legacy system
│   ├── LeaseLost              somebody else holds the mirror, or our time is over
│   ├── Paused                 an operator paused the type, or everything
│   └── DeleteBudgetSpent      more deletes in an hour than the route may do without a person
├── MedplumError
│   ├── MedplumUnavailable     429, 5xx, network: due again later
│   └── MedplumRefused         credentials or rights: a person must act
├── BadResource                bytes that are not one FHIR resource in strict JSON
├── InvalidResource            a resource that the R4 models refuse
├── Unmappable                 a mapping refuses a value, or its code failed
└── LegacyError
    ├── LegacyUnavailable      a find or read was not answered
    └── BadKey                 a key that would change the path that it stands in
"""

from __future__ import annotations

from collections.abc import Sequence


class ReverseSyncError(Exception):
    """The root: whoever catches it catches everything that this project raises on purpose."""


class SettingsInvalid(ReverseSyncError):
    """A setting is missing, misspelt or contradictory."""


class RoutesInvalid(SettingsInvalid):
    """The module of the routes does not import, or declares what cannot be."""


class LedgerError(ReverseSyncError):
    """The ledger cannot do what was asked."""


class LedgerUnavailable(LedgerError):
    """The ledger's database cannot be reached or written now."""


class LedgerOutdated(LedgerError):
    """The ledger's tables are not those of this release."""


class LedgerForeign(LedgerError):
    """The ledger belongs to another Medplum project or legacy system."""


class LeaseLost(LedgerError):
    """Another attempt holds the mirror, or this one's lease is over."""


class Paused(LedgerError):
    """An operator paused this type, or everything."""


class DeleteBudgetSpent(LedgerError):
    """The route has done as many deletes within the hour as it may without a person."""


class MedplumError(ReverseSyncError):
    """Medplum could not be asked."""


class MedplumUnavailable(MedplumError):
    """Medplum did not answer, or asked for patience."""

    def __init__(self, why: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class MedplumRefused(MedplumError):
    """Medplum refused this client; the message says which right or setting to mend."""


class BadResource(ReverseSyncError):
    """These bytes are not one FHIR resource in strict JSON."""


class InvalidResource(ReverseSyncError):
    """The R4 models refuse the resource."""

    def __init__(self, why: str, *, fields: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.fields = tuple(fields)


class Unmappable(ReverseSyncError):
    """A mapping has no legacy form for what the resource says. Carries source code and names, never values."""

    def __init__(self, why: str, *, field: str = "", line: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.field = field
        self.line = line


class LegacyError(ReverseSyncError):
    """The legacy API could not be asked."""


class LegacyUnavailable(LegacyError):
    """A find or a read was not answered; nothing was written. `status` is what was answered instead, if anything."""

    def __init__(self, why: str, *, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(why)
        self.retry_after_s, self.status = retry_after_s, status


class BadKey(LegacyError):
    """A key is empty, or would change the path that it stands in."""


def where(error: BaseException) -> str:
    """Name the file and line where an error came up: source code, so it can hold no patient's value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{'/'.join(trace.tb_frame.f_code.co_filename.split('/')[-2:])}:{trace.tb_lineno}"
