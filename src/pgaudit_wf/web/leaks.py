"""The intake for reports of leaked API keys, as secret scanners send them.

A report is a signed POST (Standard Webhooks: HMAC-SHA-256 over id, time and body). It names the key
by its hash or its public prefix, and never contains it; neither is logged.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg_pool import PoolTimeout
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pgaudit_wf.errors import ArgumentError
from pgaudit_wf.jobs.delivery import sign, signing_key
from pgaudit_wf.web.database import Pool, Session, connection

__all__ = ["create_leak_intake"]

_LOG = logging.getLogger("pgaudit_wf.web")
_LARGEST = 64 * 1024
_MOST = 100
_TOLERANCE = 300
_MEMBERS = ("source", "url", "found_at", "key_hash", "prefix")
_STATEMENT = sql.SQL(
    "select pgaudit_wf._report_leaked_key("
    "%(source)s, %(url)s, %(found_at)s, %(key_hash)s, %(prefix)s) as outcome"
)


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def create_leak_intake(pool: Pool, secrets: Iterable[str]) -> Starlette:
    """Return an ASGI app that takes in reports of leaked keys, to be mounted in another.

        app.mount("/leaked-keys", create_leak_intake(pool, [os.environ["LEAK_SECRET"]]))

    Args:
        pool: Its login is one that `pgaudit_wf.grant_keys` was called for.
        secrets: What the reporters sign with: `whsec_` and 24 to 64 bytes in base64. Several are
            accepted, so that each reporter has one of its own, and can change it without a gap.

    Raises:
        ValueError: A secret has another form, or there is none.
    """
    keys = tuple(signing_key(secret) for secret in secrets)
    if not keys:
        raise ValueError("give at least one secret to check signatures with")

    async def take_in(request: Request) -> Response:
        try:
            body = await _body(request)
            _check_signature(request, body, keys)
            reports = _reports(body)
            outcomes = [await _record(pool, report) for report in reports]
        except _RefusedError as refused:
            return JSONResponse({"detail": str(refused)}, refused.status)
        return JSONResponse({"results": outcomes})

    return Starlette(routes=[Route("/", take_in, methods=["POST"])])


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > _LARGEST:
                raise _RefusedError(413, f"A body has at most {_LARGEST} bytes.")
            parts.append(part)
    except ClientDisconnect:
        raise _RefusedError(400, "The body ended early.") from None
    return b"".join(parts)


def _check_signature(request: Request, body: bytes, keys: tuple[bytes, ...]) -> None:
    refused = _RefusedError(401, "The signature or its time is not valid.")
    given = request.headers.get("webhook-signature", "").split()[:20]
    message, at = (request.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp"))
    if not message or len(at) > 12 or not (at.isascii() and at.isdecimal()):
        raise refused
    # Every pair is compared, in a time that does not depend on the texts.
    valid = 0
    for expected in sign(keys, message, int(at), body)["webhook-signature"].split():
        for signature in given:
            valid |= hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
    # A repeat within that time makes no second event.
    if not valid or abs(time.time() - int(at)) > _TOLERANCE:
        raise refused


def _reports(body: bytes) -> list[dict[str, Any]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise _RefusedError(422, "The body is not JSON.") from None
    given = given if isinstance(given, list) else [given]
    if not 1 <= len(given) <= _MOST:
        raise _RefusedError(422, f"Send one report, or a list of up to {_MOST}.")
    return [_report(number, report) for number, report in enumerate(given)]


def _report(number: int, given: object) -> dict[str, Any]:
    # Nothing that was sent is repeated: a key could have been put anywhere.
    if not isinstance(given, dict) or not given.keys() <= set(_MEMBERS):
        raise _RefusedError(
            422,
            f"Report {number} has other members than {', '.join(_MEMBERS)}; the key is never sent.",
        )
    report: dict[str, Any] = dict.fromkeys(_MEMBERS) | given
    for name, value in report.items():
        if value is not None and (
            not isinstance(value, str) or not value or len(value) > 2048 or "\0" in value
        ):
            raise _RefusedError(422, f"Report {number}: {name} must be a text of up to 2048.")
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise _RefusedError(422, f"Report {number}: {name} is not valid Unicode.") from None
    if (report["key_hash"] is None) == (report["prefix"] is None):
        raise _RefusedError(422, f"Report {number} must have either key_hash or prefix.")
    if report["found_at"] is not None:
        try:
            report["found_at"] = datetime.fromisoformat(report["found_at"])
        except ValueError:
            report["found_at"] = None
        if report["found_at"] is None or report["found_at"].tzinfo is None:
            raise _RefusedError(422, f"Report {number}: found_at needs a date, a time and a zone.")
    return report


async def _record(pool: Pool, report: dict[str, Any]) -> str:
    try:
        async with connection(pool) as conn:
            [row] = await Session(conn).rows(_STATEMENT, **report)
    except ArgumentError as error:
        raise _RefusedError(422, str(error)) from None
    except (psycopg.Error, PoolTimeout) as error:
        # Not its text: a driver's message can quote what was sent.
        _LOG.error("a report of a leaked key was not recorded: %s", type(error).__name__)
        raise _RefusedError(503, "The database is not available; send it again.") from None
    return str(row["outcome"])
