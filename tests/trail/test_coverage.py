"""What is neither recorded nor waived: `pgaudit-wf coverage`."""

from __future__ import annotations

import json

import psycopg
import pytest

from support.command import command
from support.server import Conn

TABLES = """
create table plain (id int primary key);
create table "Odd ""name" (id int primary key);
create table cache (id int primary key);
create table parted (id int, at date, primary key (id, at)) partition by range (at);
create table part_1 partition of parted for values from ('2020-01-01') to ('2021-01-01');
create temporary table passing (id int);
create table account (
    id int primary key, "userPassword" text, api_token bytea, api_key_id int, token_count int,
    "secretId" int, has_secret bool, secret_changed date, pin char(4), opinion text,
    private_key text, session_secret text
);
select pgaudit_wf.attach('account', redact => '{private_key}', ignore => '{session_secret}');
"""


def test_what_is_found_and_waived(conn: Conn, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    conn.execute(TABLES.encode())
    conn.execute("insert into account (id) values (1), (2)")
    with conn.transaction():
        conn.execute("set local app.actor_id = 'u_1'")
        conn.execute("insert into account (id) values (3)")
    found = json.loads(command(capsys, "coverage", "-d", dsn, "--json").out)
    assert [(row["kind"], row["subject"]) for row in found] == [
        ("table", 'public."Odd ""name"'),
        ("table", "public.cache"),
        ("table", "public.parted"),
        ("table", "public.plain"),
        ("column", 'public.account."userPassword"'),
        ("column", "public.account.api_token"),
        ("column", "public.account.pin"),
        ("login", "role postgres"),
    ]
    assert found[-1]["detail"] == "2 events do not say who acted"
    shown = command(capsys, "coverage", "-d", dsn, "--fail")
    assert (shown.code, "select pgaudit_wf.attach('public.plain')" in shown.out) == (1, True)
    assert command(capsys, "coverage", "-d", dsn).code == 0

    # Each remedy works as it is printed, and a waiver takes the subject as it is listed.
    for row in found:
        if row["subject"] in ("public.plain", "public.account.pin", 'public."Odd ""name"'):
            conn.execute(row["remedy"].encode())
        else:
            conn.execute(
                "insert into pgaudit_wf.waiver (subject, reason) values (%s, 'x')", [row["subject"]]
            )
    assert conn.execute(
        "select redact from pgaudit_wf.attachment where target = 'account'::regclass"
    ).fetchone() == (["private_key", "pin"],)
    done = command(capsys, "coverage", "-d", dsn, "--fail")
    assert (done.code, done.out) == (0, "Everything is covered or waived.\n")
    conn.execute("alter table cache rename to cached")
    assert "public.cached" in command(capsys, "coverage", "-d", dsn).out


def test_a_waiver_has_a_reason_and_is_the_owners(conn: Conn, dsn: str) -> None:
    for reason in (None, "", " \n", "x" * 4097):
        with pytest.raises(psycopg.errors.IntegrityError):
            conn.execute(
                "insert into pgaudit_wf.waiver (subject, reason) values ('x', %s)", [reason]
            )
    conn.execute("create role waiving login in role pgaudit_wf_reader, pgaudit_wf_app")
    try:
        with psycopg.connect(dsn, user="waiving", autocommit=True) as other:
            for statement in (
                "insert into pgaudit_wf.waiver values ('public.x', 'y')",
                "select from pgaudit_wf.waiver",
                "select from pgaudit_wf._coverage('7 days')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    other.execute(statement.encode())
    finally:
        conn.execute("drop role waiving")
