"""The middleware that binds each request's context, and the hook that gives it to the database."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import psycopg
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponseBase
from django.utils.module_loading import import_string
from psycopg.pq import TransactionStatus
from psycopg.sql import Composable

from pgaudit_wf.context.block import active_context, quoter, request_context
from pgaudit_wf.context.values import (
    EMPTY,
    READ_TRANSACTION,
    RequestContext,
    bind,
    current_context,
    set_local,
)
from pgaudit_wf.integrations.http import TrustedProxies, correlation_id, header_text

_Answer: TypeAlias = HttpResponseBase | Awaitable[HttpResponseBase]
_Execute: TypeAlias = Callable[..., object]

# Statements that can change rows outside of a transaction, after blanks, comments, parentheses.
_WRITES = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:insert|update|delete|merge|truncate|with|copy|call|do|execute|explain)\b",
    re.IGNORECASE | re.DOTALL,
)
_READS = re.compile(r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*select\b", re.IGNORECASE | re.DOTALL)
_OURS = re.compile(r'\bpgaudit_wf"?\.')
# As the models write them: plain SQL of the application's own has the rights of its login.
_LOG = re.compile(r'"pgaudit_wf"\."(?:security_audit_log|workflow_history)"')
_ROLLBACK = re.compile(r"\s*rollback\b", re.IGNORECASE)

# The context that the open transaction of a driver's connection carries.
_applied: WeakKeyDictionary[psycopg.Connection[Any], RequestContext] = WeakKeyDictionary()

# True while a principal is being asked, as that may itself query the database.
_asking: ContextVar[bool] = ContextVar("pgaudit_wf_asking", default=False)


def principal(request: HttpRequest) -> dict[str, str]:
    """Return the signed-in user of a request: its key, user name, and "session"."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {}
    return {
        "actor_id": str(user.pk),
        "actor_label": user.get_username(),
        "auth_method": "session",
    }


