"""Pages and the terminal stay small next to a value of ten megabytes, and say what is not there."""

from __future__ import annotations

import io

from rich.console import Console
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail, record_event, request_context
from pgaudit_wf.cli.printing.trail import change_lines, changes
from support.web_world import World, mounted_app, person

MANY = 10_000_000


def test_a_page_shows_the_beginning_of_a_long_value(world: World) -> None:
    conn = world.conn
    conn.execute("create table note (id int primary key, org_id text, body text, more jsonb)")
    conn.execute("select pgaudit_wf.attach('note')")
    with request_context(conn, **person("ana", "req_long")):
        conn.execute("insert into note values (1, 'o_acme', repeat('x', %s), null)", [MANY])
        conn.execute("update note set more = to_jsonb(array_fill(repeat('y', 1000), array[1000]))")
        record_event(conn, "note.seen", metadata={"text": "z" * 500_000})
    with TestClient(
        mounted_app(world), base_url="http://testserver/audit", headers={"x-test-user": "ana"}
    ) as client:
        entries = client.get("/api/security/audit", params={"page_size": 3}).json()["entries"]
        for entry in entries:
            page = client.get(f"/activity/{entry['cursor']}")
            assert page.status_code == 200
            assert len(page.content) < 100_000
            assert "the export has them" in page.text
        assert len(client.get("/activity").content) < 1_000_000


def test_what_was_recorded_by_its_digest_is_said_not_to_be_there(world: World) -> None:
    conn = world.conn
    conn.execute("create table note (id int primary key, org_id text, body text, more jsonb)")
    conn.execute("select pgaudit_wf.attach('note', max_value => 1000)")
    with request_context(conn, **person("ana", "req_long")):
        conn.execute("insert into note values (1, 'o_acme', repeat('x', 5000), '{\"bytes\": 1}')")
        conn.execute("update note set body = 'short'")
    update, insert = audit_trail(conn, page_size=2).entries
    said = "(not recorded: 5,000 bytes, SHA-256 "
    assert said in changes(update).plain
    for entry in (update, insert):
        out = io.StringIO()
        Console(file=out, width=1000).print(*change_lines(entry))
        assert said in out.getvalue()
    with TestClient(
        mounted_app(world), base_url="http://testserver/audit", headers={"x-test-user": "ana"}
    ) as client:
        for entry in (update, insert):
            page = client.get(f"/activity/{entry.cursor}").text
            assert page.count(said) == 1


def test_what_changed_within_a_value_goes_by_column_and_path(world: World) -> None:
    conn = world.conn
    conn.execute("create table note (id int primary key, org_id text, more jsonb)")
    conn.execute("select pgaudit_wf.attach('note')")
    with request_context(conn, **person("ana", "req_nested")):
        conn.execute(
            "insert into note values (1, 'o_acme', jsonb_build_object('pad', repeat('x', 100),"
            " 'limits', '{\"max\": 10}'::jsonb, '<b>/~', '{}'::jsonb))"
        )
        conn.execute(
            "update note set more = jsonb_set(jsonb_set(more, '{limits,max}', '20'),"
            " '{<b>/~,1}', '\"<i>\"')"
        )
    [update] = audit_trail(conn, page_size=1).entries
    assert changes(update).plain == "more/<b>~1~0/1 empty → <i>, more/limits/max 10 → 20"
    assert [line.plain.strip() for line in change_lines(update)] == [
        '+ more/<b>~1~0/1: "<i>"', "~ more/limits/max: 10 → 20",
    ]  # fmt: skip
    with TestClient(
        mounted_app(world), base_url="http://testserver/audit", headers={"x-test-user": "ana"}
    ) as client:
        page = client.get(f"/activity/{update.cursor}").text
        assert '<th scope="row">more/limits/max</th><td><del>10</del></td>' in page
        assert '<th scope="row">more/&lt;b&gt;~1~0/1</th><td></td><td><ins>&lt;i&gt;' in page
