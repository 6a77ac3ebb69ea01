"""`make bench` runs, here with too few transactions to tell anything of times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.needs import missing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCENARIO = "update-context"


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what benchmarks/requirements.txt names."""
    folder = tmp_path_factory.mktemp("peers")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    requirements = str(ROOT / "benchmarks" / "requirements.txt")
    # Django is there already, and would take longer than the test.
    needed = ["--no-deps", "--requirement", requirements, "django-pgtrigger"]
    done = subprocess.run(
        [*pip, "install", "--target", folder, *needed],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        missing(f"benchmarks/requirements.txt cannot be installed: {done.stderr}", required=False)
    return folder


def test_benchmarks_measure_what_each_variant_records(peers: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", SCENARIO, "--rounds", "2", "--transactions", "20",
         "--json", report],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:], str(peers)])},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(report.read_text())["results"]
    recorded = {line["variant"]: line["recorded"] for line in result["lines"] if line["recorded"]}
    assert sorted(recorded) == ["bare", "ours", "pghistory"]
    for sizes in recorded.values():
        assert sizes["events"] == 60
        assert min(sizes.values()) > 0
    assert f"| {SCENARIO} | " in done.stdout
