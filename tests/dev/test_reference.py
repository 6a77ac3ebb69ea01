"""docs/reference/ says what the database and the commands say; `make docs` writes it anew."""

import runpy
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference"
TOOL = runpy.run_path(str(ROOT / "tools" / "make_reference.py"))


def check(name: str, text: str, config: pytest.Config) -> None:
    page = PAGES / name
    if config.getoption("--rewrite-golden"):
        page.write_text(text)
    assert text == page.read_text(), "run `make docs`"


def test_sql_reference_is_what_the_database_says(
    conn: psycopg.Connection[Any], pytestconfig: pytest.Config
) -> None:
    check("sql.md", TOOL["reference"](conn), pytestconfig)


def test_options_reference_is_what_help_says(pytestconfig: pytest.Config) -> None:
    check("options.md", TOOL["options"](), pytestconfig)
