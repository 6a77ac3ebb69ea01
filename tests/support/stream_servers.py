"""Receivers for tests of streams: a collector over HTTP, and a syslog server over TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme


@dataclass(frozen=True)
class Posted:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Collector:
    """Takes what is posted, and answers with what `answer` says of it.

    0 stands for no answer: the connection breaks off; a negative number for stalling.
    """

    answer: Callable[[Posted], int] = lambda _: 200
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[Posted] = field(default_factory=list)
    taken: list[Posted] = field(default_factory=list)

    def __enter__(self) -> Collector:
        collector = self
        self._release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                posted = Posted(self.path, headers, body)
                collector.seen.append(posted)
                status = collector.answer(posted)
                if status < 0:
                    collector._release.wait(30)
                if status <= 0:
                    self.close_connection = True
                    return
                if 200 <= status < 300:
                    collector.taken.append(posted)
                self.send_response(status)
                for name, value in collector.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


class SyslogServer:
    """A receiver of RFC 5425; `mode` is "take", "break" (after a few bytes) or "stall"."""

    def __init__(self, authority: trustme.CA) -> None:
        self.mode = "take"
        self.answers = True
        self.messages: list[bytes] = []
        self.connections = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self._context)
        self._release = threading.Event()

    def __enter__(self) -> SyslogServer:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._read, args=[plain], daemon=True).start()

    def _read(self, plain: socket.socket) -> None:
        plain.settimeout(30)
        with contextlib.suppress(OSError), plain:
            secure = self._context.wrap_socket(plain, server_side=True)
            with secure:
                if self.mode == "break":
                    secure.recv(10)
                    return
                if self.mode == "stall":
                    self._release.wait(30)
                    return
                received = b""
                while part := secure.recv(65536):
                    received += part
                self._split(received)
                if self.answers:
                    secure.unwrap()

    def _split(self, received: bytes) -> None:
        while received:
            length, _, received = received.partition(b" ")
            self.messages.append(received[: int(length)])
            received = received[int(length) :]
