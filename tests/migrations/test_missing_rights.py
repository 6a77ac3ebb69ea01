"""What the installing role may not make: said, and made by a later run of one that may."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.schema.files import installed
from pgaudit_wf.schema.ledger import connect
from pgaudit_wf.schema.migrate import migrate
from pgaudit_wf.schema.rights import complete
from support.command import command

NOTICED = (
    "its columns have changed since its trigger was written: +b, +d, -a, -c; it records"
    " them, but more slowly than it could"
)


@pytest.fixture
def superuser_dsn(server: DevServer, owner_dsn: str) -> str:
    return server.dsn(str(conninfo_to_dict(owner_dsn)["dbname"]))


def findings(dsn: str) -> set[tuple[str, str]]:
    with psycopg.connect(dsn) as conn:
        return {(row[0], row[2]) for row in conn.execute("select * from pgaudit_wf.doctor()")}


def errors(dsn: str) -> set[str]:
    return {problem for severity, problem in findings(dsn) if severity == "error"}


def form(dsn: str) -> str:
    with psycopg.connect(dsn) as conn:
        (found,) = conn.execute("select form from pgaudit_wf.attachment").fetchone() or ("",)
        return str(found)


def test_a_superusers_run_adds_the_event_triggers(
    owner_dsn: str, superuser_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(owner_dsn) as conn:
        conn.execute("create table public.thing (id int primary key, a int)")
        conn.execute("select pgaudit_wf.attach('public.thing')")
    told = command(capsys, "migrate", "-d", owner_dsn)
    assert told.code == 0
    assert "may not create event triggers" in told.err
    assert "Nothing to do" in told.out
    # Its owner, a login, could replace their functions: a superuser must not run those unasked.
    refused = migrate(superuser_dsn)
    assert "event triggers" not in refused.added
    assert any("could replace their functions" in warning for warning in refused.warnings)
    with psycopg.connect(superuser_dsn) as conn:
        conn.execute("select pgaudit_wf._give_to_owner()")
    told = command(capsys, "migrate", "-d", superuser_dsn)
    assert (told.code, told.err) == (0, "")
    assert "added    event triggers" in told.out
    assert migrate(superuser_dsn).added == ()
    assert errors(superuser_dsn) == set()
    assert ("notice", "its trigger is of the generic form, which is no longer needed") in findings(
        superuser_dsn
    )
    with psycopg.connect(superuser_dsn, autocommit=True) as conn:
        conn.execute("select pgaudit_wf.attach('public.thing')")
        assert form(superuser_dsn) == "compiled"
        conn.execute("alter table public.thing rename a to b")
        conn.execute("insert into public.thing values (1, 2)")
        (diff,) = conn.execute(
            "select diff from pgaudit_wf.security_audit_log where resource_type = 'thing'"
        ).fetchone() or ({},)
    assert diff == [{"op": "add", "path": "", "value": {"id": 1, "b": 2}}]
    assert errors(superuser_dsn) == set()


def test_a_missing_role_is_made_with_its_rights(dsn: str) -> None:
    # Rolled back: roles are the server's, and others use them.
    with connect(dsn) as backend, suppress(psycopg.Rollback), backend.transaction():
        conn = backend.connection
        conn.execute("alter role pgaudit_wf_reader rename to elsewhere")
        assert complete(backend, installed()) == (["role pgaudit_wf_reader"], [])
        assert conn.execute(
            "select has_table_privilege('pgaudit_wf_reader', 'pgaudit_wf.attached', 'select')"
        ).fetchone() == (True,)
        raise psycopg.Rollback


def test_a_role_that_may_not_make_it_says_so(owner_dsn: str, superuser_dsn: str) -> None:
    owner = str(conninfo_to_dict(owner_dsn)["user"])
    migrate(superuser_dsn)
    with connect(superuser_dsn) as backend, suppress(psycopg.Rollback), backend.transaction():
        conn = backend.connection
        conn.execute("alter role pgaudit_wf_app rename to elsewhere")
        conn.execute(f"set local session authorization {owner}".encode())
        made, missing = complete(backend, installed())
        assert made == []
        assert f"no role pgaudit_wf_app, and {owner} may not create it" in missing[0]
        assert "may not create event triggers" in missing[-1]
        raise psycopg.Rollback


def test_the_generic_form_follows_harmless_ddl(owner_dsn: str) -> None:
    with psycopg.connect(owner_dsn, autocommit=True) as conn:
        conn.execute("create table public.thing (id int primary key, a int, c text)")
        conn.execute("select pgaudit_wf.attach('public.thing')")
        assert form(owner_dsn) == "generic"
        before = errors(owner_dsn)
        for statement in (
            "alter table public.thing rename a to b", "alter table public.thing add d int",
            "alter table public.thing drop c", "alter table public.thing rename to item",
            "alter table public.item alter b set default 5",
        ):  # fmt: skip
            conn.execute(statement.encode())
            assert (statement, errors(owner_dsn)) == (statement, before)
        assert ("notice", NOTICED) in findings(owner_dsn)
        conn.execute("insert into public.item (id, d) values (7, 1)")
        conn.execute("update public.item set b = 6")
        logged = conn.execute(
            "select resource_id, diff from pgaudit_wf.security_audit_log"
            " where resource_type = 'thing' order by id"
        ).fetchall()
        # What settings name is another matter: events would lose their organization.
        conn.execute("create table public.post (id int primary key, org_id text)")
        conn.execute("select pgaudit_wf.attach('public.post')")
        conn.execute("alter table public.post rename org_id to company")
        assert errors(owner_dsn) - before == {
            "its columns have changed since its trigger was written: +company, -org_id"
        }
    assert [row[0] for row in logged] == ["7", "7"]
    assert logged[1][1] == [{"op": "replace", "path": "/b", "old": 5, "value": 6}]
