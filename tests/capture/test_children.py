"""Tables that inherit, and partitions that live on another server: recorded, refused or named."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgaudit_wf.dev.server import DevServer

Conn = psycopg.Connection[Any]


def recorded(conn: Conn) -> list[tuple[Any, ...]]:
    return conn.execute(
        "select action, resource_id from pgaudit_wf.security_audit_log"
        " where action !~ '^audit[.]' and captured order by id"
    ).fetchall()


def test_a_parent_is_attached_after_its_children(conn: Conn) -> None:
    conn.execute("create table vehicle (id int primary key)")
    conn.execute("create table truck (load int, primary key (id)) inherits (vehicle)")
    conn.execute("create table tanker (primary key (id)) inherits (truck)")
    with pytest.raises(psycopg.Error, match=r"inherits from it, public\.tanker") as caught:
        conn.execute("select pgaudit_wf.attach('vehicle')")
    assert caught.value.sqlstate == "PA004"
    for table in ("tanker", "truck", "vehicle"):
        conn.execute("select pgaudit_wf.attach(%s)", [table])
    conn.execute("insert into vehicle values (1)")
    conn.execute("insert into truck values (2)")
    conn.execute("insert into tanker values (3)")
    conn.execute("update vehicle set id = id + 10")
    assert recorded(conn) == [
        ("vehicle.created", "1"),
        ("truck.created", "2"),
        ("tanker.created", "3"),
        ("vehicle.updated", "11"),
        ("truck.updated", "12"),
        ("tanker.updated", "13"),
    ]


def test_a_child_that_comes_later_is_named(conn: Conn) -> None:
    conn.execute("create table vehicle (id int primary key)")
    conn.execute("select pgaudit_wf.attach('vehicle')")
    conn.execute("create table bike (primary key (id)) inherits (vehicle)")
    findings = conn.execute("select subject, remedy from pgaudit_wf.doctor()").fetchall()
    assert [subject for subject, _ in findings] == ["public.bike"]
    conn.execute(findings[0][1])
    assert not conn.execute("select from pgaudit_wf.doctor()").fetchall()


@pytest.mark.parametrize("attached_first", [True, False])
def test_rows_of_a_foreign_partition_are_recorded(
    conn: Conn, server: DevServer, attached_first: bool
) -> None:
    conn.execute("create extension postgres_fdw")
    conn.execute(
        "create server far foreign data wrapper postgres_fdw options"
        f" (host '{server.socket_dir}', port '{server.port}', dbname '{conn.info.dbname}')"
    )
    conn.execute(f"create user mapping for public server far options (user '{conn.info.user}')")
    conn.execute("create table there (id int, d date, v int)")
    conn.execute("create table m (id int, d date, v int) partition by range (d)")
    conn.execute("create table m1 partition of m for values from ('2025-01-01') to ('2026-01-01')")
    attach = "select pgaudit_wf.attach('m', id_columns => '{id}')"
    if attached_first:
        conn.execute(attach)
    conn.execute(
        "create foreign table m0 partition of m for values from ('2024-01-01') to ('2025-01-01')"
        " server far options (table_name 'there')"
    )
    if not attached_first:
        conn.execute(attach)
    conn.execute("insert into m values (1, '2024-02-02', 1)")
    conn.execute("update m set v = 2")
    conn.execute("alter table m add column w int")
    conn.execute("alter table there add column w int")
    conn.execute("update m set w = 3")
    conn.execute("delete from m")
    assert recorded(conn) == [
        ("m.created", "1"),
        ("m.updated", "1"),
        ("m.updated", "1"),
        ("m.deleted", "1"),
    ]
    assert not conn.execute("select from pgaudit_wf.doctor()").fetchall()
