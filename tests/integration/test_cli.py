"""`reverse-sync` over a real ledger: what it tells, what it does, what it records, and how it ends."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.ledger.story import CONDITION, KEYS, OTHER, PATIENT, ROUTES, START, Clock, Story, read, unknown
from worker.cli import commands, main
from worker.ledger import Ledger
from worker.ledger.migrate import upgrade
from worker.ledger.values import Answer, Disposition, WriteOutcome
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEY = f"k1:{base64.b64encode(b'k' * 32).decode()}"
CANARY = "Quarksberg"


@dataclass(frozen=True, slots=True)
class Told:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Told]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """Lend a migrated ledger with three live routes; its clock stands at the real time."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    clock = Clock()
    clock.now = START.now(START.tzinfo)
    with closing(Ledger.open(url, keys=KEYS, clock=clock, connections=2)) as ledger:
        ledger.register_routes(ROUTES)
        yield Story(ledger, clock)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, over the ledger of `story`, as the operator Ada."""
    monkeypatch.setenv("REVERSE_SYNC_DATABASE_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("REVERSE_SYNC_OPERATOR", "Ada")

    def call(*arguments: str) -> Told:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        out, err = capsys.readouterr()
        return Told(int(end.value.code or 0), out, err)

    return call


def fails(story: Story, of: str = PATIENT, *, reason: str = "refused", detail: str = "PUT /x answered 422") -> None:
    """Have a version of a resource end as failed."""
    story.hears("v1", of=of)
    claim = story.claims(of)
    settlement = read("v1", Disposition.FAILED, at=story.clock.now, rule=detail)
    assert story.ledger.fail(claim, reason=reason, detail=detail, settlement=settlement)


def test_status_json_has_the_names_that_others_rely_on(story: Story, run: Run) -> None:
    """The shape of `status --json` is a contract with deployments and scripts."""
    story.applies("v1")
    fails(story, OTHER)
    story.hears("v1", of=CONDITION)
    told = run("status", "--json")
    assert told.code == 0
    assert told.json["accepted"] == 3
    assert told.json["changes"].items() >= {"applied": 1, "failed": 1, "open": 1, "phantom": 0}.items()
    assert told.json["mirrors"].items() >= {"current": 1, "due": 1, "failed": 1}.items()
    assert told.json["identity_holds"] is True
    assert told.json.keys() >= {"purged", "oldest_open_seconds", "last_dispatch_seconds", "paused"}


def test_status_says_what_to_do_next(story: Story, run: Run) -> None:
    """A person sees the sum, who has to act, and which processes are missing."""
    fails(story)
    told = run("status").out
    assert "accepted       1 = 1 failed + 0 open" in told
    assert "1 needs a person: reverse-sync failed" in told
    assert "no worker is alive" in told


def test_status_fails_where_the_sum_does_not_hold(story: Story, run: Run) -> None:
    """A lost row is told and ends with 1: monitoring may rely on it."""
    story.applies("v1")
    story.sql("DELETE FROM changes")
    told = run("status")
    assert told.code == 1
    assert "DOES NOT ADD UP" in told.out


def test_failed_json_has_the_names_that_others_rely_on(story: Story, run: Run) -> None:
    """The shape of `failed --json` is a contract with deployments and scripts."""
    fails(story, detail="PUT /patients/{uuid} answered 422 invalid (marital)")
    [row] = run("failed", "--json").json
    assert row.keys() >= {"reference", "reason", "detail", "since", "attempts"}
    assert (row["reference"], row["reason"], row["attempts"]) == (PATIENT, "refused", 1)


def test_failed_tells_each_one_and_how_to_go_on(story: Story, run: Run) -> None:
    """What needs a person comes with its words and the command; nothing of the kind is said where nothing does."""
    assert run("failed").out == "nothing needs a person\n"
    fails(story, detail="PUT /patients/{uuid} answered 422 invalid (marital)")
    told = run("failed").out
    assert f"{PATIENT}  failed: refused" in told
    assert "answered 422 invalid (marital)" in told
    assert "reverse-sync replay" in told


def test_show_json_has_the_names_that_others_rely_on(story: Story, run: Run) -> None:
    """The shape of `show --json` is a contract with deployments and scripts, and holds nothing sealed."""
    story.applies("v1")
    told = run("show", PATIENT, "--json").json
    assert told.keys() >= {"reference", "mirror", "changes", "links", "attempts"}
    assert told["links"][0]["keys"] == {"number": 17, "uuid": "u17"}
    assert "body" not in told["writes"][0]


def test_show_of_a_failed_one_says_why_and_what_to_type(story: Story, run: Run) -> None:
    """Failed: the reason, what a person can do, and the command that tries again."""
    fails(story, detail="PUT /patients/{uuid} answered 422 invalid (marital)")
    told = run("show", PATIENT).out
    assert f"{PATIENT} is failed" in told
    assert "refused: PUT /patients/{uuid} answered 422 invalid (marital)" in told
    assert f"reverse-sync replay {PATIENT}" in told
    assert told.index("version v1 accepted") < told.index("attempt 1 begins") < told.index("attempt 1 ends")


def test_show_of_a_waiting_one_names_its_parent(story: Story, run: Run) -> None:
    """Waiting: for which resource, and when it is looked at all the same."""
    story.hears("v1", of=CONDITION)
    story.ledger.wait(story.claims(CONDITION), PATIENT, f"waits for {PATIENT}")
    told = run("show", CONDITION).out
    assert f"{CONDITION} is waiting" in told
    assert f"once {PATIENT} has its legacy record" in told
    assert "looked at again all the same at " in told


def test_show_of_a_due_one_says_when_and_after_how_many_tries(story: Story, run: Run) -> None:
    """Due: what kept it, how often it was tried, and the time of the next attempt."""
    story.hears("v1")
    story.ledger.release(story.claims(), reason="legacy", detail="POST /patients answered 503", after_s=90.0)
    told = run("show", PATIENT).out
    assert "the legacy system did not take it: POST /patients answered 503 (1 try so far)" in told
    assert "an attempt at " in told
    assert "in 1 min" in told


def test_show_of_an_unanswered_write_says_until_when_it_may_act(story: Story, run: Run) -> None:
    """An announced write without an outcome stands in the story with its bound."""
    story.hears("v1")
    claim = story.claims()
    story.ledger.record(story.announces(claim).id, unknown())
    told = run("show", PATIENT).out
    assert "create announced: /patients" in told
    assert "no answer: it may act until " in told


def test_show_while_paused_says_that_nothing_happens(story: Story, run: Run) -> None:
    """A pause is the reason that a due resource is not tried, and is named with its way out."""
    story.hears("v1")
    story.ledger.pause(["Patient"], who="Ada", why="vendor works")
    assert "nothing while Patient is paused: reverse-sync resume" in run("show", PATIENT).out


def test_show_opens_the_api_s_own_words_on_request_and_records_who_looked(
    story: Story, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed words are opened by --words alone, with the payload key, printed harmlessly, and the look is recorded."""
    story.hears("v1")
    write = story.announces(story.claims())
    said = f"{CANARY} is a duplicate\x1b[2J".encode()
    story.ledger.record(write.id, Answer(WriteOutcome.REFUSED, status=422, detail="POST /x answered 422", words=said))
    assert CANARY not in run("show", PATIENT).out
    refused = run("show", PATIENT, "--words")
    assert refused.code == 1
    assert "REVERSE_SYNC_PAYLOAD_KEY" in refused.err
    assert story.ledger.actions() == []
    monkeypatch.setenv("REVERSE_SYNC_PAYLOAD_KEY", KEY)
    assert f"in its own words: {CANARY} is a duplicate [2J" in run("show", PATIENT, "--words").out
    assert run("show", PATIENT, "--words", "--json").json["words"] == {str(write.id): said.decode()}
    assert [(action["who"], action["arguments"]) for action in story.ledger.actions()] == [
        ("Ada", {"reference": PATIENT})
    ] * 2


