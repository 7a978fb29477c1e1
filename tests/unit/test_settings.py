"""Settings are read by name, alias or file; what is missing, misspelt or contradictory is named, never shown."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from worker.errors import SettingsInvalid
from worker.settings import AdminSettings, BrokerSettings, ReceiverSettings, Settings, WorkerSettings, known_names

CANARY = "canary-7f3a"
KEY = base64.b64encode(b"k" * 32).decode()
RECEIVER = {"REVERSE_SYNC_WEBHOOK_SECRETS": "one"}
WORKER = {
    "REVERSE_SYNC_MEDPLUM_BASE_URL": "https://medplum.example",
    "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "client",
    "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": CANARY,
}


def refused(cls: type[Settings], environ: dict[str, str]) -> str:
    """Read settings that must be refused, and give the text of the refusal."""
    with pytest.raises(SettingsInvalid) as caught:
        cls.read(environ)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def secrets(given: str) -> dict[str, tuple[str, ...]]:
    read = ReceiverSettings.read({"REVERSE_SYNC_WEBHOOK_SECRETS": given}).webhook_secrets
    return {key: tuple(secret.get_secret_value() for secret in values) for key, values in read.items()}


def test_nothing_set_is_a_ledger_in_a_file() -> None:
    """Without any variable the ledger is a SQLite file under var, without keys and without a broker."""
    settings = BrokerSettings.read({})
    assert settings.database_url == "sqlite:///var/ledger.db"
    assert settings.payload_key == ()
    assert settings.broker_url is None


def test_the_names_that_others_rely_on_are_read() -> None:
    """Each name that deployments and documentation use is a setting."""
    names = {
        "DATABASE_URL",
        "BROKER_URL",
        "WEBHOOK_SECRETS",
        "WEBHOOK_TOKEN",
        "MEDPLUM_BASE_URL",
        "MEDPLUM_CLIENT_ID",
        "MEDPLUM_CLIENT_SECRET",
        "ROUTES",
        "PAYLOAD_KEY",
        "OPERATOR",
    }
    assert {f"REVERSE_SYNC_{name}" for name in names} <= known_names()


@pytest.mark.parametrize("name", ["REVERSE_SYNC_DATABASE_URL", "DATABASE_URL"])
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_database_has_two_names_and_its_scheme_three_spellings(name: str, scheme: str) -> None:
    """Both names are read, and every spelling of PostgreSQL means the same driver."""
    settings = Settings.read({name: f"{scheme}://u:p@host/db"})
    assert settings.database_url == "postgresql+psycopg://u:p@host/db"


@pytest.mark.parametrize("name", ["REVERSE_SYNC_BROKER_URL", "REDIS_URL"])
def test_the_broker_has_two_names(name: str) -> None:
    """The broker's URL is read under both names, and is a secret."""
    url = BrokerSettings.read({name: "redis://:pw@host/0"}).broker_url
    assert isinstance(url, SecretStr)
    assert url.get_secret_value() == "redis://:pw@host/0"


def test_the_same_value_under_both_names_is_no_contradiction() -> None:
    """A host that sets the alias as well does no harm while both agree."""
    both = {"REVERSE_SYNC_DATABASE_URL": "sqlite:///a.db", "DATABASE_URL": "sqlite:///a.db"}
    assert Settings.read(both).database_url == "sqlite:///a.db"


@pytest.mark.parametrize(
    ("one", "other"),
    [("REVERSE_SYNC_DATABASE_URL", "DATABASE_URL"), ("REVERSE_SYNC_BROKER_URL", "REDIS_URL")],
)
def test_two_values_for_one_setting_are_refused(one: str, other: str) -> None:
    """Name and alias that differ are both named, and neither value is."""
    said = refused(BrokerSettings, {one: f"sqlite:///{CANARY}", other: f"sqlite:///{CANARY}2"})
    assert one in said
    assert other in said
    assert CANARY not in said


