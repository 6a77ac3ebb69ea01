"""Output of commands: tables for people, JSON for programs, without control characters."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pgaudit_wf.exact_json import UNSAFE, dumps

_PIPE_WIDTH = 200


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """Return a console for the current standard output (or error)."""
    stream = sys.stderr if stderr else sys.stdout
    # Don't wrap piped output: a reader can truncate lines but not rejoin them.
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def printable(text: str) -> str:
    """Return a text with its control characters escaped as in Python."""

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
        code = ord(char)
        wide = f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
        return named.get(char) or (f"\\x{code:02x}" if code <= 0xFF else wide)

    return UNSAFE.sub(escape, text)


def print_json(value: object) -> None:
    """Print a value as JSON; a sequence as an array with one item per line."""
    if isinstance(value, list | tuple) and value:
        print("[\n  " + ",\n  ".join(map(dumps, value)) + "\n]")
    else:
        print(dumps(value))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], title: str | None = None
) -> None:
    """Print a table; control characters in its texts are escaped."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    console().print(table)


def moment(at: datetime | None, zone: tzinfo | None, with_date: bool = True) -> str:
    """Return a time to the second, in a time zone (None: the local one)."""
    if at is None:
        return ""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S" if with_date else "%H:%M:%S")


def shorten(text: str, length: int) -> str:
    """Return a text truncated to a length."""
    return text if len(text) <= length else text[: length - 1] + "…"


def short(value: object) -> str:
    """Return a value in a form short enough for a line."""
    if value is None:
        return "empty"
    text = value if isinstance(value, str) else dumps(value)
    # Times are easier to read without fractions.
    text = re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(\+00:00)?$", r"\1 \2", text)
    if re.fullmatch("[0-9a-f]{64}", text):
        return shorten(text, 9)
    return shorten(text, 36)


def progress_bar(hidden: bool) -> Progress:
    """Return a context manager with progress bars on standard error; only shown at a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
    )
