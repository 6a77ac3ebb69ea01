"""The app that a host mounts: every route behind the host's own authentication."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI
from psycopg_pool import ConnectionPool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgaudit_wf.integrity.note import VerifierKey
from pgaudit_wf.integrity.timestamp import Authority
from pgaudit_wf.web import (
    api,
    key_pages,
    pages,
    problems,
    queries,
    rendering,
    undo_pages,
    workflow_api,
    workflow_pages,
)
from pgaudit_wf.web.database import Database, Pool
from pgaudit_wf.web.models import Problem
from pgaudit_wf.web.paths import local_path
from pgaudit_wf.web.principal import Authenticate, Principal
from pgaudit_wf.web.sealed_log import Integrity

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_STATIC = Path(__file__).parent / "static"
# These contain no organization's data, so every signed-in user may have them.
PUBLIC_PATHS = re.compile(r"/(healthz|openapi\.json)")
# Read by every member where the database says so; what writes asks again.
_HISTORY_PATHS = re.compile(r"/|/workflows(/.*)?|/api/workflows/.*", re.DOTALL)


class _Guard:
    """Admits only users known to the host, and sends the same headers with every response."""

    def __init__(
        self,
        app: ASGIApp,
        principal: Authenticate,
        database: Database,
        settings: rendering.Settings,
        open_health: bool,
        integrity: Integrity | None,
        revoke_key: key_pages.RevokeKey | None,
    ) -> None:
        self._app = app
        self._integrity = integrity
        self._revoke_key = revoke_key
        self._principal = principal
        self._database = database
        self._settings = settings
        self._open_health = open_health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        scope["pgaudit_wf.database"] = self._database
        scope["pgaudit_wf.settings"] = self._settings
        scope["pgaudit_wf.integrity"] = self._integrity
        scope["pgaudit_wf.revoke_key"] = self._revoke_key
        request = Request(scope, receive)
        refused = await self._admit(request)
        await (refused or self._app)(scope, receive, send_with_headers)

    async def _admit(self, request: Request) -> ASGIApp | None:
        path = local_path(request)
        if path == "/healthz" and self._open_health:
            return None
        # The page that asks to sign in needs its styles.
        if path.startswith("/static/"):
            return None
        who: Any = self._principal(request)
        if inspect.isawaitable(who):
            who = await who
        if who is None:
            return problems.problem(
                request, 401, "Sign in to see this.",
                headers={"WWW-Authenticate": 'Session realm="audit"'},
            )  # fmt: skip
        if not isinstance(who, Principal):
            raise TypeError(f"principal() must return a Principal or None, not {type(who)!r}")
        request.scope["pgaudit_wf.principal"] = who
        if who.may_read or PUBLIC_PATHS.fullmatch(path):
            return None
        try:
            admitted = (
                request.method in ("GET", "HEAD")
                and _HISTORY_PATHS.fullmatch(path) is not None
                and await queries.may_read_history(self._database, request, who)
            )
        except psycopg.Error as error:
            return problems.from_driver(request, error)
        if not admitted:
            return problems.problem(
                request, 403, "Only owners and admins of the organization may see this."
            )
        request.scope["pgaudit_wf.history_only"] = True
        return None


class _Static(StaticFiles):
    """Files that browsers cache for an hour."""

    def file_response(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - starlette's
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response


def create_app(
    pool: Pool,
    principal: Callable[[Request], Principal | Awaitable[Principal | None] | None],
    *,
    write_pool: Pool | None = None,
    undo_pool: Pool | None = None,
    integrity_pool: ConnectionPool[Any] | None = None,
    verify_keys: Iterable[VerifierKey] = (),
    authorities: Iterable[Authority] = (),
    revoke_key: key_pages.RevokeKey | None = None,
    title: str = "Audit",
    sign_in_url: str | None = None,
    reader_role: str = "pgaudit_wf_reader",
    timeout: float = 15.0,
    open_health: bool = False,
) -> FastAPI:
    """Return the pages and the API as an ASGI app, to be served alone or mounted in another.

        app.mount("/audit", create_app(pool, principal=signed_in_user))

    Everything is read as the reader role, in a transaction with the principal and the organization,
    so row-level security applies whatever the app does. The app neither opens nor closes pools, and
    needs no lifespan.

    Args:
        pool: For reads: a `psycopg_pool.AsyncConnectionPool` or `ConnectionPool` whose login is a
            member of the reader role. Runs are shown if that role may read their table.
        principal: Called with each request; returns the signed-in user, None, or an awaitable of
            either. None results in 401 everywhere; a role other than "owner" and "admin" in 403,
            except for reading versions where the database's `version_policy` has `members_read`.
        write_pool: For restoring versions: a pool whose login may update workflows and is a member
            of `pgaudit_wf_app`. None: restoring is not offered, and its route returns 501.
        undo_pool: For undoing changes: a pool whose login is a member of the reader role and may
            change the tables whose changes owners and admins may undo. None: it is not offered.
        integrity_pool: For the sealed log: a `ConnectionPool` of the schema's owner. None: the
            Integrity page says that it is not available, and proofs return 501.
        verify_keys: The public keys of the log and of witnesses; without any, "Verify now" is not
            offered.
        authorities: The time-stamp authorities whose word "Verify now" shows.
        revoke_key: Revokes an API key: called with the request, the principal, the key's id and the
            reason, as a coroutine function or in a thread, with all of that bound as the context
            (`pgaudit_wf.bind`). The key is one of the organization. None: it is not offered.
        title: The title of each page.
        sign_in_url: The sign-in page that the 401 page links to.
        reader_role: The role for reads.
        timeout: Seconds after which a read is canceled and results in 503.
        open_health: Let `/healthz` answer without a principal.
    """
    app = FastAPI(
        title="pgaudit_wf",
        summary="Who did what, what changed, and restoring it.",
        version=metadata.version("pgaudit-wf"),
        docs_url=None,
        redoc_url=None,
    )
    database = Database(pool, write_pool, undo_pool, reader_role, timeout)
    app.add_middleware(
        _Guard,
        principal=principal,
        database=database,
        settings=rendering.Settings(title, sign_in_url),
        open_health=open_health,
        integrity=Integrity(integrity_pool, tuple(verify_keys), tuple(authorities))
        if integrity_pool
        else None,
        revoke_key=revoke_key,
    )
    problems.handle(app)
    app.mount("/static", _Static(directory=_STATIC), name="static")
    app.include_router(api.router)
    app.include_router(workflow_api.router)
    app.include_router(key_pages.api_router)
    app.include_router(key_pages.router)
    app.include_router(pages.router)
    app.include_router(workflow_pages.router)
    app.include_router(undo_pages.router)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Make the OpenAPI document describe our errors instead of FastAPI's."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            schemas = document["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Problem"] = Problem.model_json_schema()
        assert app.openapi_schema is not None  # noqa: S101 - just made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
