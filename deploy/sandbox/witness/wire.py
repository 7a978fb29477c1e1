"""What a fault does to a connection beneath HTTP: cut it, close it, drip bytes, say nothing.

It never looks at a request. The transport comes from a uvicorn protocol subclass, through the ASGI scope.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Iterable
from typing import cast

from starlette.types import Receive, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TRANSPORT = "witness.transport"
_NO_LINGER = struct.pack("ii", 1, 0)
_INTERIM = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n")


class OpenProtocol(HttpToolsProtocol):
    """Hands the transport of each request to the application."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(Scope, self.scope)["extensions"] = {_TRANSPORT: {"transport": self.transport}}


class Wire:
    """The caller's connection, in the hands of a fault.

    Each method returns when the connection is gone: uvicorn would send a 500 for an application that returns earlier.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._transport: asyncio.Transport = scope["extensions"][_TRANSPORT]["transport"]
        self._receive = receive

    async def reset(self) -> None:
        """Send RST: what was not read or sent yet is thrown away on both sides."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()
        await self.silence()

    async def close(self) -> None:
        """Send FIN without an answer."""
        self._transport.close()
        await self.silence()

    async def silence(self) -> None:
        """Say nothing until the caller hangs up."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drip(self, head: bytes, slow: bytes, seconds: float) -> None:
        """Send `head` at once and `slow` byte by byte, then close."""
        self._transport.write(head)
        await self._trickle((bytes([byte]) for byte in slow), seconds)
        await self.close()

    async def interim(self, seconds: float) -> None:
        """Send interim answers until the caller hangs up."""
        await self._trickle(itertools.cycle(_INTERIM), seconds)
        await self.silence()

    async def _trickle(self, pieces: Iterable[bytes], seconds: float) -> None:
        for piece in pieces:
            if self._transport.is_closing():
                return
            self._transport.write(piece)
            await asyncio.sleep(seconds)
