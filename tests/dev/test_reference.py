"""docs/reference/sql.md says what the database says; `make docs` writes it anew."""

import runpy
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "sql.md"


def test_sql_reference_is_what_the_database_says(
    conn: psycopg.Connection[Any], pytestconfig: pytest.Config
) -> None:
    reference = runpy.run_path(str(ROOT / "tools" / "make_reference.py"))["reference"]
    text = reference(conn)
    if pytestconfig.getoption("--rewrite-golden"):
        PAGE.write_text(text)
    assert text == PAGE.read_text(), "run `make docs`"
