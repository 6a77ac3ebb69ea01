"""What a page of the trail costs: an index scan and no sort, on the first page and deep down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail, request_context
from support.web_world import World, sync_app

EVENTS = 30_000


def fill(conn: psycopg.Connection[Any], events: int) -> None:
    """Events of five organizations, a second apart."""
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (occurred_at, actor_id, org_id, action,"
        " resource_type, resource_id, metadata)"
        " select now() - make_interval(secs => %(n)s - n), 'u_ana',"
        " case when n %% 5 = 0 then 'o_globex' else 'o_acme' end, 'workflow.updated',"
        " 'workflow', '11111111-1111-4111-8111-' || to_char(n %% 1000, 'fm000000000000'),"
        ' \'{"label": "Intake"}\''
        " from generate_series(1, %(n)s) as n",
        {"n": events},
    )
    conn.execute("vacuum analyze")


@pytest.fixture
def world(world: World) -> World:
    fill(world.conn, EVENTS)
    return world


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def plan_of_page(conn: psycopg.Connection[Any], after: str | None) -> dict[str, Any]:
    """The plan of the statement inside audit_trail() that finds the page, with what it read."""
    plans: list[dict[str, Any]] = []

    def keep(notice: psycopg.errors.Diagnostic) -> None:
        _, _, text = (notice.message_primary or "").partition("plan:\n")
        if text:
            plans.append(json.loads(text))

    conn.add_notice_handler(keep)
    conn.execute(
        "load 'auto_explain'; set auto_explain.log_min_duration = 0;"
        "set auto_explain.log_nested_statements = on; set auto_explain.log_format = json;"
        "set auto_explain.log_analyze = on; set auto_explain.log_buffers = on;"
        "set client_min_messages = log"
    )
    with request_context(conn, actor_id="u_ana", org_id="o_acme"):
        conn.execute("set local role pgaudit_wf_reader")
        assert len(audit_trail(conn, after=after).entries) == 50
    conn.execute("reset client_min_messages; reset auto_explain.log_min_duration")
    conn.remove_notice_handler(keep)
    [found] = [plan["Plan"] for plan in plans if "event as materialized" in plan["Query Text"]]
    return dict(found)


@pytest.mark.slow
def test_every_page_is_an_index_scan_without_a_sort(world: World) -> None:
    deep = world.conn.execute(
        "select pgaudit_wf._trail_cursor(occurred_at, id) from pgaudit_wf.security_audit_log"
        " where org_id = 'o_acme' order by occurred_at desc, id desc offset 20000 limit 1"
    ).fetchone()
    assert deep
    for after in (None, deep[0]):
        plan = plan_of_page(world.conn, after)
        # Below the limit; above it, fifty rows get names.
        [limit] = [node for node in nodes(plan) if node["Node Type"] == "Limit"]
        kinds = {node["Node Type"] for node in nodes(limit)}
        assert not {kind for kind in kinds if "Sort" in kind or kind in ("Seq Scan", "Hash")}
        assert "Index Scan" in kinds
        assert limit["Shared Hit Blocks"] + limit["Shared Read Blocks"] < 500


@pytest.mark.slow
def test_the_app_reads_a_deep_page_as_it_reads_the_first(world: World) -> None:
    with TestClient(sync_app(world), headers={"x-test-user": "ana"}) as client:
        after, seen = None, 0
        while True:
            params = {"page_size": 1000} | ({"after": after} if after else {})
            page = client.get("/api/security/audit", params=params).json()
            seen += len(page["entries"])
            if (after := page["next_cursor"]) is None:
                break
    row = world.conn.execute(
        "select count(*) from pgaudit_wf.security_audit_log where org_id = 'o_acme'"
    ).fetchone()
    assert row == (seen,)
