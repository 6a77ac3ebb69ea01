"""What an application imports is small: psycopg and the standard library, and quickly there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

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
    "web",
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
