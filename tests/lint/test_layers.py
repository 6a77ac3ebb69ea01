"""Commands, pages and jobs ask views and functions: only SQL knows what the tables look like."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.lint

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for package in ("alerts", "cli", "jobs", "streams", "trail", "web", "workflow")
    for path in (ROOT / "src" / "pgaudit_wf" / package).rglob("*.py")
)
TABLES = {
    name
    for path in (ROOT / "sql" / "core").rglob("*.sql")
    for name in re.findall(
        r"^create (?:unlogged )?table pgaudit_wf\.(\w+)", path.read_text(), re.MULTILINE
    )
}
NAMED = re.compile(
    r"\b(?:copy|from|into|join|only|table|update|using)\s+pgaudit_wf\.(\w+)|'pgaudit_wf\.(\w+)'"
)


def texts(path: Path) -> Iterator[str]:
    """The strings of a module, those that are put together of constants as one; no docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(getattr(part, "value", "")) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_statement_names_a_table_of_ours(path: Path) -> None:
    named = {name for text in texts(path) for found in NAMED.findall(text) for name in found}
    assert "attachment" in TABLES
    assert sorted(named & TABLES) == []
