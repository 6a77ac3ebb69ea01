"""What an application imports is small: psycopg and the standard library, and quickly there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys, time
import psycopg
before = set(sys.modules)
began = time.process_time()
import pgaudit_wf
took = time.process_time() - began
new = {name for name in set(sys.modules) - before}
others = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
print(json.dumps({
    "took": took,
    "others": sorted(others),
    "ours": sorted(name for name in new if name.startswith("pgaudit_wf.")),
}))
"""
# The jobs, the pages, the commands, and what belongs to them.
APART = (
    "alerts", "archive", "cli", "dev", "export", "integrations", "integrity", "jobs", "schema",
    "streams", "web",
)  # fmt: skip

pytestmark = pytest.mark.lint


def imported() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_importing_it_brings_in_nothing_but_psycopg() -> None:
    found = imported()
    assert set(found["others"]) <= {"pgaudit_wf", "psycopg", "psycopg_binary"}
    assert [name for name in found["ours"] if name.split(".")[1] in APART] == []


def test_importing_it_takes_little_time() -> None:
    # Of the processor, and the best of some, as the machine may be busy.
    assert min(imported()["took"] for _ in range(5)) < 0.15


def test_no_module_imports_in_circles() -> None:
    imports: dict[str, set[str]] = {}
    for path in (ROOT / "src" / "pgaudit_wf").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        imports[name.removesuffix(".__init__")] = {
            f"{statement.module}.{alias.name}" if whole else f"{statement.module}"
            for statement in ast.parse(path.read_text()).body
            if isinstance(statement, ast.ImportFrom)
            for alias in statement.names
            for whole in (True, False)
        }
    ours = {name: found & imports.keys() - {name} for name, found in imports.items()}
    # Raises CycleError, which names the modules.
    assert len(list(TopologicalSorter(ours).static_order())) == len(ours)
