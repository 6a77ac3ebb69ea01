"""Each command of docs/tutorial.md does what the page shows; `make docs` rewrites the output."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pgaudit_wf.dev.server import DevServer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
STEP = re.compile(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def stable(text: str) -> str:
    text = re.sub(r"\b20\d\d-\d\d-\d\d\b", "<day>", text)
    text = re.sub(r"\bline \d+ at\b", "line <number> at", text)
    # An event's transaction, below its time.
    text = re.sub(r"(?m)^ (\d+), \d+ *", r" \1, <tx> ", text)
    return re.sub(r"\b\d\d:\d\d:\d\d\b", "<time>", text)


def test_the_tutorial_prints_what_it_says(
    server: DevServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    programs = [Path(sys.executable).parent, server.bin("psql").parent, server.bin("dropdb").parent]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "PGHOST": str(server.socket_dir),
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "COLUMNS": "100",
        "TZ": "UTC",
    }
    page = PAGE.read_text()
    shown, printed, exports = [], [], ""
    for step in STEP.finditer(page):
        output = subprocess.run(
            ["bash", "-c", exports + step[1]],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        ).stdout
        exports += "".join(re.findall(r"^export .*\n", step[1], re.MULTILINE))
        output = "".join(f"{line.rstrip()}\n" for line in output.splitlines())
        shown.append(stable(step[2] or ""))
        printed.append(stable(output))
        if pytestconfig.getoption("--rewrite-golden"):
            text = f"\n```text\n{output}```\n" if output else ""
            page = page.replace(step[0], f"```sh\n{step[1]}```\n{text}")
    if pytestconfig.getoption("--rewrite-golden"):
        PAGE.write_text(page)
        return
    assert printed == shown, "if that is as intended, run `make docs`"
