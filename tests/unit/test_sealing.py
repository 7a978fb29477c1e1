"""What is sealed opens in its own place alone, and a digest says "the same" and nothing else."""

from __future__ import annotations

import base64
import hmac
import time
import timeit
from collections.abc import Callable
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.errors import LedgerError, SettingsInvalid
from worker.ledger.sealing import NoKey, SealBroken, Sealer

CANARY = b"Canary, born 1931-02-29"


class Place(TypedDict):
    table: str
    reference: str
    version: str | None
    column: str


HERE = Place(table="changes", reference="Patient/1", version="v1", column="body")


def key(name: str, byte: int) -> tuple[str, SecretStr]:
    return name, SecretStr(base64.b64encode(bytes([byte]) * 32).decode())


OLD, NEW = key("old", 1), key("new", 2)


def test_what_is_sealed_opens_again() -> None:
    """A value comes back byte for byte."""
    sealer = Sealer([NEW])
    assert sealer.open(sealer.seal(CANARY, **HERE), **HERE) == CANARY


def test_an_empty_value_is_a_value() -> None:
    """No bytes at all are sealed and opened as well."""
    sealer = Sealer([NEW])
    assert sealer.open(sealer.seal(b"", **HERE), **HERE) == b""


def test_a_sealed_value_does_not_show_its_content() -> None:
    """Neither the content nor anything two equal contents share can be seen after the head."""
    sealer = Sealer([NEW])
    first, second = sealer.seal(CANARY, **HERE), sealer.seal(CANARY, **HERE)
    assert CANARY not in first
    assert b"Canary" not in first
    assert first[:5] == second[:5] == b"\x01\x03new"
    assert first[5:17] != second[5:17]
    assert first[17:] != second[17:]


def test_the_first_key_seals_and_all_open() -> None:
    """After a rotation new values carry the new key's id, and old ones still open."""
    before, after = Sealer([OLD]), Sealer([NEW, OLD])
    sealed_before = before.seal(CANARY, **HERE)
    assert after.open(sealed_before, **HERE) == CANARY
    with pytest.raises(SealBroken):
        before.open(after.seal(CANARY, **HERE), **HERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        HERE | {"table": "writes"},
        HERE | {"reference": "Patient/2"},
        HERE | {"version": "v2"},
        HERE | {"version": None},
        HERE | {"column": "answer"},
    ],
)
def test_a_value_opens_only_in_its_place(elsewhere: Place) -> None:
    """Another table, reference, version or column does not open it."""
    sealer = Sealer([NEW])
    with pytest.raises(SealBroken):
        sealer.open(sealer.seal(CANARY, **HERE), **elsewhere)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HERE | {"table": "ab", "reference": "c"}, HERE | {"table": "a", "reference": "bc"}),
        (HERE | {"reference": "a\0", "version": "b"}, HERE | {"reference": "a", "version": "\0b"}),
        (HERE | {"version": ""}, HERE | {"version": None}),
        (HERE | {"version": "None"}, HERE | {"version": None}),
    ],
)
def test_places_that_read_alike_are_told_apart(one: Place, other: Place) -> None:
    """Moving letters from one part of a place to the next makes another place."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(CANARY, **one)
    assert sealer.open(sealed, **one) == CANARY
    with pytest.raises(SealBroken):
        sealer.open(sealed, **other)


def test_every_altered_byte_is_noticed() -> None:
    """Flipping any single byte, of the head as well, keeps a value from opening."""
    sealer = Sealer([NEW, OLD])
    sealed = sealer.seal(CANARY, **HERE)
    for position in range(len(sealed)):
        altered = bytearray(sealed)
        altered[position] ^= 1
        with pytest.raises(SealBroken):
            sealer.open(bytes(altered), **HERE)


def test_every_shortened_value_is_noticed() -> None:
    """A value that lost its end does not open, and raises nothing but SealBroken."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(CANARY, **HERE)
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            sealer.open(sealed[:length], **HERE)


@given(st.binary(max_size=80))
def test_garbage_is_a_named_problem(garbage: bytes) -> None:
    """Whatever bytes stand in a sealed column, the only error is SealBroken."""
    with pytest.raises(SealBroken):
        Sealer([NEW]).open(garbage, **HERE)


