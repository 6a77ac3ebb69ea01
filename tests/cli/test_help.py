"""What --help costs, and that the list of commands is that of the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_group

import pgaudit_wf
import pgaudit_wf.cli.commands
from pgaudit_wf.cli.listing import COMMANDS
from support.command import loaded

pytestmark = pytest.mark.lint

# Each --help in turn, and after which of them which module was there for the first time.
PROGRAM = """
import contextlib, io, json, sys
from pgaudit_wf.cli import app
found, seen = {}, set()
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        app([*words, "--help"])
    found[" ".join(words)] = sorted(set(sys.modules) - seen)
    seen |= set(sys.modules)
print(json.dumps(found))
"""
# What they may need besides the standard library: Typer, Rich, and what these import.
LIGHT = {
    "typer", "click", "rich", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection",
    "annotated_types", "annotated_doc", "shellingham", "markdown_it", "mdurl", "pygments", "attr",
    "attrs",
}  # fmt: skip
OURS = (
    "pgaudit_wf.cli", "pgaudit_wf.choices", "pgaudit_wf.exact_json", "pgaudit_wf.manual",
    "pgaudit_wf.presets",
)  # fmt: skip


def heavy(module: str) -> bool:
    top = module.partition(".")[0]
    if top == "pgaudit_wf":
        return module != top and not module.startswith(OURS)
    return top in {"asyncio", "psycopg", "psycopg_binary"} or not (
        top in LIGHT | sys.stdlib_module_names or top.startswith("_")
    )


def test_help_imports_nothing_that_only_the_commands_need() -> None:
    one_of_each = {
        module: name for members in COMMANDS.values() for name, (module, _) in members.items()
    }
    asked = [[], *([name] for name in one_of_each.values())]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, list[str]] = json.loads(done.stdout)
    assert len(found) == len(asked)
    assert {
        words: wrong for words, new in found.items() if (wrong := list(filter(heavy, new)))
    } == {}


def test_the_list_of_commands_imports_no_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "[[]]"], capture_output=True, text=True, check=True
    )
    new = json.loads(done.stdout)[""]
    assert "rich.panel" in new
    assert [name for name in new if name.startswith("pgaudit_wf.cli.commands")] == []


def test_the_list_says_what_the_commands_say() -> None:
    listed = {name: text for members in COMMANDS.values() for name, (_, text) in members.items()}
    said = {
        words[0]: " ".join((command.help or "").partition("\n\n")[0].split())
        for words, command in loaded()
        if len(words) == 1
    }
    assert listed == said


def test_every_command_is_in_the_list() -> None:
    folder = Path(pgaudit_wf.cli.commands.__file__ or "").parent
    for path in folder.glob("*.py"):
        module = import_module(f"pgaudit_wf.cli.commands.{path.stem}")
        if not hasattr(module, "register"):
            continue
        subject = typer.Typer()
        module.register(subject)
        listed = {
            name for members in COMMANDS.values() for name, (m, _) in members.items()
            if m == path.stem
        }  # fmt: skip
        assert (path.stem, set(get_group(subject).commands)) == (path.stem, listed)


def test_every_public_name_is_there() -> None:
    assert [name for name in pgaudit_wf.__all__ if getattr(pgaudit_wf, name, None) is None] == []
    assert set(pgaudit_wf.__all__) <= set(dir(pgaudit_wf))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pgaudit_wf.nothing  # type: ignore[attr-defined]
