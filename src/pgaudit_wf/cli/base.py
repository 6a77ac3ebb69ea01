"""Shared by all commands: the database to work on, and the handling of errors."""

from __future__ import annotations

import codecs
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    LiteralString,
    NoReturn,
    Protocol,
    TypeAlias,
    runtime_checkable,
)

import typer
from rich.markup import escape
from typer.core import TyperGroup

from pgaudit_wf import manual
from pgaudit_wf.cli.printing.output import printable
from pgaudit_wf.exact_json import loads

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import DictRow

    from pgaudit_wf.errors import DatabaseError

FAILED, USAGE, UNREACHABLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 130, 141

# Seconds; at a terminal, the kernel's own timeout is too long.
_CONNECT_TIMEOUT = 10

Connection: TypeAlias = "psycopg.Connection[Any]"


class Failure(Exception):  # noqa: N818 - it ends a command; the user reads its message, no name
    """Ends a command with a message, a hint and an exit code."""

    def __init__(self, message: str, hint: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


@runtime_checkable
class _UsageError(Protocol):
    exit_code: int

    def format_message(self) -> str: ...


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - output is written only
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


# The escape that is also valid in JSON.
codecs.register_error("pgaudit_wf.json", _escaped)


class _ReaderGoneError(Exception):
    """The reader of our output has closed it."""


class Commands(TyperGroup):
    """A group of commands whose errors are one line, and whose exit codes are documented."""

    def main(self, *args: Any, **extra: Any) -> NoReturn:  # noqa: ANN401 - typer's signature
        """Run the command and end the process, or raise SystemExit under a test runner."""
        extra["standalone_mode"] = False
        # It warns where an interrupted connection cannot be rolled back: that ends a command well.
        logging.getLogger("psycopg").setLevel(logging.ERROR)
        try:
            # A name that the locale cannot encode must not end the command.
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="pgaudit_wf.json")
            code = super().main(*args, **extra)
            sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else 0)
        except (BrokenPipeError, _ReaderGoneError):
            # Otherwise the interpreter would complain when it flushes to the closed pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(INTERRUPTED)
        except Exception as error:
            failure = _explain(error)
            if failure is None:
                raise
            _complain(failure)
            sys.exit(failure.code)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - the type is private to typer
        """Run the chosen command; typer would treat a broken pipe as a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error


def _complain(failure: Failure) -> None:
    lines = [line.strip() for line in hide_passwords(str(failure)).splitlines()]
    message = "; ".join(printable(line) for line in lines if line).rstrip(".")
    hint = f" — {printable(hide_passwords(failure.hint))}" if failure.hint else ""
    print(f"pgaudit-wf: {message}{hint}", file=sys.stderr)


def _explain(error: Exception) -> Failure | None:
    import psycopg

    from pgaudit_wf.errors import DatabaseError, PgauditError

    if isinstance(error, Failure):
        return error
    if isinstance(error, psycopg.Error):
        return _explain_driver(error)
    if isinstance(error, DatabaseError):
        return _explain_refusal(error)
    if isinstance(error, PgauditError):
        return Failure(str(error))
    if isinstance(error, _UsageError):
        return Failure(error.format_message(), "see pgaudit-wf --help", error.exit_code)
    return None


def _explain_refusal(error: DatabaseError) -> Failure:
    from pgaudit_wf.errors import AccessDeniedError

    if isinstance(error, AccessDeniedError):
        return Failure(
            str(error), "name the organization and one of its owners or admins: --org ID --as ACTOR"
        )
    return Failure(str(error), error.hint)


def _explain_driver(error: psycopg.Error) -> Failure:
    import psycopg

    from pgaudit_wf.errors import from_database

    if ours := from_database(error):
        return _explain_refusal(ours)
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error)
    if isinstance(error, psycopg.OperationalError) and (
        not state or state.startswith(("08", "28", "3D", "57P"))
    ):
        return Failure(message, code=UNREACHABLE)
    if state in ("3F000", "42P01", "42883", "42704") and "pgaudit_wf" in message:
        return Failure(
            f"this database has no audit schema, or an older one: {message}",
            "run pgaudit-wf migrate",
        )
    if state == "25006":
        return Failure(message, "this command writes or is itself recorded: run it on the primary")
    if state == "42501":
        return Failure(
            message,
            "connect as the schema's owner; to read, as a member of role pgaudit_wf_reader with"
            " --org and --as",
        )
    return Failure(message, error.diag.message_hint)


def hide_passwords(text: str) -> str:
    """Return a text with the passwords of URLs and connection strings masked.

    The end of a password cannot be determined, so everything that may belong to it is masked.
    """
    text = re.sub(r"(?i)(postgres[\w+]*://[^:@/\s]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)(password\s*=).*", r"\1***", text)


def help_text(function: Callable[..., Any]) -> str:
    """Return a function's docstring as the text of --help.

    Paragraphs of commands are examples. A page of docs/ is named by where it is installed.
    """
    text = re.sub(
        r"\bdocs/([\w/-]+\.md)\b",
        lambda named: escape(manual.page(named[1])),
        inspect.cleandoc(function.__doc__ or ""),
    )
    paragraphs = []
    for part in text.split("\n\n"):
        if part.lstrip().startswith("pgaudit-wf "):
            lines = [line.strip() for line in part.splitlines()]
            # A leading backspace makes typer keep a paragraph's lines.
            paragraphs.append("\n".join(["\b", *lines]))
        else:
            paragraphs.append(" ".join(part.split()))
    return "\n\n".join(paragraphs)


def add(app: typer.Typer, function: Callable[..., Any]) -> None:
    """Add a command with the name and docstring of its function."""
    app.command(function.__name__.replace("_", "-"), help=help_text(function))(function)


def check_conninfo(conninfo: str) -> str:
    """Return a connection string for libpq, with our timeout unless it sets one.

    Raises:
        Failure: It cannot be parsed. libpq's own message is not shown, as it quotes the part that
            it cannot parse, which may well be a password.
    """
    import psycopg
    from psycopg.conninfo import make_conninfo

    from pgaudit_wf.conninfo import with_timeout, without_driver

    conninfo = without_driver(conninfo)
    # As psql has it: the name of a database. What could be part of an address is none.
    if re.fullmatch(r"[^\s=@:/?#]+", conninfo):
        conninfo = make_conninfo(dbname=conninfo)
    userinfo = re.match(r"postgres(?:ql)?://[^:@/?#]*:(.*)@", conninfo, re.DOTALL)
    if userinfo and re.search(r"[@/?#\s]|%(?![0-9A-Fa-f]{2})", userinfo[1]):
        raise Failure(
            "the password in the connection URL is not percent-encoded",
            "write @ as %40, / as %2F, ? as %3F, # as %23, % as %25 and a space as %20",
            USAGE,
        )
    try:
        timed = with_timeout(conninfo, _CONNECT_TIMEOUT)
    except psycopg.Error:
        raise Failure(
            "the connection string cannot be read",
            "write postgresql://user@host:5432/database or 'host=… dbname=… user=…', and quote a"
            " value with spaces in it",
            USAGE,
        ) from None
    return conninfo if "PGCONNECT_TIMEOUT" in os.environ else timed


def choose_database(argument: str, option: str) -> str:
    """Return the database named by the argument, else by the option or environment."""
    return argument or option


def opener(conninfo: str, application_name: str = "pgaudit-wf") -> Callable[[], Connection]:
    """Return a function that opens connections in autocommit mode.

    Raises:
        Failure: The connection string cannot be read.
    """
    import psycopg

    given = check_conninfo(conninfo)

    def open_() -> Connection:
        return psycopg.connect(
            given,
            autocommit=True,
            # A pooler hands prepared statements to the next client.
            prepare_threshold=None,
            fallback_application_name=application_name,
        )

    return open_


@contextmanager
def connect(conninfo: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode for a command, and close it at the end."""
    from psycopg.types.json import set_json_loads

    with opener(conninfo)() as conn:
        # Values are printed as stored: 0.10 stays 0.10, and nothing is rounded.
        set_json_loads(loads, conn)
        yield conn


