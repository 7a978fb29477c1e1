"""Seals what the ledger keeps of a record, and digests it. Never decides what is stored, and never says what it read.

A sealed value opens only in its own place: table, reference, version and column are bound to it, so that a row
copied over another one is noticed. Each key is stretched into two, one to seal with and one to digest with.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from worker.errors import LedgerError, SettingsInvalid

FORMAT = 1  # the first byte of whatever is sealed
NONCE_BYTES = 12  # drawn at random, which is safe for some 2**32 seals under one key: far more than one migration
KEY_BYTES = 32
KEY_ID_BYTES = 64  # a digest names its key, and its column has room for this much


class SealBroken(LedgerError):
    """A sealed value does not open here: its key is not known, or it is not the one that was put in this place."""


class NoKey(LedgerError):
    """Nothing can be sealed or digested, because no key was given."""

    def __init__(self) -> None:
        super().__init__("no key is given: set REVERSE_SYNC_PAYLOAD_KEY to id:base64 of 32 bytes")


class Sealer:
    """Seals with the first of its keys and opens with all of them."""

    def __init__(self, keys: Sequence[tuple[str, SecretStr]]) -> None:
        """Take the keys as `Settings.payload_key` has them.

        Raises:
            SettingsInvalid: a key is not the base64 of 32 bytes, or its id is too long.
        """
        secrets = {name: _secret(name, given) for name, given in keys}
        self._ciphers = {name: AESGCM(_derive(secret, b"seal")) for name, secret in secrets.items()}
        self._digest_keys = {name: _derive(secret, b"digest") for name, secret in secrets.items()}
        self._first = next(iter(secrets), "")
        name = self._first.encode()
        self._head = bytes((FORMAT, len(name))) + name

    @property
    def can_seal(self) -> bool:
        return bool(self._ciphers)

    def seal(self, plain: bytes, *, table: str, reference: str, version: str | None, column: str) -> bytes:
        """Seal a value for its place: format, length and id of the key, nonce, ciphertext with its tag.

        Raises:
            NoKey: no key was given; ask `can_seal` first.
        """
        if not self._ciphers:
            raise NoKey
        nonce = os.urandom(NONCE_BYTES)
        place = _place(table, reference, version, column)
        return self._head + nonce + self._ciphers[self._first].encrypt(nonce, plain, place)

    def open(self, sealed: bytes, *, table: str, reference: str, version: str | None, column: str) -> bytes:
        """Open a value that was sealed for this place.

        Raises:
            SealBroken: names the table, the column and the key's id, and nothing else.
        """
        name, nonce, ciphertext = _take_apart(sealed, where=f"{table}.{column}")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise SealBroken(f"{table}.{column} is sealed with the key {name!r}, which REVERSE_SYNC_PAYLOAD_KEY lacks")
        try:
            return cipher.decrypt(nonce, ciphertext, _place(table, reference, version, column))
        except InvalidTag:
            raise SealBroken(
                f"{table}.{column} does not open with the key {name!r}: altered, moved from another row, "
                "or the key under this id is another one now"
            ) from None

    def digest(self, data: bytes) -> str:
        """Tell equal contents without telling the content: the key's id, a colon, HMAC-SHA256 in hex.

        Raises:
            NoKey: no key was given; ask `can_seal` first.
        """
        if not self._digest_keys:
            raise NoKey
        return self._digest(self._first, data)

    def matches(self, digest: str, data: bytes) -> bool:
        """Say whether a digest, made with any key that is still known, is the one of this content."""
        name = digest.partition(":")[0]
        return name in self._digest_keys and hmac.compare_digest(self._digest(name, data).encode(), digest.encode())

    def _digest(self, name: str, data: bytes) -> str:
        return f"{name}:{hmac.digest(self._digest_keys[name], data, 'sha256').hex()}"


def _secret(name: str, given: SecretStr) -> bytes:
    try:
        secret = base64.b64decode(given.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES or not 0 < len(name.encode()) <= KEY_ID_BYTES or ":" in name:
        raise SettingsInvalid(
            f"REVERSE_SYNC_PAYLOAD_KEY: each key is id:base64, the id at most {KEY_ID_BYTES} bytes, "
            f"the base64 of exactly {KEY_BYTES} bytes"
        )
    return secret


def _derive(secret: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"reverse-sync/" + label).derive(secret)


def _place(table: str, reference: str, version: str | None, column: str) -> bytes:
    """Encode a place so that no two places look alike: each part behind its length, none behind a length of its own."""
    parts = [b"\xff\xff\xff\xff" if part is None else _counted(part) for part in (table, reference, version, column)]
    return b"".join(parts)


def _counted(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(4, "big") + encoded


def _take_apart(sealed: bytes, *, where: str) -> tuple[str, bytes, bytes]:
    if sealed[:1] != bytes((FORMAT,)):
        raise SealBroken(f"{where} does not hold a sealed value of this release")
    start = 2 + int.from_bytes(sealed[1:2], "big")
    try:
        name = sealed[2:start].decode()
    except UnicodeDecodeError:
        raise SealBroken(f"{where} names its key by something that is not a key's id") from None
    if len(sealed) < start + NONCE_BYTES:
        raise SealBroken(f"{where} is cut short (key {name!r})")
    return name, sealed[start : start + NONCE_BYTES], sealed[start + NONCE_BYTES :]
