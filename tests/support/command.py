"""Running commands in this process, and reading what one prints on a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import typer.main

from pgaudit_wf.cli import LazyCommands, app


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run a command in this process."""
    with pytest.raises(SystemExit) as caught:
        app([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return Result(caught.value.code, captured.out, captured.err)


def printed_on(terminal: int) -> bytes:
    """Read from a pseudo-terminal until the program on its other side closes it."""
    printed = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            return printed
        if not part:
            return printed
        printed += part


def loaded() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each group and command of the command line, imported, with the words that call it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words, command
        for name in getattr(command, "commands", {}):
            if isinstance(command, LazyCommands):
                command.load(name)
            waiting.append(((*words, name), command.commands[name]))
