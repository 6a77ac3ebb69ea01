"""Protection against requests forged by other sites' pages."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from pgaudit_wf.web.paths import base
from pgaudit_wf.web.problems import ProblemError

COOKIE = "pgaudit_wf_csrf"
FIELD = "csrf_token"


def from_elsewhere(request: Request) -> bool:
    """Return whether the browser says that another site's page made the request."""
    # Browsers set these headers, and pages cannot override them; programs send neither.
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


def token_of(request: Request) -> str:
    """Return the browser's token, or a new one."""
    kept = request.cookies.get(COOKIE, "")
    return kept if len(kept) == 43 else secrets.token_urlsafe(32)


def keep_token(request: Request, response: Response, token: str) -> None:
    """Make the browser send the token along, from our own pages only."""
    response.set_cookie(
        COOKIE,
        token,
        path=f"{base(request)}/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def is_ours(request: Request, token: str) -> bool:
    """Return whether a form was sent by one of our pages: its token is the cookie's."""
    kept = request.cookies.get(COOKIE, "")
    return bool(kept) and not from_elsewhere(request) and hmac.compare_digest(kept, token)


async def check_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our pages sent; an empty one is left out.

    Raises:
        ProblemError: Another page sent it, or its token is gone.
    """
    body = await request.body()
    sent = dict(parse_qsl(body.decode("utf-8", "replace")))
    if not is_ours(request, sent.get(FIELD, "")):
        raise ProblemError(403, "The form was not sent by these pages, or has expired; try again.")
    return sent
