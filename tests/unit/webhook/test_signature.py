"""`webhook.signature`: which secret may sign what, and which header admits."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from pydantic import SecretStr

from webhook.signature import COMMON, Secrets, SharedHeader, is_signature

BODY = b'{"resourceType":"Patient"}'


def signed(secret: str, body: bytes = BODY) -> bytes:
    """Sign as Medplum does."""
    return hmac.new(secret.encode("utf-8"), body, hashlib.sha256).hexdigest().encode()


def secrets(**by_subscription: str | tuple[str, ...]) -> Secrets:
    """Make secrets; `common` is the name of those of every Subscription."""
    given = {COMMON if name == "common" else name: value for name, value in by_subscription.items()}
    return Secrets(
        {name: tuple(map(SecretStr, (value,) if isinstance(value, str) else value)) for name, value in given.items()}
    )


def test_any_of_the_secrets_will_do_during_a_rotation() -> None:
    """The old and the new secret both sign, a third does not."""
    known = secrets(common=("old", "new"))
    assert known.sign(BODY, signed("old"), [b"s"])
    assert known.sign(BODY, signed("new"), [b"s"])
    assert not known.sign(BODY, signed("other"), [b"s"])


def test_the_signature_covers_every_byte() -> None:
    """A body that differs by one byte, or is empty, does not fit."""
    known = secrets(common="secret")
    assert not known.sign(BODY + b" ", signed("secret"), [])
    assert not known.sign(b"", signed("secret"), [])


def test_a_secret_that_is_not_ascii_signs_as_utf_8() -> None:
    """The key is the secret's UTF-8 bytes."""
    assert secrets(common="pässwörd-😀").sign(BODY, signed("pässwörd-😀"), [b"s"])


def test_upper_case_digits_are_the_same_signature() -> None:
    """Hexadecimal has no case."""
    assert secrets(common="secret").sign(BODY, signed("secret").upper(), [b"s"])


def test_a_subscription_is_signed_with_its_own_secret_or_a_common_one() -> None:
    """Another Subscription's secret does not count, nor does an own one for a Subscription that is not listed."""
    known = secrets(common="common", a="of-a", b="of-b")
    assert known.sign(BODY, signed("of-a"), [b"a"])
    assert known.sign(BODY, signed("common"), [b"a"])
    assert known.sign(BODY, signed("common"), [b"unlisted"])
    assert not known.sign(BODY, signed("of-b"), [b"a"])
    assert not known.sign(BODY, signed("of-a"), [b"unlisted"])


@pytest.mark.parametrize("subscriptions", [[], [b"a", b"fake"]])
def test_every_secret_is_tried_where_the_header_does_not_tell(subscriptions: list[bytes]) -> None:
    """Old servers send no Subscription header, and `channel.header` can double it."""
    known = secrets(common="common", a="of-a", b="of-b")
    assert all(known.sign(BODY, signed(secret), subscriptions) for secret in ("common", "of-a", "of-b"))
    assert not known.sign(BODY, signed("other"), subscriptions)


@pytest.mark.parametrize(
    "value", [b"", b"a" * 63, b"a" * 65, b"g" * 64, b"sha256=" + b"a" * 64, b" " * 64, b"a" * 64 + b"\n"]
)
def test_what_is_not_64_hexadecimal_digits_is_no_signature(value: bytes) -> None:
    """The form is judged before any body is read."""
    assert not is_signature(value)


def test_the_shared_header_admits_its_one_value() -> None:
    """Missing, doubled, shortened or different values are refused; without a setting all are admitted."""
    header = SharedHeader(SecretStr("Bearer token"))
    assert header.admits([b"Bearer token"])
    for values in ([], [b"Bearer token", b"Bearer token"], [b"Bearer toke"], [b"bearer token"], [b""]):
        assert not header.admits(values)
    assert SharedHeader(None).admits([])
    assert SharedHeader(None).admits([b"anything"])


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_shared_header_with_umlauts_is_admitted_in_both_spellings(encoding: str) -> None:
    """Node writes header values as Latin-1, other senders as UTF-8."""
    assert SharedHeader(SecretStr("Bearer Schlüssel")).admits(["Bearer Schlüssel".encode(encoding)])
