"""Send the context with BEGIN: the only place that touches psycopg's private interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import errors, generators, pq
from psycopg.abc import PQGen


class CarriesContext:
    """Mixin for psycopg's transactions that begins and ends them in one message with the context.

    The statements of psycopg are collected instead of sent, then sent with ours. If a version of
    psycopg stops asking for them here, it sends them itself and ours follow; if it stops calling
    `_enter_gen`, `entered` stays false and the block is refused.
    """

    connection: Any
    before: list[str]
    after: list[str]
    entered = False
    _collected: list[bytes]

    def _enter_gen(self) -> PQGen[None]:
        self._collected = []
        yield from super()._enter_gen()  # type: ignore[misc]
        yield from self._send(self._collected, self.before)
        self.entered = True

    def _commit_gen(self) -> PQGen[None]:
        self._collected = []
        yield from super()._commit_gen()  # type: ignore[misc]
        yield from self._send(self._collected, self.after)

    def _get_enter_commands(self) -> Iterator[bytes]:
        self._collected += super()._get_enter_commands()  # type: ignore[misc]
        yield from ()

    def _get_commit_commands(self) -> Iterator[bytes]:
        self._collected += super()._get_commit_commands()  # type: ignore[misc]
        yield from ()

    def _send(self, commands: list[bytes], settings: list[str]) -> PQGen[None]:
        conn = self.connection
        encoding = conn.info.encoding
        conn.pgconn.send_query(b"; ".join(commands + [text.encode(encoding) for text in settings]))
        for result in (yield from generators.execute(conn.pgconn)):
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(result, encoding=encoding)


class ContextTransaction(CarriesContext, psycopg.Transaction):
    """A transaction block of psycopg that sends a context."""


class AsyncContextTransaction(CarriesContext, psycopg.AsyncTransaction):
    """The same on an asynchronous connection."""
