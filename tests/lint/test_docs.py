"""What the documentation says is there: commands, options, pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from pgaudit_wf import manual
from pgaudit_wf.dev.binaries import OLDEST_MAJOR
from support.command import loaded

pytestmark = pytest.mark.lint

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
# Printed from comments in the database and help texts, which name commands in running text.
WRITTEN = [path for path in PAGES if path.name not in ("options.md", "sql.md")]
SOURCES = sorted(
    path
    for folder in ("src", "sql", "tools", "contrib")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".sql", ".html", ".txt"}
)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


COMMANDS = dict(loaded())


@pytest.mark.parametrize("command", [" ".join(words) for words in sorted(COMMANDS) if words])
def test_command_is_in_the_manual(command: str) -> None:
    assert re.search(rf"`{command}[ `]", (DOCS / "reference" / "cli.md").read_text())


def names_in(folders: Iterable[str], pattern: str) -> set[str]:
    return {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sql"}
        for name in re.findall(pattern, path.read_text())
    }


def test_every_event_of_ours_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "events.md").read_text()
    named = names_in(["sql/core", "src"], r"""['"]((?:audit|actor|org_limit)\.[a-z_]+)['"]""")
    named |= {f"<type>{kind}" for kind in names_in(["sql/core"], r"\|\| '(\.[a-z_]+)'")}
    assert len(named) > 30
    assert {action for action in named if f"`{action}`" not in page} == set()


def test_every_setting_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "settings.md").read_text()
    named = names_in(["sql/core"], r"'(app\.[a-z_]+)'")
    named |= names_in(["src"], r"\bPGAUDIT_WF_(?:[A-Z]+_)*[A-Z]+\b")
    assert len(named) > 40
    assert {name for name in named if name not in page} == set()


@pytest.mark.parametrize("path", WRITTEN, ids=label)
def test_commands_in_examples_exist(path: Path) -> None:
    unknown = []
    for example in re.findall(r"pgaudit-wf ([a-z-][^`\n]*)", path.read_text()):
        # What stands behind blanks or a semicolon is a remark, or another command.
        given = re.split(r"\s{2,}|;|\s#", example)[0].split()
        words: tuple[str, ...] = ()
        while given and (*words, given[0]) in COMMANDS:
            words = (*words, given.pop(0))
        command = COMMANDS[words]
        options = {name for parameter in command.params for name in parameter.opts}
        wrong = {word for word in given if word.startswith("--")} - options - {"--help"}
        if wrong or (hasattr(command, "commands") and given and given[0][0] != "-"):
            unknown.append(example)
    assert unknown == []


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_files_named_are_there(path: Path) -> None:
    tops = "|".join(sorted(re.escape(child.name) for child in ROOT.iterdir() if child.is_dir()))
    named = re.findall(rf"`((?:{tops})/[\w./-]+)`", path.read_text())
    # Made by the first release.
    missing = {name for name in named if not (ROOT / name).exists()} - {"migrations/CHECKSUMS"}
    assert missing == set()


def test_every_page_is_on_the_map() -> None:
    index = DOCS / "index.md"
    linked = {
        (DOCS / link).resolve()
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", index.read_text())
    }
    assert [label(path) for path in DOCS.rglob("*.md") if path not in {index, *linked}] == []


@pytest.mark.parametrize("path", WRITTEN, ids=label)
def test_lines_of_text_have_one_width(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    # Rows of tables and indented examples cannot be broken.
    lines = [line for line in text.splitlines() if not re.match(r"\s*\||    ", line)]
    assert [line for line in lines if len(line) > 130] == []


def test_pages_named_in_sources_exist() -> None:
    named = {
        page
        for path in [*SOURCES, *PAGES]
        for page in re.findall(r"(?:\bdocs/|manual\.page\(['\"])([\w/-]+\.md)\b", path.read_text())
    }
    assert named
    assert [page for page in sorted(named) if not (DOCS / page).is_file()] == []


def test_help_names_pages_by_where_they_are() -> None:
    helps = [command.help or "" for command in COMMANDS.values()]
    assert manual.page("how-to/alerts.md") in COMMANDS["alerts",].help
    assert Path(manual.page("how-to/alerts.md")).is_file()
    assert [text for text in helps if re.search(r"(?<![\w/-])docs/", text)] == []


def test_commits_are_checked_as_make_lint_checks() -> None:
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    linters = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +entry: (.*)", hooks, re.MULTILINE) == linters


def test_the_forge_tests_what_the_package_claims() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    matrix = {
        name: re.findall(r'"([\d.]+)"', values)
        for name, values in re.findall(r"^ +(python|postgresql): \[(.*)\]", workflow, re.MULTILINE)
    }
    project = (ROOT / "pyproject.toml").read_text()
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", project)
    assert matrix["postgresql"] == [str(major) for major in range(OLDEST_MAJOR, 19)]
