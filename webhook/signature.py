"""Who may tell us something: the HMAC over a body, and the shared header. Pure; secrets are compared in constant time.

Medplum signs the raw bytes of the body alone, with the Subscription's secret as UTF-8. Headers are not signed.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import SecretStr

__all__ = ["COMMON", "Secrets", "SharedHeader", "is_signature"]

COMMON: Final = ""
"""The key under which the settings keep the secrets that serve every Subscription."""

_HEX: Final = re.compile(rb"[0-9a-fA-F]{64}")


def is_signature(value: bytes) -> bool:
    """Say whether this could be an `X-Signature` at all; asked before a body is read."""
    return _HEX.fullmatch(value) is not None


class Secrets:
    """Every secret that a notification may be signed with: a rotation needs two for a while."""

    def __init__(
        self, by_subscription: Mapping[str, Sequence[SecretStr]], *, strangers: Sequence[SecretStr] = ()
    ) -> None:
        """Take the secrets by the Subscription's id.

        `strangers` are for one whose id is not known yet, as of a new one at its first delivery: any of them may do.
        """
        common = _keys(by_subscription.get(COMMON, ()))
        self._common = tuple(dict.fromkeys(common + _keys(strangers)))
        self._own = {
            name.encode(): tuple(dict.fromkeys(_keys(secrets) + common))
            for name, secrets in by_subscription.items()
            if name != COMMON
        }
        self._all = tuple(dict.fromkeys(key for keys in (self._common, *self._own.values()) for key in keys))

    @property
    def none(self) -> bool:
        """Tell that there is nothing to verify with."""
        return not self._all

    def sign(self, body: bytes, signature: bytes, subscriptions: Sequence[bytes]) -> bool:
        """Say whether one of the secrets that apply made this signature."""
        return self.signer(body, signature, subscriptions) is not None

    def signer(self, body: bytes, signature: bytes, subscriptions: Sequence[bytes]) -> bytes | None:
        """Return the secret that made this signature, of those that apply.

        Which Subscription sent it is a header, thus only a hint: where it is missing (old servers) or doubled
        (`channel.header` can do that) each secret is tried.
        """
        given = bytes.fromhex(signature.decode("ascii"))
        found = None
        for key in self._applying(subscriptions):
            if hmac.compare_digest(hmac.digest(key, body, "sha256"), given):
                found = key
        return found

    def _applying(self, subscriptions: Sequence[bytes]) -> tuple[bytes, ...]:
        if len(subscriptions) != 1:
            return self._all
        return self._own.get(subscriptions[0], self._common)


class SharedHeader:
    """The value that `Authorization` has to have, if one is set: a cheap refusal before any body is read."""

    def __init__(self, value: SecretStr | None) -> None:
        text = None if value is None else value.get_secret_value()
        self._accepted = () if text is None else tuple(dict.fromkeys(_spellings(text)))

    def admits(self, values: Sequence[bytes]) -> bool:
        """Say whether the request carries the header once and with this value."""
        if not self._accepted:
            return True
        if len(values) != 1:
            return False
        fits = False
        for accepted in self._accepted:
            fits |= hmac.compare_digest(accepted, values[0])
        return fits


def _keys(secrets: Sequence[SecretStr]) -> tuple[bytes, ...]:
    return tuple(secret.get_secret_value().encode() for secret in secrets)


def _spellings(text: str) -> list[bytes]:
    """Return both ways that a header's letters become bytes: node sends Latin-1, most others UTF-8."""
    spellings = [text.encode()]
    if all(ord(letter) < 256 for letter in text):  # noqa: PLR2004 - that is Latin-1
        spellings.append(text.encode("latin-1"))
    return spellings