def confirm(question: str, unasked: Failure) -> None:
    """Ask at the terminal whether to go on; the command ends if not.

    Raises:
        Failure: The one given, as there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise unasked
    typer.confirm(question, abort=True, err=True)


def dict_rows(
    conn: Connection, query: LiteralString, parameters: Mapping[str, object] | None = None
) -> list[DictRow]:
    """Return the rows of a query as dictionaries."""
    from psycopg.rows import dict_row

    return conn.cursor(row_factory=dict_row).execute(query, parameters).fetchall()


def parse_time(text: str) -> datetime:
    """Parse a time given on the command line: ISO 8601, today, yesterday, or an age such as 90m."""
    text = text.strip()
    now = datetime.now().astimezone()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    if age := re.fullmatch(r"(\d{1,6})\s*([smhdw])", text):
        return now - timedelta(**{units[age[2]]: int(age[1])})
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text in named:
        return named[text]
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"invalid time {text!r}; expected 2026-03-01, '2026-03-01 14:30', 2026-03-01T14:30:00Z,"
            " today, yesterday, or an age such as 90m, 12h, 7d"
        ) from None
    return parsed if parsed.tzinfo else parsed.astimezone()


def without_empty(values: Sequence[str] | None) -> list[str] | None:
    """Return the values of a repeated option: None if it was not given, [] if only as ''."""
    return [value for value in values if value] if values else None