@pytest.mark.parametrize(
    "name",
    [
        "REVERSE_SYNC_WEBHOOK_SECRETS",
        "REVERSE_SYNC_WEBHOOK_TOKEN",
        "REVERSE_SYNC_PAYLOAD_KEY",
        "REVERSE_SYNC_DATABASE_URL",
        "REVERSE_SYNC_BROKER_URL",
        "DATABASE_URL",
        "REDIS_URL",
    ],
)
def test_a_setting_can_stand_in_a_file(name: str, tmp_path: Path) -> None:
    """`_FILE` behind any name reads the file, without the newline that editors put at its end."""
    value = {"REVERSE_SYNC_PAYLOAD_KEY": f"k1:{KEY}"}.get(name, f"sqlite:///{CANARY}")
    path = tmp_path / "secret"
    path.write_text(value + "\n")
    by_file = ReceiverSettings.read(
        RECEIVER | {f"{name}_FILE": str(path)} if "SECRETS" not in name else {f"{name}_FILE": str(path)}
    )
    assert by_file == ReceiverSettings.read(RECEIVER | {name: value})


def test_the_medplum_secret_can_stand_in_a_file(tmp_path: Path) -> None:
    """The worker's secret is read from a file as well, and is a secret."""
    (tmp_path / "s").write_text("é spaced \n")
    environ = {**WORKER, "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET_FILE": str(tmp_path / "s")}
    del environ["REVERSE_SYNC_MEDPLUM_CLIENT_SECRET"]
    assert WorkerSettings.read(environ).medplum_client_secret.get_secret_value() == "é spaced "


def test_a_value_and_its_file_together_are_refused(tmp_path: Path) -> None:
    """Both at once is a contradiction, even where they agree: one of them would be forgotten at the next rotation."""
    (tmp_path / "s").write_text(CANARY)
    said = refused(WorkerSettings, {**WORKER, "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET_FILE": str(tmp_path / "s")})
    assert "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET_FILE" in said
    assert CANARY not in said


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named_by_its_variable(content: bytes | None, tmp_path: Path) -> None:
    """A file that is missing or not text is a refusal that names the variable."""
    if content is not None:
        (tmp_path / "s").write_bytes(content)
    said = refused(ReceiverSettings, {"REVERSE_SYNC_WEBHOOK_SECRETS_FILE": str(tmp_path / "s")})
    assert "REVERSE_SYNC_WEBHOOK_SECRETS_FILE names a file that cannot be read" in said


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("REVERSE_SYNC_WEBHOOK_SECRET", "REVERSE_SYNC_WEBHOOK_SECRETS"),
        ("REVERSE_SYNC_PAYLOADKEY", "REVERSE_SYNC_PAYLOAD_KEY"),
        ("REVERSE_SYNC_DATABSE_URL", "REVERSE_SYNC_DATABASE_URL"),
        ("REVERSE_SYNC_MEDPLUM_CLIENT_SECERT_FILE", "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET"),
    ],
)
def test_a_misspelt_setting_is_refused_with_a_suggestion(misspelt: str, meant: str) -> None:
    """An unknown name with our prefix is refused, and the name that was meant is proposed."""
    said = refused(BrokerSettings, {misspelt: CANARY})
    assert f"{misspelt} is not a setting" in said
    assert f"did you mean {meant}?" in said
    assert CANARY not in said


def test_a_setting_of_another_process_is_not_misspelt() -> None:
    """One environment may serve all processes: each takes its own, and the receiver never holds Medplum's secret."""
    environ = RECEIVER | WORKER | {"REVERSE_SYNC_OPERATOR": "ana", "REVERSE_SYNC_SITE_CODES": "x", "PATH": "/bin"}
    receiver = ReceiverSettings.read(environ)
    assert CANARY not in repr(vars(receiver))
    assert not any("medplum" in name or "legacy" in name for name in ReceiverSettings.model_fields)
    assert WorkerSettings.read(environ).medplum_client_id == "client"


def test_everything_missing_is_named_at_once() -> None:
    """A worker with an empty environment is told all that it lacks in one go."""
    said = refused(WorkerSettings, {})
    for name in WORKER:
        assert f"{name} is missing" in said
    assert len(said.splitlines()) == len(WORKER)


