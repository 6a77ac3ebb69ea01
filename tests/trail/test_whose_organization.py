"""What a reader's login may call answers for the organization that it acts for, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]

DEFINITION = '[{"id": "n1", "type": "t", "data": {}}]'
RUN_A, RUN_B = ("10000000-0000-0000-0000-00000000000a", "10000000-0000-0000-0000-00000000000b")
WORKFLOWS = ("00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b")


@pytest.fixture
def world(app_conn: Conn) -> Conn:
    """Two organizations with an owner each, and a stranger; the reader's login sees the runs."""
    conn = app_conn
    conn.execute(
        "insert into organization (id, name, slug) values ('a', 'A', 'a'), ('b', 'B', 'b')"
    )
    for user in ("ana", "bob", "eve"):
        conn.execute(
            "insert into app_user (id, email, name, password_hash) values (%s, %s, %s, 'x')",
            [user, f"{user}@example.com", user.capitalize()],
        )
    for org, user, workflow, run in (
        ("a", "ana", WORKFLOWS[0], RUN_A),
        ("b", "bob", WORKFLOWS[1], RUN_B),
    ):
        conn.execute(
            "insert into member (org_id, user_id, role) values (%s, %s, 'owner')", [org, user]
        )
        with conn.transaction():
            conn.execute(f"set local app.org_id = '{org}'; set local app.actor_id = '{user}'")
            conn.execute(
                "insert into workflow (id, org_id, user_id, name, nodes, edges)"
                " values (%s, %s, %s, 'w', %s, '[]')",
                [workflow, org, user, DEFINITION],
            )
            conn.execute(
                "insert into workflow_execution (id, org_id, workflow_id) values (%s, %s, %s)",
                [run, org, workflow],
            )
    conn.execute("grant select on all tables in schema public to pgaudit_wf_reader")
    return conn


@contextmanager
def reading(conn: Conn, org: str, actor: str) -> Iterator[Conn]:
    with conn.transaction(force_rollback=True):
        conn.execute(f"set local app.org_id = '{org}'; set local app.actor_id = '{actor}'")
        conn.execute("set local role pgaudit_wf_reader")
        yield conn


def test_runs_with_a_definition(world: Conn) -> None:
    (content_hash,) = world.execute(
        "select distinct content_hash from pgaudit_wf.workflow_history"
    ).fetchone() or (None,)
    asked = "select kind, org_id from pgaudit_wf.definition_usage(%s) order by 1, 2"
    both = [("run", "a"), ("run", "b"), ("version", "a"), ("version", "b")]
    assert world.execute(asked, [content_hash]).fetchall() == both
    with reading(world, "a", "ana") as conn:
        assert conn.execute(asked, [content_hash]).fetchall() == [("run", "a"), ("version", "a")]
    for org, actor in (("b", "ana"), ("a", "eve"), ("", "")):
        with reading(world, org, actor) as conn:
            assert conn.execute(asked, [content_hash]).fetchall() == []


def test_execution_attribution_answers_for_one_organization(world: Conn) -> None:
    asked = "select execution_id from pgaudit_wf.execution_attribution('workflow_execution', %s)"
    with reading(world, "a", "ana") as conn:
        assert conn.execute(asked, [RUN_A]).fetchall() == [(RUN_A,)]
        assert conn.execute(asked, [RUN_B]).fetchall() == []
    assert world.execute(asked, [RUN_B]).fetchall() == [(RUN_B,)]


def test_runs_that_name_no_organization_are_their_workflows(world: Conn) -> None:
    world.execute("update pgaudit_wf.execution_attachment set org_column = null")
    asked = "select execution_id from pgaudit_wf.execution_attribution('workflow_execution', %s)"
    with reading(world, "a", "ana") as conn:
        assert conn.execute(asked, [RUN_A]).fetchall() == [(RUN_A,)]
        assert conn.execute(asked, [RUN_B]).fetchall() == []


def test_an_export_is_of_the_readers_organization(world: Conn) -> None:
    with reading(world, "a", "ana") as conn:
        conn.execute("select pgaudit_wf.record_export('csv', '{}', 3)")
    for org, actor in (("a", "eve"), ("b", "ana"), ("", "ana")):
        for function in ("record_export('csv', '{}')", "_record_org_export('x', '{}', 1, null)"):
            with reading(world, org, actor) as conn:
                (event,) = conn.execute(f"select pgaudit_wf.{function}").fetchone() or (None,)
                conn.execute("reset role")
                assert conn.execute(
                    "select outcome from pgaudit_wf.security_audit_log where id = %s", [event]
                ).fetchone() == ("denied",)
    world.execute("select pgaudit_wf.record_export('csv', '{}', 3)")


def test_being_denied_makes_nobody_known(world: Conn) -> None:
    with world.transaction():
        world.execute("set local app.org_id = 'a'; set local app.actor_id = 'eve'")
        world.execute("set local role pgaudit_wf_reader")
        world.execute("select pgaudit_wf.record_export('csv', '{}', null, 'denied')")
    with reading(world, "a", "ana") as conn:
        assert conn.execute("select actor_id from pgaudit_wf.describe_actors('a')").fetchall() == [
            ("ana",)
        ]


def test_pseudonyms_of_people_elsewhere_stay_there(world: Conn) -> None:
    (pseudonym,) = world.execute("select pgaudit_wf.pseudonymise('bob')").fetchone() or (None,)
    asked = "select * from pgaudit_wf.pseudonyms(array['ana', 'bob'])"
    (given,) = world.execute("select pseudonym from pgaudit_wf.erasure").fetchone() or (None,)
    assert pseudonym is not None
    assert world.execute(asked).fetchall() == [("bob", given)]
    with reading(world, "b", "bob") as conn:
        # Whether bob still is the owner is up to the directory, which the application keeps.
        assert conn.execute(asked).fetchall() in ([("bob", given)], [])
    with reading(world, "a", "ana") as conn:
        assert conn.execute(asked).fetchall() == [("bob", "[erased]")]
    with reading(world, "b", "ana") as conn:
        assert conn.execute(asked).fetchall() == []
