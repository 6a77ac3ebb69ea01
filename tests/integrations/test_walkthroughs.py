"""Pages of docs/how-to followed word for word; `make docs` rewrites the output."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_wf.dev.server import DevServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEP = re.compile(
    r"(?P<last>[^\n]*)`(?P<file>[\w/.]+\.(?:py|cjs|sql))`:\n\n```\w+\n(?P<text>.*?)```\n"
    r"|```sh\n(?P<command>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?",
    re.DOTALL,
)


class Reader:
    """Someone who does what a page says, in an empty directory."""

    def __init__(self, directory: Path, dsn: str, psql: Path) -> None:
        parts = conninfo_to_dict(dsn)
        self.directory = directory
        self.environment = {
            **{name: os.environ[name] for name in os.environ if "PGAUDIT_WF" not in name},
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), str(psql.parent), os.environ["PATH"]]
            ),
            "COLUMNS": "120",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "error",
            "PGDATABASE": str(parts["dbname"]),
            "PGHOST": str(parts["host"]),
            "PGPORT": str(parts["port"]),
            "PGUSER": str(parts["user"]),
        }

    def run(self, command: str) -> str:
        return subprocess.run(
            ["bash", "-c", command], cwd=self.directory, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        ).stdout  # fmt: skip

    def follow(self, page: Path, rewrite: bool) -> None:
        text = page.read_text()
        printed, shown = [], []
        for step in STEP.finditer(text):
            if step["file"]:
                path = self.directory / step["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = path.read_text() if step["last"].endswith("the end of ") else ""
                path.write_text(kept + step["text"])
                continue
            output = self.run(step["command"])
            printed.append(output)
            shown.append(step["output"] or "")
            if rewrite:
                new = f"\n```text\n{output}```\n" if output else ""
                text = text.replace(step[0], f"```sh\n{step['command']}```\n{new}")
        if rewrite:
            page.write_text(text)
        else:
            assert printed == shown, "if that is as intended, run `make docs`"


@pytest.mark.parametrize("page", ["django", "fastapi"])
def test_a_page_does_what_it_says(
    page: str, tmp_path: Path, empty_dsn: str, server: DevServer, pytestconfig: pytest.Config
) -> None:
    reader = Reader(tmp_path, empty_dsn, server.bin("psql"))
    path = ROOT / "docs" / "how-to" / f"{page}.md"
    reader.follow(path, bool(pytestconfig.getoption("--rewrite-golden")))
    with psycopg.connect(empty_dsn) as conn:
        # Roles are those of all tests' databases.
        conn.execute("revoke pgaudit_wf_reader from current_user")
