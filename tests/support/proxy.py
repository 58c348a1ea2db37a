"""Stands between fewstep and S3 on loopback, and does to requests what networks do."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str  # "", "503", "drop" (before S3 hears of it), "lose" (S3 does it, its answer gets lost), "delay"
Choose = Callable[[str, str, int], Fault]  # method, path, how many of them there were before


class Proxy(ThreadingHTTPServer):
    """Forwards to S3, with faults. `seen` counts what was done."""

    daemon_threads = True

    def __init__(self, target: str, choose: Choose) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = urlsplit(target)
        self.choose, self.seen = choose, Counter[str]()
        self._requests, self._lock = Counter[str](), threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, method: str, path: str) -> Fault:
        """What happens to a request."""
        with self._lock:
            count = self._requests[f"{method} {path}"]
            self._requests[f"{method} {path}"] += 1
            fault = self.choose(method, path, count)
            self.seen[fault or "none"] += 1
            return fault


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(self) -> None:
        """Pass a request on and its answer back, or do not."""
        if "100-continue" in self.headers.get("Expect", ""):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault(self.command, self.path)
        if fault == "drop":
            return self.hang_up()
        if fault == "503":
            return self.answer(503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>")
        if fault == "delay":
            time.sleep(0.3)
        target = http.client.HTTPConnection(self.server.target.hostname or "", self.server.target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")}
        target.request(self.command, self.path, body, headers)
        reply = target.getresponse()
        data = reply.read()
        target.close()
        if fault == "lose":
            return self.hang_up()
        self.answer(reply.status, dict(reply.getheaders()), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        """Send a whole answer."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        size = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        """Close without an answer."""
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def between(target: str, choose: Choose) -> Iterator[Proxy]:
    """A proxy in front of an S3."""
    proxy = Proxy(target, choose)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