def test_an_empty_variable_counts_as_missing() -> None:
    """Compose files hand out empty strings for what is not set."""
    assert "REVERSE_SYNC_MEDPLUM_CLIENT_ID is missing" in refused(
        WorkerSettings, WORKER | {"REVERSE_SYNC_MEDPLUM_CLIENT_ID": ""}
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("one", {"": ("one",)}),
        (" one , two,", {"": ("one", "two")}),
        ("schlüssel,пароль", {"": ("schlüssel", "пароль")}),
        ('["one, with comma", "two"]', {"": ("one, with comma", "two")}),
        ('{"sub-1": "one", "sub-2": ["two", "three"]}', {"sub-1": ("one",), "sub-2": ("two", "three")}),
    ],
)
def test_webhook_secrets_have_three_forms(given: str, expected: dict[str, tuple[str, ...]]) -> None:
    """Commas, a JSON list, or a JSON object by Subscription id, each with one or several secrets."""
    assert secrets(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        ",",
        "[]",
        "{}",
        f'["{CANARY}", ""]',
        f'{{"sub": "{CANARY}"',
        f'["{CANARY}", 5]',
        f'{{"sub": {{"deep": "{CANARY}"}}}}',
        f'{{"sub": ["{CANARY}", null]}}',
        f'{{"sub": "{CANARY}", "other": []}}',
        f'{{"sub": "{CANARY}", "other": ""}}',
        f'["{CANARY}", ["{CANARY}"]]',
    ],
)
def test_webhook_secrets_in_no_form_are_refused_unseen(given: str) -> None:
    """Empty or malformed secrets are refused with the setting's name and forms, and without a secret."""
    said = refused(ReceiverSettings, {"REVERSE_SYNC_WEBHOOK_SECRETS": given})
    assert "REVERSE_SYNC_WEBHOOK_SECRETS" in said
    assert "comma-separated" in said
    assert CANARY not in said


def test_the_first_payload_key_comes_first() -> None:
    """Keys keep their order and their ids, and do not show."""
    other = base64.b64encode(b"o" * 32).decode()
    settings = Settings.read({"REVERSE_SYNC_PAYLOAD_KEY": f"new:{KEY}, old:{other}"})
    assert [(name, key.get_secret_value()) for name, key in settings.payload_key] == [("new", KEY), ("old", other)]
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    "given",
    [
        KEY,
        f":{KEY}",
        f"a b:{KEY}",
        f"a/b:{KEY}",
        "k1:" + base64.b64encode(b"canary-7f3a").decode(),
        "k1:" + CANARY,
        f"k1:{KEY},k1:{KEY}",
    ],
)
def test_a_payload_key_that_is_none_is_refused_unseen(given: str) -> None:
    """A key without id, of another length, or with an id twice is refused, and no part of it is shown."""
    said = refused(Settings, {"REVERSE_SYNC_PAYLOAD_KEY": given})
    assert said.startswith("REVERSE_SYNC_PAYLOAD_KEY ")
    assert KEY not in said
    assert CANARY not in said
    assert given.partition(":")[2][:20] not in said or ":" not in given


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://u:{CANARY}@h/d"),
        ("DATABASE_URL", CANARY),
        ("MEDPLUM_BASE_URL", f"medplum.example/{CANARY}"),
        ("MEDPLUM_BASE_URL", f"https://medplum.example/?token={CANARY}"),
        ("LOG_FORMAT", CANARY),
        ("BUDGET_SECONDS", CANARY),
        ("BUDGET_SECONDS", "0"),
        ("LEASE_MARGIN_SECONDS", "-1"),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_it_should_be(name: str, value: str) -> None:
    """The refusal has the variable and its description, and not the value."""
    said = refused(WorkerSettings, {**WORKER, f"REVERSE_SYNC_{name}": value})
    assert f"REVERSE_SYNC_{name} " in said
    assert str(WorkerSettings.model_fields[name.lower()].description) in said
    assert CANARY not in said


@pytest.mark.parametrize("name", ["PORT", "MAX_BODY_BYTES", "MAX_BODIES_BYTES", "REQUEST_SECONDS"])
def test_a_limit_must_be_a_number_in_its_range(name: str) -> None:
    """The receiver's limits refuse words and negative numbers."""
    for value in (CANARY, "-1"):
        said = refused(ReceiverSettings, RECEIVER | {f"REVERSE_SYNC_{name}": value})
        assert f"REVERSE_SYNC_{name} " in said
        assert CANARY not in said


