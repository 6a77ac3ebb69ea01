"""Pages and the terminal stay small next to a value of ten megabytes, and say what is not there."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from rich.console import Console
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail, record_event, request_context
from pgaudit_wf.cli.printing.trail import change_lines, changes
from pgaudit_wf.trail.reads import TrailEntry
from pgaudit_wf.web.canvas import draw
from pgaudit_wf.web.excerpt import excerpt
from pgaudit_wf.workflow.model import Connected, NodeRef, Snapshot, VersionDiff
from support.web_world import FLOW, World, mounted_app, person

MANY = 10_000_000
PAGE = 1_000_000


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(
        mounted_app(world), base_url="http://testserver/audit", headers={"x-test-user": "ana"}
    ) as opened:
        yield opened


def follow(client: TestClient, path: str, count: str) -> Iterator[str]:
    """The page, and those that its link to the rest leads to."""
    while True:
        page = client.get(path)
        assert page.status_code == 200
        assert len(page.content) < PAGE
        yield page.text
        found = re.search(
            rf'{count} [\d,]+ to [\d,]+ of [\d,]+ · <a href="/audit([^"]+)">', page.text
        )
        if found is None:
            return
        path = found[1].replace("&amp;", "&")


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


def huge(count: int, text: str) -> list[dict[str, Any]]:
    return [
        {"id": f"n{number}", "type": "action",
         "data": {"label": f"Step {number}{text}", "config": {"actionType": "HTTP Request",
                  "endpoint": text, **{f"k{key}": text for key in range(4)}}}}
        for number in range(count)
    ]  # fmt: skip


def test_a_workflow_of_thousands_of_nodes_is_shown_in_parts(
    world: World, client: TestClient
) -> None:
    count = 3_000
    links = [{"id": f"e{n}", "source": f"n{n}", "target": f"n{n + 1}"} for n in range(count - 1)]
    for text in ("", '"<&>"' * 20):
        with request_context(world.conn, **person("ana", "req_huge")):
            world.conn.execute(
                "update workflow set nodes = %s::json, edges = %s::json, name = %s where id = %s",
                [json.dumps(huge(count, text)), json.dumps(links), "n" * 300_000, FLOW],
            )
    newest = client.get(f"/api/workflows/{FLOW}").json()["version"]
    history = client.get(f"/workflows/{FLOW}")
    assert len(history.content) < PAGE
    assert "Changes 1 to 20 of 6,0" in history.text
    assert client.get(f"/workflows/{FLOW}", params={"node_id": "n77"}).status_code == 200
    assert len(client.get("/workflows").content) < PAGE
    assert len(client.get("/runs").content) < PAGE
    path = f"/workflows/{FLOW}/versions/{newest - 1}"
    first, second = islice(follow(client, path, "Nodes"), 2)
    for page, numbers in ((first, range(200)), (second, range(200, 400))):
        drawn = re.findall(r'<a href="[^"]*node_id=n(\d+)#node"', page)
        assert drawn == [str(number) for number in numbers]
    later = next(follow(client, f"{path}?skip={count - 10}", "Changes"))
    listed = re.findall(r"added node <b>Step (\d+)</b>", later)
    # The first change is the name's.
    assert listed == [str(number) for number in range(count - 11, count)]
    comparison = f"/workflows/{FLOW}/compare?from={newest - 1}&to={newest}&skip={count - 100}"
    changed = [
        int(label) for page in follow(client, comparison, "Changes")
        for label in re.findall(r"renamed node <del>Step (\d+)</del>", page)
    ]  # fmt: skip
    assert changed == [*range(count - 100, count)]
    restore = client.get(f"/workflows/{FLOW}/restore/{newest - 1}")
    assert len(restore.content) < PAGE
    assert f"from={newest}&amp;to={newest - 1}&amp;skip=" in restore.text


def test_an_event_of_thousands_of_operations_is_shown_in_parts(
    world: World, client: TestClient
) -> None:
    conn = world.conn
    conn.execute("create table note (id int primary key, org_id text, more jsonb)")
    conn.execute("select pgaudit_wf.attach('note')")
    conn.execute(
        "insert into pgaudit_wf.security_audit_log (org_id, action, resource_type, correlation_id,"
        " diff, metadata) select 'o_acme', 'note.updated', 'note', 'req_many', jsonb_agg("
        " jsonb_build_object('op', 'replace', 'path', '/f' || n, 'old', n, 'value', '<')"
        " order by n),"
        " jsonb_object_agg('m' || n, n)"
        " from generate_series(1, 20000) as n, (values (1), (2)) as _ group by _"
    )
    entries = client.get("/api/security/audit", params={"page_size": 1}).json()["entries"]
    path = f"/activity/{entries[0]['cursor']}"
    seen: list[str] = []
    for page in follow(client, path, "Rows"):
        seen += re.findall(r'<th scope="row">(f\d+)</th>', page)
        assert "19,950 more, which the export has" in page
        assert "In the same request" in page
        if len(seen) > 200:
            break
    assert seen == [f"f{number}" for number in range(1, len(seen) + 1)]
    last = client.get(path, params={"skip": 19_990}).text
    assert "Rows 19,991 to 20,000 of 20,000</p>" in last


def test_a_list_does_not_load_what_its_events_changed(
    world: World, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    init = TrailEntry.__init__

    def keep(self: TrailEntry, **values: Any) -> None:  # noqa: ANN401
        loaded.append(values["diff"])
        init(self, **values)

    monkeypatch.setattr(TrailEntry, "__init__", keep)
    listed = client.get("/activity")
    assert "Ana Ferreira" in listed.text
    assert loaded
    assert set(loaded) == {None}
    [older] = re.findall(r'data-live="([^"]+)"', listed.text) or [""]
    assert older


def test_workflows_and_keys_come_page_by_page(world: World, client: TestClient) -> None:
    with request_context(world.conn, **person("ana", "req_many")):
        world.conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges) select gen_random_uuid(),"
            " 'o_acme', 'Flow ' || n, '[]', '[]' from generate_series(1, 450) as n"
        )
        world.conn.execute(
            "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
            " select 'k' || n, 'o_acme', 'u_ana', 'CI', 'kh_' || n, 'h' || n"
            " from generate_series(1, 450) as n"
        )
    for path, name in (("/workflows", "<b>Flow (\\d+)<"), ("/api-keys", 'resource_id=k(\\d+)"')):
        seen: list[str] = []
        next_: str | None = path
        while next_:
            answered = client.get(next_)
            assert answered.status_code == 200, answered.text
            page = answered.text
            seen += re.findall(name, page)
            found = re.search(r'id="more" href="/audit([^"]+)"', page)
            next_ = found[1].replace("&amp;", "&") if found else None
        assert sorted(map(int, seen)) == [*range(1, 451)]
    assert client.get("/workflows?after=x").status_code == 400


def test_the_parts_of_a_list_are_all_of_it() -> None:
    nodes = tuple(NodeRef(f"n{n}", "x" * (n % 3 * 400), "action") for n in range(700))
    links = tuple(Connected(f"{n}", "b", "a", "b", None, None) for n in range(300))
    diff = VersionDiff((), nodes, (), (), links, (), True)
    parts = [excerpt(diff)]
    while parts[-1].last < 1_000:
        parts.append(excerpt(diff, parts[-1].last))
    assert tuple(node for part in parts for node in part.diff.nodes_added) == nodes
    assert tuple(link for part in parts for link in part.diff.connections_added) == links
    assert [part.first for part in parts[1:]] == [part.last + 1 for part in parts[:-1]]
    assert not any(part.is_cut for part in parts)
    snapshot = Snapshot(None, None, None, None, [{"id": f"n{n}"} for n in range(700)], [])
    drawings = [draw(snapshot, None, diff, skip) for skip in range(0, 700, 200)]
    assert sorted(node.id for drawing in drawings for node in drawing.nodes) == sorted(
        str(node.id) for node in nodes
    )
