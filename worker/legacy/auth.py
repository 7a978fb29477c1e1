"""How a legacy API is entered. Any `httpx.Auth` serves; here is what httpx does not bring."""

from __future__ import annotations

from collections.abc import Generator

import httpx
from pydantic import SecretStr


class ApiKey(httpx.Auth):
    """A key in a header."""

    def __init__(self, header: str, key: SecretStr) -> None:
        self._header = header
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self._header] = self._key.get_secret_value()
        yield request
