"""Receivers for tests of alerts: a mail server and a web server that can be told to misbehave."""

from __future__ import annotations

import asyncio
import email
import email.policy
import socket
import threading
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Mail:
    recipients: tuple[str, ...]
    message: EmailMessage

    @property
    def id(self) -> str:
        return str(self.message["Message-ID"])

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    @property
    def text(self) -> str:
        body = self.message.get_body(("plain",))
        assert body is not None
        return str(body.get_content()).replace("\r\n", "\n")

    @property
    def html(self) -> str:
        body = self.message.get_body(("html",))
        assert body is not None
        return str(body.get_content()).replace("\r\n", "\n")


class MailServer:
    """A real SMTP server on loopback.

    `mode` is "take", "refuse" (550 to the recipient), "busy" (451), "stall" (no answer to DATA),
    "drop" (the line goes dead after DATA was taken) or "stall after" (taken, then no answer).
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - aiosmtpd's
        self.mode = "take"
        self.taken: list[Mail] = []
        self.attempts = 0
        self.logins: list[tuple[bytes, bytes]] = []
        self.accept = b"open sesame"
        self.port = free_port()
        self._options = options
        self._controller: Controller | None = None

    async def handle_RCPT(  # noqa: N802 - aiosmtpd calls it so
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: object
    ) -> str:
        self.attempts += 1
        if self.mode == "refuse":
            return f"550 5.1.1 <{address}>: no such user, password=hunter2"
        if self.mode == "busy":
            return "451 4.3.2 come back later"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(  # noqa: N802 - aiosmtpd calls it so
        self, server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        if self.mode == "stall":
            await asyncio.sleep(30)
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append(Mail(tuple(envelope.rcpt_tos), message))
        if self.mode == "drop":
            assert server.transport is not None
            server.transport.close()
        if self.mode == "stall after":
            await asyncio.sleep(30)
        return "250 taken"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == self.accept)

    def start(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **self._options)
        self._controller.start()

    def stop(self) -> None:
        if self._controller is not None:
            controller, self._controller = self._controller, None
            loop = controller.loop
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
            controller.stop()

    def __enter__(self) -> MailServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class WebServer:
    """A receiver of webhooks; answers with `status` and `headers`, or stalls."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    stalls: bool = False
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> WebServer:
        receiver = self
        self._release = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append(Request(self.path, dict(self.headers.items()), body))
                if receiver.stalls:
                    receiver._release.wait(30)
                    return
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
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
        return f"http://127.0.0.1:{self._server.server_port}/hook"