def test_show_tells_the_key_that_a_write_was_answered_with(story: Story, run: Run) -> None:
    """Of two records made for one resource a person has to see both keys; each stands with its write."""
    story.applies("v1")
    assert "answered: done, key 17" in run("show", PATIENT).out


def test_show_of_an_unknown_one_is_an_error(story: Story, run: Run) -> None:
    """A reference that the ledger never met ends with 1 and says so."""
    told = run("show", "Patient/nobody")
    assert told.code == 1
    assert "knows nothing of Patient/nobody" in told.err


def test_replay_counts_and_asks_first(story: Story, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a yes nothing is changed; the question says how many of what."""
    fails(story)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    told = run("replay", "--all")
    assert told.code == 1
    assert "1 resource (1 Patient)" in told.err
    assert story.mirror()["state"] == "failed"


def test_replay_marks_due_voids_the_digest_and_is_recorded(story: Story, run: Run) -> None:
    """A replay of what was applied writes it again, whatever is known; who and why stand in the ledger."""
    story.applies("v1")
    told = run("replay", PATIENT, "--yes", "--why", "clinic restored a backup", "--json")
    assert told.json == {"replayed": [PATIENT]}
    assert story.mirror()["state"] == "due"
    assert story.sql("SELECT digest FROM links") == [(None,)]
    [action] = story.ledger.actions()
    assert (action["who"], action["action"], action["why"]) == ("Ada", "replay", "clinic restored a backup")


def test_replay_all_is_narrowed_by_type_reason_and_time(story: Story, run: Run) -> None:
    """`--all` takes what failed or is held, and only as far as its options let."""
    fails(story, PATIENT, reason="refused")
    fails(story, CONDITION, reason="unmappable")
    chosen = {
        options: run("replay", "--all", *options, "--yes", "--json").json["replayed"]
        for options in [("--type", "Practitioner"), ("--reason", "gone"), ("--since", "2100-01-01T00:00Z")]
    }
    assert all(replayed == [] for replayed in chosen.values()), chosen
    assert run("replay", "--all", "--type", "Condition", "--since", "2h", "--yes", "--json").json == {
        "replayed": [CONDITION]
    }
    assert story.mirror(PATIENT)["state"] == "failed"


def test_replay_of_an_unknown_reference_replays_nothing(story: Story, run: Run) -> None:
    """One misspelt reference among others stops the whole action."""
    fails(story)
    told = run("replay", PATIENT, "Patient/nobody", "--yes")
    assert told.code == 1
    assert "does not know Patient/nobody" in told.err
    assert story.mirror()["state"] == "failed"


@pytest.mark.parametrize(
    "arguments", [(), (PATIENT, "--all"), (PATIENT, "--type", "Patient"), ("--all", "--since", "x")]
)
def test_replay_wants_one_way_to_say_which(run: Run, arguments: tuple[str, ...]) -> None:
    """Nothing chosen, chosen twice, or a time that is none: exit code 2, and the ledger is not opened."""
    assert run("replay", *arguments).code == 2


def test_pause_and_resume_are_recorded_with_who_and_why(story: Story, run: Run) -> None:
    """A pause is shown as long as it stands, and both actions are kept."""
    assert "Patient is paused, by Ada: vendor works" in run("pause", "Patient", "--why", "vendor works").out
    assert [row["scope"] for row in run("status", "--json").json["paused"]] == ["Patient"]
    assert "1 pause ended" in run("resume", "--why", "done").out
    assert story.ledger.paused() == ()
    assert [(row["who"], row["action"], row["why"]) for row in story.ledger.actions()] == [
        ("Ada", "resume", "done"),
        ("Ada", "pause", "vendor works"),
    ]


def test_pause_of_a_misspelt_type_is_refused(story: Story, run: Run) -> None:
    """A pause that pauses nothing must not look like one."""
    told = run("pause", "Patients", "--why", "vendor works")
    assert told.code == 1
    assert "no route for Patients: the routes are Condition, Patient, Practitioner" in told.err
    assert story.ledger.paused() == ()


def test_resuming_one_type_says_what_is_still_paused(story: Story, run: Run) -> None:
    """Where everything is paused, ending the pause of one type ends nothing, and says so."""
    run("pause", "--why", "vendor works")
    told = run("resume", "Patient", "--why", "done").out
    assert "that was not paused" in told
    assert "everything is paused, by Ada" in told


def test_alive_tells_by_its_exit_code(story: Story, run: Run) -> None:
    """A fresh heartbeat of the role is 0; none, or one that is too old, is 1."""
    assert run("alive", "worker").code == 1
    story.ledger.heartbeat(instance="i1", role="worker", host="h", pid=1)
    assert run("alive", "worker").code == 0
    assert run("alive", "dispatch").code == 1
    assert run("alive", "worker", "--within", "0", "--json").json["alive"] is False


def test_new_keys_are_keys_and_never_share_an_id(run: Run) -> None:
    """What `new-key` prints is what the setting takes, two of them together."""
    keys = [run("new-key").out.strip() for _ in range(2)]
    settings = Settings.read({"REVERSE_SYNC_PAYLOAD_KEY": ",".join(keys)})
    assert [name for name, _ in settings.payload_key] == [key.partition(":")[0] for key in keys]


def test_a_missing_ledger_is_named_and_not_made(run: Run, tmp_path: Path) -> None:
    """A command that only asks makes no file, and names the command that does."""
    told = run("status")
    assert told.code == 1
    assert "reverse-sync migrate" in told.err
    assert not (tmp_path / "ledger.db").exists()


def test_a_ledger_without_tables_says_to_migrate(run: Run, tmp_path: Path) -> None:
    """A file that is there and empty is told by what mends it, not by the database's error."""
    (tmp_path / "ledger.db").touch()
    assert "not those of this release: run `reverse-sync migrate`" in run("status").err


def test_a_misspelt_setting_ends_with_the_code_for_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are refused by name with 78 and without a traceback."""
    monkeypatch.setenv("REVERSE_SYNC_DATABSE_URL", "sqlite:///x")
    told = run("status")
    assert told.code == os.EX_CONFIG
    assert "did you mean REVERSE_SYNC_DATABASE_URL?" in told.err
    assert "Traceback" not in told.err


def test_what_nobody_foresaw_is_told_without_its_text(story: Story, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign exception's text can hold a patient's value: only its type and place come out."""

    def raises(self: Ledger) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr(Ledger, "status", raises)
    told = run("status")
    assert told.code == os.EX_SOFTWARE
    assert "a defect: ValueError at " in told.err
    assert CANARY not in told.err + told.out


def test_without_a_name_the_account_of_the_process_is_recorded(
    story: Story, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action always has a who; one that is too long for the ledger is refused before anything happens."""
    monkeypatch.delenv("REVERSE_SYNC_OPERATOR")
    run("pause", "--why", "x")
    assert story.ledger.actions()[0]["who"]
    monkeypatch.setenv("REVERSE_SYNC_OPERATOR", "A" * 121)
    assert run("resume", "--why", "x").code == os.EX_CONFIG
    assert len(story.ledger.paused()) == 1


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_explains_itself(run: Run, name: str) -> None:
    """`--help` of each command works and says more than its name."""
    told = run(name, "--help")
    assert told.code == 0
    assert len(told.out.splitlines()) > 4


# --- in processes of their own: what is imported, and what needs the routes


@pytest.fixture
def shell(tmp_path: Path) -> Run:
    """Run a command in a process of its own, with the settings of a worker that reaches nobody."""
    settings = {
        "REVERSE_SYNC_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
        "REVERSE_SYNC_MEDPLUM_BASE_URL": "http://127.0.0.1:9/",
        "REVERSE_SYNC_MEDPLUM_CLIENT_ID": "sync",
        "REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "sync-secret",
        "REVERSE_SYNC_OPERATOR": "Ada",
        "REVERSE_SYNC_PAYLOAD_KEY": KEY,
        "REVERSE_SYNC_SITE_CLINIC_KEY": "clinic-key",
        "REVERSE_SYNC_SITE_CLINIC_URL": "http://127.0.0.1:9/api",
        "REVERSE_SYNC_VAR": str(tmp_path / "var"),
    }

    def call(*arguments: str, **more: str) -> Told:
        command = [sys.executable, "-m", "worker.cli", *arguments]
        environment = {**os.environ, **settings, **more}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Told(done.returncode, done.stdout, done.stderr)

    return call


def test_status_imports_neither_models_nor_celery(story: Story, tmp_path: Path) -> None:
    """What costs half a second and more is imported by those commands alone that need it."""
    script = (
        "import sys\nfrom worker.cli import main\ntry:\n    main(['status'])\nexcept SystemExit:\n"
        "    print({name.partition('.')[0] for name in sys.modules} & {'fhir', 'celery', 'alembic', 'httpx', 'redis'})"
    )
    environment = {**os.environ, "REVERSE_SYNC_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "set()", done


def test_migrate_makes_the_tables_and_registers_the_routes(shell: Run) -> None:
    """From nothing it makes a ledger that every process accepts; again it says that nothing was to be done."""
    first = shell("migrate")
    assert first.code == 0, first.err
    assert "before: none" in first.out
    assert "Observation live, Patient live, Practitioner live" in first.out
    assert "as before" in shell("migrate").out


def test_another_system_is_refused_until_somebody_adopts_it(shell: Run) -> None:
    """A ledger that belongs elsewhere names both; `adopt` binds it anew, by name and with a reason."""
    moved = "http://127.0.0.1:10/api"
    assert shell("migrate").code == 0
    refused = shell("migrate", REVERSE_SYNC_SITE_CLINIC_URL=moved)
    assert refused.code == 1
    assert "http://127.0.0.1:9/api" in refused.err
    assert moved in refused.err
    adopted = shell("adopt", "--why", "the clinic's server moved", "--yes", REVERSE_SYNC_SITE_CLINIC_URL=moved)
    assert adopted.code == 0, adopted.err
    assert shell("migrate", REVERSE_SYNC_SITE_CLINIC_URL=moved).code == 0


def test_check_names_everything_that_is_missing(shell: Run) -> None:
    """Each line is ok or says what to do, one fault does not hide the next, and the exit code is 1."""
    told = shell("check", "--json")
    assert told.code == 1
    findings = {finding["name"]: finding for finding in told.json}
    assert "REVERSE_SYNC_BROKER_URL is missing" in findings["settings of web"]["advice"]
    assert "reverse-sync migrate" in findings["the ledger's tables are this release's"]["advice"]
    assert findings["the broker answers"]["ok"] is False
    assert findings["Medplum lets the client in"]["ok"] is False
    assert "GET /ping" in findings["the legacy API clinic answers"]["advice"]


@pytest.fixture
def systems(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run both stand-ins and a broker, and give the settings that reach them."""
    names = {"medplum": [], "clinic": ["--api-key=clinic-key"]}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"deploy.sandbox.{name}", "--db", str(tmp_path / f"{name}.db"),
             "--ready-file", str(tmp_path / f"{name}.url"), *more], cwd=ROOT,
        )
        for name, more in names.items()
    ]  # fmt: skip
    broker = {**os.environ, "REVERSE_SYNC_VAR": str(tmp_path / "var")}
    started.append(
        subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "broker"], cwd=ROOT, env=broker, stdout=subprocess.DEVNULL
        )
    )
    try:
        files = [tmp_path / "medplum.url", tmp_path / "clinic.url", tmp_path / "var" / "broker" / "address"]
        until = time.monotonic() + 30
        while not all(file.exists() for file in files):
            assert time.monotonic() < until, "the stand-ins did not start"
            time.sleep(0.02)
        medplum, clinic, address = (file.read_text().strip() for file in files)
        yield {
            "REVERSE_SYNC_BROKER_URL": address,
            "REVERSE_SYNC_MEDPLUM_BASE_URL": medplum,
            "REVERSE_SYNC_SITE_CLINIC_URL": f"{clinic}/api",
            "REVERSE_SYNC_WEBHOOK_SECRETS": "a secret",
        }
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


@pytest.mark.processes
def test_check_asks_every_system(shell: Run, systems: dict[str, str]) -> None:
    """Where everything is there, all is ok and the code 0; a wrong secret and key are told on their own lines."""
    assert shell("migrate", **systems).code == 0
    told = shell("check", **systems)
    assert told.code == 0, told
    assert "NOT" not in told.out
    wrong = {"REVERSE_SYNC_MEDPLUM_CLIENT_SECRET": "no", "REVERSE_SYNC_SITE_CLINIC_KEY": "no"}
    told = shell("check", "--json", **{**systems, **wrong})
    assert told.code == 1
    faults = [finding["name"] for finding in told.json if not finding["ok"]]
    assert faults == ["Medplum lets the client in", "the legacy API clinic answers"]


def test_the_demo_outside_a_checkout_says_where_it_is(tmp_path: Path) -> None:
    """The wheel has no demo: the command says so in a sentence and ends with 1."""
    shutil.copytree(ROOT / "worker", tmp_path / "worker", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = (
        "import sys\n"
        f"sys.path = [{str(tmp_path)!r}] + [entry for entry in sys.path if entry not in ('', {str(ROOT)!r})]\n"
        "from worker.cli import main\nmain(['demo'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert "run `make demo` there" in done.stderr
