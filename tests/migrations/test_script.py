"""The script that `migrate --sql` prints, run by psql."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import MigrationChangedError
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.schema.script import migration_script
from support.command import command

LEDGER = """
select l.migration_id::text, l.migration_hash::text, l.operation::text, l.username::text,
    m.migration_hash::text, c.sha256, (select max(version) from pgaudit_wf_migration._yoyo_version)
from pgaudit_wf_migration._yoyo_log as l
join pgaudit_wf_migration._yoyo_migration as m using (migration_id)
join pgaudit_wf_migration.checksum as c using (migration_id)
order by m.applied_at_utc
"""


def psql(server: DevServer, dsn: str, script: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [server.bin("psql"), "-X", *options, "-f", "-", dsn],
        input=script, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def dump(server: DevServer, dsn: str) -> str:
    done = subprocess.run(
        [server.bin("pg_dump"), "--schema-only", "--dbname", dsn],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Newer pg_dumps fence the script with a random key.
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


@pytest.mark.parametrize("options", [(), ("-1",)])
def test_it_installs_what_migrate_installs(
    server: DevServer, empty_dsn: str, options: tuple[str, ...]
) -> None:
    wholly = not options
    script = migration_script(None, with_app_schema=wholly)
    assert script is not None
    assert psql(server, empty_dsn, script, *options)[0] == 0
    result = migrate(empty_dsn)
    assert (result.applied, result.version) == ((), 1)
    assert migration_script(empty_dsn) is None
    assert [row for row in rows(empty_dsn, "select * from pgaudit_wf.doctor()")
            if row[0] == "error"] == []  # fmt: skip
    made, ledger = dump(server, empty_dsn), rows(empty_dsn, LEDGER)
    assert len(ledger) == 1 + wholly
    if not wholly:
        return
    code, out = psql(server, empty_dsn, script)
    assert code == 3
    assert "installs pgaudit_wf from nothing, and this database has it" in out
    assert (dump(server, empty_dsn), rows(empty_dsn, LEDGER)) == (made, ledger)
    migrate(empty_dsn, to=0)
    migrate(empty_dsn, with_app_schema=True)
    assert (dump(server, empty_dsn), rows(empty_dsn, LEDGER)) == (made, ledger)


def test_it_upgrades_the_database_that_it_was_printed_for_and_no_other(
    server: DevServer, empty_dsn: str, tmp_path: Path
) -> None:
    folder = tmp_path / "migrations" / "core"
    folder.mkdir(parents=True)
    first = folder / "pgaudit_wf.core.0001_first.sql"
    first.write_text("create schema pgaudit_wf;\n")
    migrate(empty_dsn, directory=tmp_path)
    (folder / "pgaudit_wf.core.0002_more.sql").write_text(
        "-- depends: pgaudit_wf.core.0001_first\n\n"
        "create table pgaudit_wf.thing (a text default e'\\n$$');\n"
    )
    script = migration_script(empty_dsn, directory=tmp_path)
    assert script is not None
    assert "create schema" not in script
    # One transaction: what fails leaves nothing.
    broken = script.replace("\ncommit;", "\nselect 1 / 0;\ncommit;")
    assert psql(server, empty_dsn, broken)[0] == 3
    assert len(rows(empty_dsn, LEDGER)) == 1
    assert psql(server, empty_dsn, script)[0] == 0
    assert migrate(empty_dsn, directory=tmp_path).version == 2
    code, out = psql(server, empty_dsn, script)
    assert code == 3
    assert "is for a database in another state than this one" in out
    assert len(rows(empty_dsn, LEDGER)) == 2
    first.write_text("create schema pgaudit_wf; -- edited\n")
    with pytest.raises(MigrationChangedError):
        migration_script(empty_dsn, directory=tmp_path)


def test_the_command_prints_it(
    capsys: pytest.CaptureFixture[str], empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAUDIT_WF_DATABASE", raising=False)
    printed = command(capsys, "migrate", "--sql")
    assert (printed.code, printed.out) == (0, migration_script(None))
    assert command(capsys, "migrate", "--sql", "-d", empty_dsn).out == printed.out
    refused = command(capsys, "migrate", "--sql", "--to", "0")
    assert (refused.code, refused.out) == (2, "")
    assert "--sql goes with neither --to nor --json" in refused.err