def test_a_send_time_longer_than_the_budget_is_refused() -> None:
    """Two times that contradict each other are both named."""
    said = refused(WorkerSettings, {**WORKER, "REVERSE_SYNC_SEND_WITHIN_SECONDS": "45"})
    assert "REVERSE_SYNC_SEND_WITHIN_SECONDS" in said
    assert "REVERSE_SYNC_BUDGET_SECONDS" in said


def test_a_lease_outlives_the_budget() -> None:
    """The lease is the budget and its margin."""
    settings = WorkerSettings.read({**WORKER, "REVERSE_SYNC_BUDGET_SECONDS": "30"})
    assert settings.lease_seconds == 45.0


@pytest.mark.parametrize("base", ["https://medplum.example", "https://medplum.example/"])
def test_the_base_url_ends_with_one_slash(base: str) -> None:
    """Both ways to write the origin are the same."""
    read = WorkerSettings.read({**WORKER, "REVERSE_SYNC_MEDPLUM_BASE_URL": base})
    assert read.medplum_base_url == "https://medplum.example/"


@pytest.mark.parametrize(
    "show", [repr, str, lambda settings: repr(vars(settings)), lambda settings: settings.model_dump_json()]
)
def test_secrets_do_not_show(show: Callable[[Settings], str]) -> None:
    """Neither text, nor attributes, nor JSON of the settings holds a secret."""
    worker = WorkerSettings.read({**WORKER, "REVERSE_SYNC_BROKER_URL": f"redis://:{CANARY}@h/0"})
    receiver = ReceiverSettings.read(
        {"REVERSE_SYNC_WEBHOOK_SECRETS": f'{{"sub": ["{CANARY}"]}}', "REVERSE_SYNC_WEBHOOK_TOKEN": CANARY}
    )
    assert CANARY not in show(worker)
    assert CANARY not in show(receiver)


def test_settings_do_not_change() -> None:
    """A setting cannot be set after it was read."""
    settings = Settings.read({})
    with pytest.raises(ValidationError, match="frozen"):
        settings.var = Path("/elsewhere")


def test_every_setting_says_what_it_is() -> None:
    """Each field has a description for `--help` and for refusals."""
    for process in (ReceiverSettings, WorkerSettings):
        assert [name for name, field in process.model_fields.items() if not field.description] == []


# the administrator's

ADMIN = {
    "REVERSE_SYNC_MEDPLUM_BASE_URL": "https://medplum.example.org",
    "REVERSE_SYNC_ADMIN_CLIENT_ID": "admin",
    "REVERSE_SYNC_ADMIN_CLIENT_SECRET": CANARY,
    "REVERSE_SYNC_ENDPOINT": "https://sync.example.org/medplum",
}


def test_the_administrators_settings_are_read() -> None:
    """The secret shows nowhere."""
    settings = AdminSettings.read({**ADMIN, "REVERSE_SYNC_WEBHOOK_TOKEN": "Bearer one"})
    assert settings.endpoint == "https://sync.example.org/medplum"
    assert CANARY not in repr(settings)


@pytest.mark.parametrize("token", ["Bearer: one", ":", " Bearer", "Bearer ", " ", "Bearer\none"])
def test_a_header_that_medplum_would_cut_is_refused(token: str) -> None:
    """A second colon, blanks at an end, a line's end: the receiver would refuse every delivery."""
    said = refused(AdminSettings, {**ADMIN, "REVERSE_SYNC_WEBHOOK_TOKEN": token})
    assert said.startswith("REVERSE_SYNC_WEBHOOK_TOKEN")


@pytest.mark.parametrize(
    "url", ["sync.example.org/medplum", "ftp://x/medplum", "https://u:p@x/medplum", "https://x/m#a"]
)
def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    """No scheme, another one, a password, a fragment."""
    assert "REVERSE_SYNC_ENDPOINT should be" in refused(AdminSettings, {**ADMIN, "REVERSE_SYNC_ENDPOINT": url})


def test_no_process_reads_the_administrators_credential() -> None:
    """It is in no class that a worker, a receiver, dispatch, beat or the console reads."""
    names = set(AdminSettings.model_fields)
    for process in (Settings, BrokerSettings, ReceiverSettings, WorkerSettings):
        assert names & set(process.model_fields) & {"admin_client_id", "admin_client_secret", "endpoint"} == set()
