"""Medplum and the legacy clinic as cheap as Python can be, in one process: both stand on other machines in real life.

    python -m tests.bench.stub PORT

Medplum's half answers a token and searches by id, with any patient of `tests.bench.patients`. The clinic's half makes
a record of each POST, after a delay that can be set, and counts. It never checks anything.

`GET /bench` tells how many records were made, and when the first and the last; `POST /bench?<seconds>` sets the delay
and begins to count anew.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from email.utils import formatdate
from urllib.parse import unquote

import uvloop

from tests.bench.patients import number_of, read

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_IDS = re.compile(r"[?&]_id=([^& ]+)")
_DELETED = "_deleted=true"


class Records:
    """What the clinic's half has made since it began to count."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.begin(0.0)

    def begin(self, delay_s: float) -> None:
        self.delay_s, self.count, self.first_at, self.last_at = delay_s, 0, 0.0, 0.0

    def make(self) -> bytes:
        self.count += 1
        self.last_at = time.time()
        self.first_at = self.first_at or self.last_at
        key = {"number": 4700 + self.count, "uuid": f"{self.last_at:.6f}-{self.count}"}
        return json.dumps({"data": key | {"status": "active"}}).encode()

    def tell(self) -> bytes:
        return json.dumps({"count": self.count, "first_at": self.first_at, "last_at": self.last_at}).encode()


class Door(asyncio.Protocol):
    """One connection; one request at a time, as httpx sends them."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._got = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(_HEAD_END)
        if not end:
            return
        length = _LENGTH.search(head)
        if length is not None and len(body) < int(length[1]):
            return
        self._got = b""
        method, path, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        self._answer(method, path)

    def _answer(self, method: str, path: str) -> None:
        if path.startswith("/api/"):
            delay_s = self._records.delay_s
            made = self._records.make()  # counted when it arrives: the delay is the caller's to wait for
            if delay_s:
                asyncio.get_running_loop().call_later(delay_s, self._send, 201, made)
            else:
                self._send(201, made)
        elif path.startswith("/fhir/R4/Patient"):
            self._send(200, _bundle(unquote(path)))
        elif path.startswith("/oauth2/token"):
            self._send(200, b'{"access_token":"x.y.z","token_type":"Bearer","expires_in":3600}')
        else:
            if method == "POST":
                self._records.begin(float(path.partition("?")[2]))
            self._send(200, self._records.tell())

    def _send(self, status: int, body: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ndate: {formatdate(usegmt=True)}\r\n"
            self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


def _bundle(path: str) -> bytes:
    ids = _IDS.search(path)
    known = ids[1].split(",") if ids and _DELETED not in path else []
    entries = b",".join(b'{"search":{"mode":"match"},"resource":%b}' % read(number_of(id_)) for id_ in known)
    return b'{"resourceType":"Bundle","type":"searchset","entry":[%b]}' % entries


async def serve(port: int) -> None:
    records = Records()
    server = await asyncio.get_running_loop().create_server(lambda: Door(records), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
