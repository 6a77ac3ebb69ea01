"""HTTP requests to those who keep or sign checkpoints."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import IO

from pgaudit_wf.errors import PushError

_TIMEOUT = 30
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Attributes:
        status: The HTTP status.
        content_type: The media type, without parameters.
        body: The body.
    """

    status: int
    content_type: str
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    # A redirected POST would arrive as a GET.
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        return None


def host_of(url: str) -> str:
    """Return the host of a URL: what may be shown of it, as the rest may contain a secret."""
    return urllib.parse.urlsplit(url).hostname or "an unnamed host"


def post(url: str, body: bytes, content_type: str) -> Answer:
    """Send a body to an HTTP URL, and return the answer whatever its status.

    Raises:
        PushError: It is no HTTP URL, or no answer came, or one that is too long.
    """
    if not url.startswith(("http://", "https://")):
        raise PushError(f"not an HTTP URL: {url[:40]!r}")
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked
            url, body, {"Content-Type": content_type}, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=_TIMEOUT) as response:
                status, headers, answer = response.status, response.headers, _read(response)
        except urllib.error.HTTPError as error:
            with error:
                status, headers, answer = error.code, error.headers, _read(error)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise PushError(f"nothing could be sent to {host_of(url)}: {reason}") from error
    return Answer(status, headers.get_content_type(), answer)


def _read(response: IO[bytes]) -> bytes:
    answer = response.read(_MAX_ANSWER + 1)
    if len(answer) > _MAX_ANSWER:
        raise ValueError("the answer is longer than 1 MiB")
    return answer
