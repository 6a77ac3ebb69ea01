"""Error responses: a page for people, problem+json (RFC 9457) for programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import psycopg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pgaudit_wf.errors import (
    AccessDeniedError,
    ArgumentError,
    CursorError,
    DatabaseError,
    InvalidWorkflowError,
    LogSetBackError,
    NotAttachedError,
    NothingToUndoError,
    RestoreError,
    StaleSaveError,
    UndoConflictError,
    VersionNotFoundError,
    VersionPrunedError,
    from_database,
)
from pgaudit_wf.exact_json import dumps
from pgaudit_wf.web import rendering
from pgaudit_wf.web.paths import is_for_programs

MEDIA_TYPE = "application/problem+json"
_LOG = logging.getLogger("pgaudit_wf.web")
_STATUS: Sequence[tuple[type[DatabaseError], int]] = (
    (AccessDeniedError, 403),
    (CursorError, 400),
    (ArgumentError, 400),
    (NotAttachedError, 404),
    (VersionNotFoundError, 404),
    (VersionPrunedError, 410),
    (InvalidWorkflowError, 409),
    (RestoreError, 409),
    (StaleSaveError, 412),
    (LogSetBackError, 409),
    (NothingToUndoError, 404),
    (UndoConflictError, 409),
)


class ProblemError(HTTPException):
    """Ends a request with a problem; `code` tells programs more than the status."""

    def __init__(
        self,
        status_code: int,
        detail: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.code = code


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: Sequence[Mapping[str, Any]] | None = None,
    differences: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response for a problem: JSON to programs, a page to people."""
    title = HTTPStatus(status).phrase
    if not is_for_programs(request):
        return rendering.error_page(request, status, title, detail, headers)
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    body["detail"] = detail
    if code is not None:
        body["code"] = code
    if errors is not None:
        body["errors"] = errors
    if differences is not None:
        body["differences"] = differences
    return Response(dumps(body), status, headers, MEDIA_TYPE)


def _from_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for these only
    code = getattr(error, "code", None)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = "There is no page at this address."
    return problem(request, error.status_code, detail, code=code, headers=error.headers)


def _from_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for these only
    found = [
        {"where": ".".join(str(part) for part in item["loc"]), "what": item["msg"]}
        for item in error.errors()
    ]
    return problem(request, 422, "The request has values that are not valid.", errors=found)


def _from_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, DatabaseError)  # noqa: S101 - registered for these only
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), None)
    if status is None:
        return _unexpected(request, error)
    listed = error.problems if isinstance(error, InvalidWorkflowError) else None
    both = error.differences if isinstance(error, StaleSaveError) else None
    return problem(
        request, status, str(error), code=error.sqlstate, errors=listed, differences=both
    )


def from_driver(request: Request, error: Exception) -> Response:
    """Return the response for an error of the database or its driver."""
    assert isinstance(error, psycopg.Error)  # noqa: S101 - registered for these only
    if ours := from_database(error):
        return _from_refusal(request, ours)
    if isinstance(error, psycopg.errors.QueryCanceled):
        return problem(
            request, 503, "The query took too long; narrow the time range or change the filters.",
            code="timeout", headers={"Retry-After": "30"},
        )  # fmt: skip
    if isinstance(error, PoolTimeout | psycopg.OperationalError):
        _LOG.error("the database is not available: %s", error)
        return problem(
            request, 503, "The database is not available.",
            code="unavailable", headers={"Retry-After": "5"},
        )  # fmt: skip
    if isinstance(error, psycopg.DataError):
        # Such as a NUL in a text; the value is not repeated.
        return problem(request, 400, "The request has a value that the database does not accept.")
    return _unexpected(request, error)


def _unexpected(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(request, 500, "Something went wrong; it has been logged.")


def handle(app: FastAPI) -> None:
    """Install these error handlers in an app."""
    app.add_exception_handler(HTTPException, _from_http)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(DatabaseError, _from_refusal)
    app.add_exception_handler(psycopg.Error, from_driver)