class AuditContextMiddleware:
    """Binds a context for the time of each request, under WSGI and ASGI, and calls `install`.

    The context has the client's ip and user agent, a correlation id (the request's X-Request-ID,
    or else the trace id of its traceparent, or else a new one; the response carries it), and what
    the principal function says. That one is asked when the database is about to be written to,
    each time again: a request that signs a user in is attributed to that user from then on, and
    one that never writes does not load its user for us.

    Raises:
        ImproperlyConfigured: A setting is not valid.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], _Answer]) -> None:
        self._get_response = get_response
        try:
            self._proxies = TrustedProxies(getattr(settings, "PGAUDIT_WF_TRUSTED_PROXIES", ()))
        except ValueError as error:
            raise ImproperlyConfigured(f"PGAUDIT_WF_TRUSTED_PROXIES: {error}") from error
        self._country_header: str | None = getattr(settings, "PGAUDIT_WF_COUNTRY_HEADER", None)
        path = getattr(settings, "PGAUDIT_WF_PRINCIPAL", None)
        self._principal: Callable[[HttpRequest], RequestContext | Mapping[str, Any] | None]
        self._principal = import_string(path) if path else principal
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        install()

    def __call__(self, request: HttpRequest) -> _Answer:
        """Serve one request."""
        found = self._found(request)
        if self._is_async:
            return self._serve_async(request, found)
        with self._bind(request, found):
            response = cast("HttpResponseBase", self._get_response(request))
        return _with_id(response, found)

    async def _serve_async(self, request: HttpRequest, found: RequestContext) -> HttpResponseBase:
        with self._bind(request, found):
            response = await cast("Awaitable[HttpResponseBase]", self._get_response(request))
        return _with_id(response, found)

    def _bind(self, request: HttpRequest, found: RequestContext) -> AbstractContextManager[None]:
        def context() -> RequestContext:
            if _asking.get():
                return found
            token = _asking.set(True)
            try:
                who = self._principal(request)
            except SynchronousOnlyOperation:
                # Asked from a coroutine before anything has loaded the user. The database hook
                # never runs in one, so nothing is written without its actor.
                return found
            finally:
                _asking.reset(token)
            if who is None or isinstance(who, RequestContext):
                return found.merge(who)
            return found.merge(**cast("Any", who))

        return bind(context)

    def _found(self, request: HttpRequest) -> RequestContext:
        peer = request.META.get("REMOTE_ADDR")
        forwarded_for = request.headers.get("X-Forwarded-For")
        country = None
        if self._country_header and self._proxies.trusts_peer(peer):
            country = header_text(request.headers.get(self._country_header))
        return RequestContext(
            ip=self._proxies.client_ip(peer, [forwarded_for] if forwarded_for else []),
            country=country,
            user_agent=header_text(request.headers.get("User-Agent")),
            correlation_id=correlation_id(
                request.headers.get("X-Request-ID"), request.headers.get("traceparent")
            ),
        )


def _with_id(response: HttpResponseBase, found: RequestContext) -> HttpResponseBase:
    if not response.has_header("X-Request-ID"):
        response["X-Request-ID"] = cast("str", found.correlation_id)
    return response


def install() -> None:
    """Hook into every PostgreSQL connection of Django, so that it carries the context bound.

    The middleware does this by itself. Management commands and workers that use `bind` without
    it call this once, for example in `AppConfig.ready`.

    In a transaction, the first statement is preceded by `set local`, and so is any statement after
    which something else has been bound or another user signed in. Outside of `atomic`, where Django
    commits each statement by itself, a statement that writes gets a transaction of its own, which
    takes two more round trips. Queries are left alone there, unless they call a function of schema
    pgaudit_wf or PGAUDIT_WF_ATTRIBUTE_SELECTS is set. `cursor.callproc` and `cursor.copy` are not
    seen by Django's hooks: use them in `atomic`, after another statement.
    """
    connection_created.connect(_hook, dispatch_uid="pgaudit_wf")
    for connection in connections.all(initialized_only=True):
        _hook(connection=connection)


def _hook(*, connection: BaseDatabaseWrapper, **_: object) -> None:
    if connection.vendor != "postgresql" or _attribute in connection.execute_wrappers:
        return
    connection.execute_wrappers.append(cast("Any", _attribute))


def _attribute(
    execute: _Execute,
    statement: str | Composable,
    parameters: object,
    many: bool,
    context: dict[str, Any],
) -> object:
    connection = context["connection"]
    driver: psycopg.Connection[Any] = connection.connection
    sql = statement if isinstance(statement, str) else statement.as_string(driver)
    role = getattr(settings, "PGAUDIT_WF_READER_ROLE", "pgaudit_wf_reader")
    if role is not None and _LOG.search(sql):
        execute = _as_role(role, execute)
    if _ROLLBACK.match(sql):
        # Back at a savepoint, the settings have the values that they had there.
        _applied.pop(driver, None)
        return execute(statement, parameters, many, context)
    if active_context(driver) is not None or _status(driver) == TransactionStatus.INERROR:
        return execute(statement, parameters, many, context)
    alone = driver.autocommit and _status(driver) == TransactionStatus.IDLE
    if alone and not _needs_context(sql):
        return execute(statement, parameters, many, context)
    # May query the user, and with that begin the transaction.
    wanted = current_context()
    if not alone:
        _carry(driver, wanted)
    elif wanted != EMPTY:
        # psycopg's own errors, as from a deferred constraint at commit, become Django's.
        with connection.wrap_database_errors, request_context(driver, wanted):
            return execute(statement, parameters, many, context)
    return execute(statement, parameters, many, context)


def _as_role(role: str, execute: _Execute) -> _Execute:
    """Return how to execute a statement as a role, in the transaction that it has or in its own."""

    def run(statement: object, parameters: object, many: bool, context: dict[str, Any]) -> object:
        connection = context["connection"]
        driver: psycopg.Connection[Any] = connection.connection
        if _status(driver) == TransactionStatus.INERROR:
            return execute(statement, parameters, many, context)
        alone = driver.autocommit and _status(driver) == TransactionStatus.IDLE
        with connection.wrap_database_errors, driver.transaction() if alone else nullcontext():
            cursor = driver.cursor()
            (before,) = cursor.execute("select current_setting('role')").fetchone() or ("none",)
            become = "select set_config('role', %s, true)"
            cursor.execute(become, [role])
            # After an error, the rollback brings the role back.
            answer = execute(statement, parameters, many, context)
            driver.cursor().execute(become, [before])
        return answer

    return run


def _status(driver: psycopg.Connection[Any]) -> TransactionStatus:
    return driver.info.transaction_status


def _needs_context(sql: str) -> bool:
    if _READS.match(sql):
        return _OURS.search(sql) is not None or getattr(
            settings, "PGAUDIT_WF_ATTRIBUTE_SELECTS", False
        )
    return _WRITES.match(sql) is not None


def _carry(driver: psycopg.Connection[Any], wanted: RequestContext) -> None:
    if _status(driver) == TransactionStatus.IDLE:
        _applied[driver] = EMPTY
    if _applied.get(driver) != wanted:
        cursor = driver.cursor()
        token = None
        if wanted.attest is not None:
            (token,) = cursor.execute(READ_TRANSACTION).fetchone() or (None,)
        cursor.execute("; ".join(set_local(wanted, quoter(driver), token)).encode())
        _applied[driver] = wanted
