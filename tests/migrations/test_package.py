"""What is published: the source distribution runs its tests, the wheel has what it points to."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(
    *command: str | Path, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path or ""), "COLUMNS": "200"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    scratch = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", scratch, cwd=ROOT)
    (archive,) = scratch.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    return scratch / archive.name.removesuffix(".tar.gz")


def test_source_distribution_runs_its_tests(sdist: Path) -> None:
    # Collecting imports every test; these read the sources, docs and tools next to them.
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*pytest_, "--collect-only", cwd=sdist, path=sdist / "src")
    tool = "test_a_release_freezes_sql_as_the_first_migrations"
    some = ["tests/lint/test_docs.py", "tests/lint/test_layers.py", "tests/lint/test_thin_layer.py"]
    run(*pytest_, *some, f"tests/migrations/test_migrate.py::{tool}", cwd=sdist, path=sdist / "src")


def test_wheel_has_its_license_and_the_pages_that_it_names(sdist: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    run(*pip, "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    (info,) = target.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "License-Expression: Apache-2.0\n" in (info / "METADATA").read_text()
    program = "import sys; from pgaudit_wf.cli import app; app(sys.argv[1:])"
    help_text = run(
        sys.executable, "-c", program, "alerts", "--help", cwd=tmp_path, path=target
    ).stdout
    (page,) = re.findall(r"\S+\.md\b", help_text)
    assert Path(page).is_relative_to(target)
    assert Path(page).read_text() == (ROOT / "docs" / "how-to" / "alerts.md").read_text()
    manual = target / "pgaudit_wf" / "_manual"
    dead = [
        (str(source.relative_to(manual)), link)
        for source in manual.rglob("*.md")
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", source.read_text())
        if not (source.parent / link).exists()
    ]
    assert dead == []


def test_a_release_is_whole_or_not_made_and_can_be_built_again(sdist: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sdist, tmp_path / "checkout")
    tool: list[str | Path] = [sys.executable, root / "tools" / "make_release.py", "--root", root]
    texts = [root / "pyproject.toml", root / "CHANGELOG.md", root / "migrations" / "CHECKSUMS"]
    before = [path.read_text() for path in texts]
    # Nothing to build with: all is as it was.
    broken = root / "hatch_build.py"
    whole = broken.read_text()
    broken.write_text("raise SystemExit(1)")
    for version, path in (("0.1.0", sdist), ("1.x", sdist)):
        refused = subprocess.run(
            [*map(str, tool), version], capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(path / "src")},
        )  # fmt: skip
        assert refused.returncode != 0
        assert [text.read_text() for text in texts] == before
        assert not list((root / "migrations").rglob("*.sql"))
    broken.write_text(whole)
    run(*tool, "99.1.0", "--date", "2026-12-01", cwd=root, path=sdist / "src")
    assert 'version = "99.1.0"' in texts[0].read_text()
    assert "## [Unreleased]\n\n## [99.1.0] - 2026-12-01\n" in texts[1].read_text()
    assert "# 99.1.0\n" in texts[2].read_text()
    for line in (root / "dist" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((root / "dist" / name).read_bytes()).hexdigest() == digest
        assert name.startswith("pgaudit_wf-99.1.0")
