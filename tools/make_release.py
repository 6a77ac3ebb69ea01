"""Make a release: its version, its migrations, its part of the changelog, and its files.

    python tools/make_release.py VERSION [--date YYYY-MM-DD]

Sets the version in pyproject.toml, dates what CHANGELOG.md has under Unreleased, freezes the
migrations, and builds the source distribution and the wheel into dist/, with SHA256SUMS. They are
built twice, the wheel also from the source distribution, and have to come out the same each time:
whoever has the commit can build them and compare (SOURCE_DATE_EPOCH is the release's day, see
reproducible-builds.org). Nothing is changed unless all of that is possible; committing, tagging and
publishing are left to you.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, date, datetime, time
from pathlib import Path

import make_migration
from make_migration import ToolError

ROOT = Path(__file__).parents[1]
_UNRELEASED = "## [Unreleased]\n"


def dated(changelog: str, version: str, day: date) -> str:
    """Return a changelog whose Unreleased part is that of a version."""
    if f"## [{version}]" in changelog:
        raise ToolError(f"CHANGELOG.md has a part for {version} already")
    _, found, rest = changelog.partition(_UNRELEASED)
    if not found or not re.search(r"^- ", rest.partition("\n## [")[0], re.MULTILINE):
        raise ToolError("CHANGELOG.md says nothing under Unreleased")
    return changelog.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {day}\n", 1)


def versioned(project: str, version: str) -> str:
    """Return a pyproject.toml with another version."""
    changed, count = re.subn(
        r'^version = "[^"\n]+"$', f'version = "{version}"', project, count=1, flags=re.MULTILINE
    )
    if not count:
        raise ToolError("pyproject.toml has no version")
    return changed


def _hatchling(source: Path, target: Path, *what: str, epoch: int) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *what, "-d", str(target)],
        cwd=source,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name.endswith((".whl", ".tar.gz"))
    }


def build(root: Path, day: date) -> Path:
    """Build both distributions, check that they can be built again, and return their folder.

    Args:
        root: The checkout.
        day: The day of the release.

    Raises:
        ToolError: A second build made other files.
    """
    epoch = int(datetime.combine(day, time(), UTC).timestamp())
    target = root / "dist"
    with tempfile.TemporaryDirectory() as scratch:
        first, again = Path(scratch, "first"), Path(scratch, "again")
        _hatchling(root, first, epoch=epoch)
        _hatchling(root, again, "-t", "sdist", epoch=epoch)
        (archive,) = again.glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        unpacked = Path(scratch, archive.name.removesuffix(".tar.gz"))
        _hatchling(unpacked, again, "-t", "wheel", epoch=epoch)
        digests = _digests(first)
        if digests != _digests(again):
            raise ToolError("a second build made other files: the build is not reproducible")
        target.mkdir(exist_ok=True)
        for name in digests:
            target.joinpath(name).write_bytes((first / name).read_bytes())
    target.joinpath("SHA256SUMS").write_text(
        "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    )
    return target


def release(root: Path, version: str, day: date) -> None:
    """Make a release of a checkout; see the module's text.

    Raises:
        ToolError: Something has to be settled first.
    """
    project, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
    texts = {
        project: versioned(project.read_text(), version),
        changelog: dated(changelog.read_text(), version, day),
    }
    before = {path: path.read_text() for path in texts}
    migrations = root / "migrations"
    with tempfile.TemporaryDirectory() as scratch:
        kept = shutil.copytree(migrations, Path(scratch, "migrations"))
        # It checks first, and writes only what is right.
        if make_migration.main(["--root", str(root), "--release", version]):
            raise ToolError(f"{version} is not released")
        try:
            for path, text in texts.items():
                path.write_text(text)
            target = build(root, day)
        except BaseException:
            for path, text in before.items():
                path.write_text(text)
            shutil.rmtree(migrations)
            shutil.copytree(kept, migrations)
            raise
    print(
        f"{target}: the files of {version}.\n"
        f"Next: make check; commit all of it; git tag v{version}; set the next .dev0 version.\n"
        "From now on, each change of sql/ takes a migration: make migration NAME=what_it_does"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the tool; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="1.2.3, or 1.2.3rc1")
    parser.add_argument("--date", type=date.fromisoformat, help="its day (default: today)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    try:
        release(options.root, options.version, options.date or datetime.now(UTC).date())
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
