"""Fixtures of the command line: a command, and a command on the reference application."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from support.command import Result, command


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command in this process."""
    # GNU readline, which pytest loads, puts a width of its own into the environment.
    monkeypatch.setenv("COLUMNS", "200")
    return partial(command, capsys)


@pytest.fixture
def on(
    app_dsn: str, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Result]
) -> Callable[..., Result]:
    """Run a command on a database with the reference application."""
    monkeypatch.setenv("PGAUDIT_WF_DATABASE", app_dsn)
    return cli
