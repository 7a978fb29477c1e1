"""Settings, read from the environment in this one module.

Each process reads only its own class, so that the receiver never holds a credential of Medplum or of the legacy system.
Every setting can also be given as `<NAME>_FILE`, the path of a file that holds it. A variable that begins with
`REVERSE_SYNC_` and is not known here is refused: a misspelt setting must not be one that is silently missing.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from worker.errors import SettingsInvalid

PREFIX = "REVERSE_SYNC_"
ALIASES = {"DATABASE_URL": "DATABASE_URL", "BROKER_URL": "REDIS_URL"}
READ_ELSEWHERE = frozenset({"OPERATOR"})
SITE_PREFIX = "REVERSE_SYNC_SITE_"  # a mapping module's own settings; not judged here

S = TypeVar("S", bound="Settings")

KEY_NAME_MOST, KEY_BYTES = 64, 32
_SHARED = "the whole value of the shared Authorization header"


class Settings(BaseModel):
    """What every process needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: str = Field(
        "sqlite:///var/ledger.db", description="the ledger: sqlite:///path or postgresql://user:password@host/name"
    )
    payload_key: tuple[tuple[str, SecretStr], ...] = Field(
        (),
        description="keys that seal bodies: id:base64 of 32 bytes, comma-separated; the first one seals, all open",
    )
    var: Path = Field(Path("var"), description="the folder for what this machine keeps: embedded broker, logs, ledger")
    witness: Path | None = Field(
        None,
        description="the file beside this process whose counters tell that the ledger was set back; one under var if "
        "none is named. It must not be restored together with the ledger",
    )
    log_format: str = Field("json", pattern="^(json|text)$", description="json, or text for a person at a terminal")

    @field_validator("database_url")
    @classmethod
    def _database(cls, url: str) -> str:
        scheme = url.partition(":")[0]
        if scheme in {"postgres", "postgresql"}:  # the driver is ours to choose; hosts hand out both spellings
            return "postgresql+psycopg" + url[len(scheme) :]
        if scheme not in {"sqlite", "postgresql+psycopg"}:
            raise ValueError("should begin with sqlite:/// or postgresql://")
        return url

    @field_validator("payload_key", mode="before")
    @classmethod
    def _keys(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        keys = []
        for entry in filter(None, (part.strip() for part in given.split(","))):
            name, colon, text = entry.partition(":")
            if (
                not colon
                or not name
                or not name.isalnum()
                or len(name) > KEY_NAME_MOST
                or len(_base64(text)) != KEY_BYTES
            ):
                raise ValueError("each key is id:base64, the id of letters and digits, the base64 of exactly 32 bytes")
            keys.append((name, SecretStr(text)))
        if len({name for name, _ in keys}) != len(keys):
            raise ValueError("two keys have the same id")
        return tuple(keys)

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read this process's settings.

        Raises:
            SettingsInvalid: names each variable that is missing, unknown or wrong, and what it should be.
        """
        return read(cls, os.environ if environ is None else environ)


class BrokerSettings(Settings):
    """What a process needs that publishes or consumes."""

    broker_url: SecretStr | None = Field(
        None, description="redis://… of the broker; `reverse-sync broker` starts one of its own for demo and tests"
    )
    watch_seconds: float = Field(
        60.0, ge=1, description="how often the Subscriptions are looked at that `subscriptions apply` made, in seconds"
    )
    watch_rearms: bool = Field(True, description="whether a Subscription that was switched off is switched on again")


class ReceiverSettings(BrokerSettings):
    """What the receiver needs: secrets to verify with, and nothing to write elsewhere with."""

    webhook_secrets: Mapping[str, tuple[SecretStr, ...]] = Field(
        default_factory=dict,
        description="Subscription secrets: comma-separated, a JSON list, or a JSON object Subscription id -> "
        "secret(s); needed for Subscriptions alone that `subscriptions apply` has not made",
    )
    webhook_token: SecretStr | None = Field(None, description=_SHARED)
    max_body_bytes: int = Field(2 * 1024 * 1024, gt=0, description="the largest notification, in bytes")
    max_bodies_bytes: int = Field(
        24 * 1024 * 1024, gt=0, description="all bodies in flight together, in bytes; beyond it: 503"
    )
    request_seconds: float = Field(10.0, gt=0, description="from a request's first byte to its last, in seconds")
    host: str = Field("127.0.0.1", description="the address that the receiver listens on")
    port: int = Field(8080, ge=0, le=65535, description="the port that the receiver listens on; 0 takes a free one")

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _secrets(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        secrets = _secrets_by_subscription(given)
        if not secrets or not all(values and all(values) for values in secrets.values()):
            raise ValueError("no secret is given, or one of them is empty")
        return secrets


class WorkerSettings(BrokerSettings):
    """What the worker and the operator's commands need: Medplum's credentials and the routes."""

    medplum_base_url: str = Field(description="the origin of the Medplum server, as in https://api.medplum.com")
    medplum_client_id: str = Field(description="the id of the ClientApplication: may read and search the routed types")
    medplum_client_secret: SecretStr = Field(description="the secret of that ClientApplication")
    routes: str = Field("worker.mappings", description="the Python module that declares the routes")
    budget_seconds: float = Field(45.0, gt=0, description="the longest that one attempt may take, in seconds")
    lease_margin_seconds: float = Field(
        15.0, gt=0, description="how much longer than the budget a lease lasts, in seconds"
    )
    send_within_seconds: float = Field(
        5.0, gt=0, description="how soon after its announcement a write must leave, in seconds"
    )

    catch_up_every_seconds: float = Field(
        60.0, gt=0, description="how often the time since the watermark is read in Medplum, in seconds"
    )
    catch_up_overlap_seconds: float = Field(
        300.0,
        gt=0,
        description="how long after its lastUpdated a version can still be committed in Medplum, in seconds: younger "
        "time is read, and not yet proven",
    )
    sweep_days: float = Field(
        7.0, gt=0, description="in how many days every resource with a legacy record is read back from Medplum once"
    )

    @field_validator("medplum_base_url")
    @classmethod
    def _origin(cls, url: str) -> str:
        return _origin(url)

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.send_within_seconds >= self.budget_seconds:
            raise ValueError(f"{PREFIX}SEND_WITHIN_SECONDS should be smaller than {PREFIX}BUDGET_SECONDS")
        return self

    @property
    def lease_seconds(self) -> float:
        return self.budget_seconds + self.lease_margin_seconds


class AdminSettings(Settings):
    """What `subscriptions` and the doctor need: a credential that no process of the service reads."""

    medplum_base_url: str = Field(description="the origin of the Medplum server, as in https://api.medplum.com")
    admin_client_id: str = Field(
        description="the id of a ClientApplication that may create, change, delete Subscriptions"
    )
    admin_client_secret: SecretStr = Field(description="the secret of that ClientApplication")
    endpoint: str = Field(description="where Medplum reaches POST /medplum, as in https://sync.example.org/medplum")
    webhook_token: SecretStr | None = Field(None, description=_SHARED)
    routes: str = Field("worker.mappings", description="the Python module that declares the routes")

    @field_validator("medplum_base_url")
    @classmethod
    def _origin(cls, url: str) -> str:
        return _origin(url)

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment or "@" in parts.netloc:
            raise ValueError("should be the public address of POST /medplum, as in https://sync.example.org/medplum")
        return url

    @field_validator("webhook_token")
    @classmethod
    def _token(cls, token: SecretStr | None) -> SecretStr | None:
        """Refuse what Medplum would cut or not send: a header's value ends at its second colon."""
        value = "" if token is None else token.get_secret_value()
        if ":" in value:
            raise ValueError(
                "holds a colon: Medplum cuts the header there, and the receiver would refuse every delivery"
            )
        if token is not None and (not value.strip() or value != value.strip() or not value.isprintable()):
            raise ValueError("is empty, begins or ends with blanks, or holds what no header can: Medplum cuts it")
        return token


PROCESSES: tuple[type[Settings], ...] = (ReceiverSettings, WorkerSettings, AdminSettings)


def known_names() -> frozenset[str]:
    """List every variable that some process reads, without `_FILE`."""
    fields = {PREFIX + name.upper() for process in PROCESSES for name in process.model_fields}
    return frozenset(fields | {PREFIX + name for name in READ_ELSEWHERE})


def read(cls: type[S], environ: Mapping[str, str]) -> S:
    """Read the settings of one process out of an environment."""
    problems = _misspelt(environ)
    values: dict[str, Any] = {}
    for name in cls.model_fields:
        try:
            given = _given(name.upper(), environ)
        except SettingsInvalid as problem:
            problems.append(str(problem))
        else:
            if given is not None:
                values[name] = given
    try:
        settings: S | None = cls(**values)
    except ValidationError as error:
        settings = None
        problems += [_problem(cls, entry) for entry in error.errors(include_input=False, include_url=False)]
    if settings is None or problems:
        raise SettingsInvalid("\n".join(problems)) from None
    return settings


def _given(name: str, environ: Mapping[str, str]) -> str | None:
    names = [PREFIX + name] + ([ALIASES[name]] if name in ALIASES else [])
    found = {key: environ[key] for key in names if environ.get(key)}
    files = {f"{key}_FILE": environ[f"{key}_FILE"] for key in names if environ.get(f"{key}_FILE")}
    for key, path in files.items():
        if key.removesuffix("_FILE") in found:
            raise SettingsInvalid(f"{key} and {key.removesuffix('_FILE')} are both set: keep one")
        try:
            found[key] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise SettingsInvalid(f"{key} names a file that cannot be read as text") from None
    if len(set(found.values())) > 1:
        raise SettingsInvalid(f"{' and '.join(sorted(found))} contradict each other: keep one")
    return next(iter(found.values()), None)


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    known = known_names()
    problems = []
    for key in sorted(environ):
        if not key.startswith(PREFIX) or key.startswith(SITE_PREFIX) or key.removesuffix("_FILE") in known:
            continue
        near = difflib.get_close_matches(key.removesuffix("_FILE"), sorted(known), n=1)
        problems.append(f"{key} is not a setting" + (f": did you mean {near[0]}?" if near else ""))
    return problems


def _problem(cls: type[Settings], entry: Mapping[str, Any]) -> str:
    if not entry["loc"]:
        return str(entry["msg"]).removeprefix("Value error, ")
    name = str(entry["loc"][0])
    should = cls.model_fields[name].description or ""
    what = "is missing" if entry["type"] == "missing" else str(entry["msg"]).removeprefix("Value error, ")
    return f"{PREFIX}{name.upper()} {what} ({should})"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("should be the server's address, as in https://api.medplum.com")
    return url.rstrip("/") + "/"


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _secrets_by_subscription(given: str) -> dict[str, tuple[str, ...]]:
    """Read the three forms of the webhook's secrets; the empty key holds those of every Subscription."""
    text = given.strip()
    if text[:1] not in {"[", "{"}:
        return {"": tuple(part.strip() for part in text.split(",") if part.strip())}
    try:
        loaded = json.loads(text)
    except ValueError:
        raise ValueError("begins like JSON and is not JSON") from None
    entries = loaded if isinstance(loaded, dict) else {"": loaded}
    secrets = {key: (value,) if isinstance(value, str) else value for key, value in entries.items()}
    if not all(
        isinstance(value, (list, tuple)) and all(isinstance(s, str) for s in value) for value in secrets.values()
    ):
        raise ValueError("the JSON should hold strings, or lists of strings")
    return {key: tuple(value) for key, value in secrets.items()}
