"""What a dump and its restoring leave of attachments, and databases that cannot be installed in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.errors import MigrationError
from pgaudit_wf.schema.migrate import migrate

Conn = psycopg.Connection[Any]


@pytest.fixture
def empty(server: DevServer) -> Iterator[str]:
    """An empty database; removed afterwards."""
    name = f"restored_{os.getpid()}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield server.dsn(name)
        finally:
            conn.execute(sql.SQL("drop database {} (force)").format(sql.Identifier(name)))


def test_a_dump_without_one_attached_table(
    conn: Conn, dsn: str, server: DevServer, empty: str, tmp_path: Path
) -> None:
    conn.execute("create table kept (id int primary key, org text, secret text, seen int)")
    conn.execute("create table big (id int primary key)")
    conn.execute(
        "select pgaudit_wf.attach('kept', resource_type => 'thing', redact => '{secret}',"
        " org_column => 'org', ignore => '{seen}', on_failure => 'warn')"
    )
    conn.execute("select pgaudit_wf.attach('big')")
    file = str(tmp_path / "dump")
    dump = [str(server.bin("pg_dump")), "-Fc", "--exclude-table=big", "-f", file, "-d", dsn]
    subprocess.run(dump, check=True)
    # The settings of all tables are one COPY, which the missing one makes fail.
    subprocess.run([str(server.bin("pg_restore")), "-d", empty, file], capture_output=True)
    with psycopg.connect(empty, autocommit=True) as restored:
        findings = restored.execute(
            "select subject, remedy from pgaudit_wf.doctor() where severity = 'error'"
        ).fetchall()
        assert [subject for subject, _ in findings] == ["public.kept"]
        restored.execute(findings[0][1])
        assert not restored.execute("select from pgaudit_wf.doctor()").fetchall()
        restored.execute("insert into kept values (1, 'o', 'x', 1)")
        assert restored.execute(
            "select action, org_id, diff -> 0 -> 'value' from pgaudit_wf.security_audit_log"
        ).fetchall() == [("thing.created", "o", {"id": 1, "org": "o", "secret": "[redacted]"})]
        assert restored.execute("select on_failure from pgaudit_wf.attachment").fetchone() == (
            "warn",
        )


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings_are_refused(server: DevServer, encoding: str) -> None:
    name = f"encoded_{os.getpid()}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(
            f"create database {name} encoding '{encoding}' locale_provider libc locale 'C'"
            " template template0"
        )
        try:
            with pytest.raises(MigrationError, match=f"encoded in {encoding}, .* needs UTF8"):
                migrate(server.dsn(name))
        finally:
            conn.execute(f"drop database {name} (force)")
