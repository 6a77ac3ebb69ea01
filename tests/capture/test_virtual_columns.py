"""Columns that PostgreSQL 18 computes when they are read: refused in rules and limits."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

Conn = psycopg.Connection[Any]


@pytest.fixture
def sale(conn: Conn) -> Conn:
    if conn.info.server_version < 180_000:
        pytest.skip("virtual generated columns are new in PostgreSQL 18")
    conn.execute(
        "create table sale (id int primary key, n int, price int, org_id text,"
        " total int generated always as (n * price), large boolean generated always as (n > 5))"
    )
    return conn


def refused(conn: Conn, statement: str) -> None:
    with pytest.raises(psycopg.Error, match="does not exist") as caught:
        conn.execute(statement.encode())
    assert caught.value.sqlstate == "PA003"


RULE = (
    "insert into pgaudit_wf.action_rule (resource_type, op, condition, action)"
    " values ('sale', '{}', '{}', 'sale.raised')"
)


@pytest.mark.parametrize(
    ("op", "condition"),
    [
        ("insert", "new.total > 100"),
        ("update", "new.total > old.total"),
        ("delete", "old.large"),
        ("update", "(new).total > 0"),
    ],
)
def test_a_rule_over_one_is_refused(sale: Conn, op: str, condition: str) -> None:
    sale.execute("select pgaudit_wf.attach('sale')")
    refused(sale, RULE.format(op, condition))
    sale.execute(RULE.format(op, condition.replace("total", "n").replace("large", "n > 5")))


def test_attaching_with_a_rule_over_a_virtual_column_is_refused(sale: Conn) -> None:
    sale.execute(RULE.format("update", "new.total > old.total"))
    refused(sale, "select pgaudit_wf.attach('sale')")


def test_a_limit_over_one_is_refused(sale: Conn) -> None:
    sale.execute("select pgaudit_wf.attach('sale')")
    sale.execute("insert into pgaudit_wf.limit_condition values ('sale', 'n > 5')")
    sale.execute("select pgaudit_wf.set_org_limit(null, 'sale', 1)")
    refused(sale, "update pgaudit_wf.limit_condition set condition = 'large'")
    sale.execute("insert into sale (id, n, org_id) values (1, 9, 'o')")
    with pytest.raises(psycopg.Error) as caught:
        sale.execute("insert into sale (id, n, org_id) values (2, 9, 'o')")
    assert caught.value.sqlstate == "PA330"


def test_a_column_that_becomes_one_stops_no_write(sale: Conn) -> None:
    sale.execute("select pgaudit_wf.attach('sale')")
    sale.execute(RULE.format("update", "new.n > old.n"))
    sale.execute("insert into pgaudit_wf.limit_condition values ('sale', 'n > 5')")
    sale.execute("select pgaudit_wf.set_org_limit(null, 'sale', 1)")
    sale.execute("alter table sale drop column n cascade")
    sale.execute("alter table sale add column n int generated always as (price + 9) virtual")
    sale.execute("insert into sale (id, price, org_id) values (1, 1, 'o'), (2, 1, 'o')")
    sale.execute("update sale set price = 2")
    problems = sale.execute("select problem from pgaudit_wf.doctor()").fetchall()
    assert any("action rule" in problem for (problem,) in problems)
    assert any("not being counted" in problem for (problem,) in problems)