@pytest.mark.parametrize(
    "break_it", [lambda sealed: sealed[:-1] + b"\0", lambda sealed: sealed.replace(b"new", b"nix")]
)
def test_an_error_names_table_column_and_key_only(break_it: Callable[[bytes], bytes]) -> None:
    """The message has neither the reference nor the content, and no foreign exception hangs on it."""
    sealer = Sealer([NEW])
    sealed = sealer.seal(CANARY, **HERE)
    with pytest.raises(SealBroken) as caught:
        sealer.open(break_it(sealed), **HERE)
    said = str(caught.value)
    assert "changes.body" in said
    assert "'new'" in said or "'nix'" in said
    assert "Patient" not in said
    assert "Canary" not in said
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert isinstance(caught.value, LedgerError)


def test_without_keys_nothing_is_sealed() -> None:
    """No key: `can_seal` says so, sealing and digesting are refused, and nothing opens or matches."""
    keyless, sealer = Sealer([]), Sealer([NEW])
    assert sealer.can_seal
    assert not keyless.can_seal
    with pytest.raises(NoKey, match="REVERSE_SYNC_PAYLOAD_KEY"):
        keyless.seal(CANARY, **HERE)
    with pytest.raises(NoKey):
        keyless.digest(CANARY)
    with pytest.raises(SealBroken):
        keyless.open(sealer.seal(CANARY, **HERE), **HERE)
    assert not keyless.matches(sealer.digest(CANARY), CANARY)


def test_a_digest_is_the_same_for_the_same_content_alone() -> None:
    """Equal content has an equal digest, other content another one; the digest names its key."""
    sealer = Sealer([NEW])
    assert sealer.digest(CANARY) == Sealer([NEW]).digest(CANARY)
    assert sealer.digest(CANARY) != sealer.digest(CANARY + b" ")
    name, _, code = sealer.digest(CANARY).partition(":")
    assert name == "new"
    assert len(code) == 64
    assert set(code) <= set("0123456789abcdef")


def test_a_digest_of_an_old_key_still_matches() -> None:
    """A rotation voids no digest: the key that it names is used, whichever one seals now."""
    old = Sealer([OLD]).digest(CANARY)
    rotated = Sealer([NEW, OLD])
    assert rotated.matches(old, CANARY)
    assert not rotated.matches(old, b"other")
    assert rotated.matches(rotated.digest(CANARY), CANARY)
    assert rotated.digest(CANARY).startswith("new:")


@pytest.mark.parametrize("nothing", ["", ":", "new", "new:", "new:é", "old:" + "0" * 64, "0" * 64])
def test_a_digest_of_no_known_key_matches_nothing(nothing: str) -> None:
    """An unknown key's digest, or what is no digest at all, is "different", never an error."""
    assert not Sealer([NEW]).matches(nothing, CANARY)


def test_a_digest_cannot_be_guessed_from_the_sealing_key() -> None:
    """Sealing and digest have keys of their own, and neither is the key that was given."""
    digest = Sealer([NEW]).digest(CANARY).partition(":")[2]
    assert digest != hmac.digest(b"\x02" * 32, CANARY, "sha256").hex()
    assert Sealer([NEW])._digest_keys["new"] != b"\x02" * 32
    assert Sealer([OLD]).digest(CANARY).partition(":")[2] != digest


@pytest.mark.parametrize(
    ("name", "text"), [("a", "short"), ("a", "!" * 44), ("a" * 65, NEW[1].get_secret_value()), ("", "A" * 43 + "=")]
)
def test_a_key_that_cannot_be_one_is_refused(name: str, text: str) -> None:
    """A key of another length, or an id that would not fit, is refused without being shown."""
    with pytest.raises(SettingsInvalid, match="REVERSE_SYNC_PAYLOAD_KEY") as caught:
        Sealer([(name, SecretStr(text))])
    assert text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_sealing_is_fast_enough_for_the_receiver() -> None:
    """Sealing, opening and digesting a small body take far less than the commit that they are part of."""
    sealer = Sealer([NEW, OLD])
    body = b"x" * 2000

    def all_three() -> None:
        sealer.open(sealer.seal(body, **HERE), **HERE)
        sealer.digest(body)

    best = min(timeit.repeat(all_three, number=200, repeat=5, timer=time.process_time)) / 200
    assert best < 200e-6  # about 12 µs on two slow cores
