"""The JSON API: who is let in, what they get, and nothing of anybody else's."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
from psycopg_pool import ConnectionPool
from starlette.testclient import TestClient

from pgaudit_wf import AttestationKey, audit_trail, record_event, request_context
from pgaudit_wf.trail.event import TrailEntry
from pgaudit_wf.web import CONTENT_SECURITY_POLICY, create_app
from support.web_world import (
    FLOW,
    FORMULA,
    OTHER_FLOW,
    PEOPLE,
    SCRIPT,
    SECRET,
    World,
    mounted_app,
    person,
    sync_app,
)

Get = Callable[..., Any]


@pytest.fixture(params=["sync", "mounted"])
def client(request: pytest.FixtureRequest, world: World) -> Iterator[TestClient]:
    """The app on blocking pools by itself, and on async ones under a prefix."""
    if request.param == "sync":
        with TestClient(sync_app(world), headers={"x-test-user": "ana"}) as made:
            yield made
    else:
        with TestClient(
            mounted_app(world), base_url="http://testserver/audit", headers={"x-test-user": "ana"}
        ) as made:
            yield made


def as_(name: str) -> dict[str, str]:
    return {"x-test-user": name}


ROUTES = [
    "/", "/activity", "/api/security/audit", "/api/security/audit/export",
    "/api/security/audit/follow", "/api/security/audit/events/abc", f"/api/workflows/{FLOW}",
    f"/api/workflows/{FLOW}/history", f"/api/workflows/{FLOW}/diff?from=1&to=2",
    "/api/api-keys/activity", "/api/executions/x/attribution", "/healthz", "/openapi.json",
    "/nowhere", "/workflows", f"/workflows/{FLOW}", "/api-keys", "/runs",
    "/integrity",
]  # fmt: skip


def test_without_a_principal_every_route_answers_401(client: TestClient) -> None:
    for path in ROUTES:
        answer = client.get(path, headers=as_("nobody"))
        assert answer.status_code == 401, path
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        if path.startswith(("/api/", "/healthz", "/openapi")):
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == 401


def test_a_member_gets_403_wherever_something_of_the_organization_is(client: TestClient) -> None:
    for path in ROUTES:
        expected = 200 if path in ("/healthz", "/openapi.json", "/static/app.css") else 403
        assert client.get(path, headers=as_("bo")).status_code == expected, path


def test_the_database_refuses_whom_only_the_host_takes_for_an_owner(client: TestClient) -> None:
    answer = client.get("/api/security/audit", headers=as_("liar"))
    assert (answer.status_code, answer.json()["code"]) == (403, "PA006")
    assert client.get(f"/api/workflows/{FLOW}", headers=as_("liar")).status_code == 404
    assert client.get("/api/api-keys/activity", headers=as_("liar")).json() == {"keys": []}
    refused = client.post(
        f"/api/workflows/{FLOW}/restore", json={"version": 1}, headers=as_("liar")
    )
    assert refused.status_code == 404


def test_the_trail_is_what_the_typed_read_returns(client: TestClient, world: World) -> None:
    page = client.get("/api/security/audit", params={"page_size": 1000}).json()
    expected = audit_trail(world.conn, org_id="o_acme", page_size=1000)
    assert [entry["id"] for entry in page["entries"]] == [e.id for e in expected.entries]
    assert page["next_cursor"] is None
    revoked = next(e for e in page["entries"] if e["action"] == "org_api_key.revoked")
    assert (revoked["actor_name"], revoked["ip"], revoked["country"], revoked["resource_name"]) == (
        "Dan", "203.0.113.9", "PT", "kh_9f2a…",
    )  # fmt: skip
    assert revoked["metadata"]["reason"] == "the vendor changed"


def test_an_event_says_whether_it_is_attested(client: TestClient, world: World) -> None:
    key = AttestationKey("web", bytes(40))
    world.conn.execute("select pgaudit_wf.add_attestation_key('web', %s)", [key.secret])
    with request_context(world.conn, **person("ana", "req_signed"), attest=key):
        record_event(world.conn, "thing.seen")
    newest, before = client.get("/api/security/audit", params={"page_size": 2}).json()["entries"]
    assert (newest["attested"], before["attested"]) == (True, False)
    assert set(newest) == {field.name for field in fields(TrailEntry)}
    texts = [client.get(f"/activity/{entry['cursor']}").text for entry in (newest, before)]
    assert ["attested" in text for text in texts] == [True, False]


def test_pages_go_on_from_a_cursor(client: TestClient) -> None:
    everything = client.get("/api/security/audit", params={"page_size": 1000}).json()["entries"]
    found, after = [], None
    while True:
        params = {"page_size": 3} | ({"after": after} if after else {})
        page = client.get("/api/security/audit", params=params).json()
        found += page["entries"]
        if (after := page["next_cursor"]) is None:
            break
    assert found == everything


def test_filters(client: TestClient) -> None:
    keys = {"org_api_key.created", "org_api_key.revoked"}
    of_dan = {"workflow.updated", "org_api_key.revoked"}
    for params, actions in (
        ({"action": "org_api_key.*"}, keys),
        ({"outcome": "denied"}, {"session.created"}),
        ({"correlation_id": "req_5"}, of_dan),
        ({"search": "vendor"}, of_dan),
        ({"actor_id": "u_dan", "resource_type": "workflow"}, {"workflow.updated"}),
        ({"since": "2100-01-01T00:00:00Z"}, set()),
        ({"org_id": "o_acme", "resource_id": "k_ci"}, keys),
        ({"action": ["org_api_key.*", "workflow.updated"], "correlation_id": "req_5"}, of_dan),
        ({"correlation_id": "req_5", "not_action": ["workflow.*"]}, {"org_api_key.revoked"}),
        ({"network": "203.0.113.0/24", "changed": "revoked_at"}, {"org_api_key.revoked"}),
        ({"api_key_id": "nobody"}, set()),
    ):
        answer = client.get("/api/security/audit", params=params)
        assert {entry["action"] for entry in answer.json()["entries"]} == actions, params


def test_a_network_that_is_none_is_refused(client: TestClient) -> None:
    for path in ("/api/security/audit", "/activity"):
        for wrong in ("203.0.113", "203.0.113.256", "203.0.113.0/33", "1::2::3", "nowhere"):
            assert client.get(path, params={"network": wrong}).status_code == 422
        for right in ("::", "::1", "2001:db8::/32", "1:2:3:4:5:6:7:8", "::ffff:203.0.113.9/128"):
            assert client.get(path, params={"network": right}).status_code == 200


def test_other_organizations_are_not_found(client: TestClient, world: World) -> None:
    foreign = audit_trail(world.conn, org_id="o_globex").entries[0].cursor
    for path in (
        "/api/security/audit?org_id=o_globex", "/api/security/audit/export?org_id=o_globex",
        "/api/security/audit/follow?org_id=o_globex", f"/api/security/audit/events/{foreign}",
        f"/api/workflows/{OTHER_FLOW}", f"/api/workflows/{OTHER_FLOW}?version=1",
        f"/api/workflows/{OTHER_FLOW}/history", f"/api/workflows/{OTHER_FLOW}/diff?from=1&to=1",
    ):  # fmt: skip
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            404, "application/problem+json",
        ), path  # fmt: skip
    assert (
        client.get(f"/api/executions/{world.run}/attribution", headers=as_("chidi")).status_code
        == 404
    )
    keys = client.get("/api/api-keys/activity").json()["keys"]
    assert {key["org_id"] for key in keys} == {"o_acme"}
    assert client.get("/api/security/audit?resource_id=k_globex").json()["entries"] == []
    refused = client.post(f"/api/workflows/{OTHER_FLOW}/restore", json={"version": 1})
    assert refused.status_code == 404


def test_an_id_that_no_key_can_be_does_not_keep_the_page_from_being_read(
    client: TestClient, world: World
) -> None:
    with request_context(world.conn, actor_id="u_bo", org_id="o_acme"):
        for kind in ("workflow", "api_key", "member"):
            record_event(
                world.conn, f"{kind}.viewed", resource_type=kind, resource_id="no key at all"
            )
    entries = client.get("/api/security/audit?action=*.viewed").json()["entries"]
    assert [entry["resource_name"] for entry in entries] == [None] * 3
    assert len(client.get("/api/security/audit").json()["entries"]) > 3


def test_an_event_by_its_cursor(client: TestClient) -> None:
    entries = client.get("/api/security/audit").json()["entries"]
    for entry in entries:
        assert client.get(f"/api/security/audit/events/{entry['cursor']}").json() == entry
    assert client.get("/api/security/audit/events/bm90").json()["code"] == "PA007"


def test_following_goes_on_where_it_stopped(client: TestClient, world: World) -> None:
    start = client.get("/api/security/audit/follow").json()
    assert start["entries"]
    world.rename("Invoices")
    after = client.get("/api/security/audit/follow", params={"after": start["cursor"]}).json()
    assert [entry["action"] for entry in after["entries"]] == ["workflow.updated"]
    nothing = client.get("/api/security/audit/follow", params={"after": after["cursor"]}).json()
    assert nothing["entries"] == []


def test_versions_of_a_workflow(client: TestClient) -> None:
    history = client.get(f"/api/workflows/{FLOW}/history").json()
    assert [(v["version"], v["actor_name"], v["is_current"]) for v in history["versions"]] == [
        (3, "Dan", True), (2, "Ana Ferreira", False), (1, "Ana Ferreira", False),
    ]  # fmt: skip
    second = history["versions"][1]
    assert (second["auth_method"], second["api_key_id"]) == ("api_key", "k_ci")
    assert [node["label"] for node in second["change"]["nodes_added"]] == [SCRIPT]
    narrowed = client.get(f"/api/workflows/{FLOW}/history", params={"node_id": "old"}).json()
    assert [v["version"] for v in narrowed["versions"]] == [2, 1]
    page = client.get(f"/api/workflows/{FLOW}/history", params={"page_size": 2}).json()
    rest = client.get(
        f"/api/workflows/{FLOW}/history", params={"before_version": page["next_before"]}
    ).json()
    assert page["versions"] + rest["versions"] == history["versions"]


def test_a_version_has_the_shape_of_the_row(client: TestClient, world: World) -> None:
    now = client.get(f"/api/workflows/{FLOW}").json()
    row = world.conn.execute(
        "select to_jsonb(w) from workflow as w where id = %s", [FLOW]
    ).fetchone()
    assert row
    shared = {name: row[0][name] for name in now.keys() & row[0].keys()}
    assert {name: now[name] for name in shared} == shared
    assert {
        "id",
        "org_id",
        "name",
        "description",
        "visibility",
        "enabled",
        "nodes",
        "edges",
    } == set(shared)
    assert (now["version"], now["is_current"]) == (3, True)
    first = client.get(f"/api/workflows/{FLOW}", params={"version": 1}).json()
    assert (first["name"], len(first["nodes"]), first["is_current"]) == ("Intake", 3, False)
    missing = client.get(f"/api/workflows/{FLOW}", params={"version": 9})
    assert (missing.status_code, missing.json()["code"]) == (404, "PA302")


def test_any_two_versions_compared(client: TestClient) -> None:
    forth = client.get(f"/api/workflows/{FLOW}/diff", params={"from": 1, "to": 3}).json()
    back = client.get(f"/api/workflows/{FLOW}/diff", params={"from": 3, "to": 1}).json()
    assert forth["settings"] == [{"field": "name", "before": "Intake", "after": SCRIPT}]
    assert forth["nodes_added"] == back["nodes_removed"]
    assert client.get(f"/api/workflows/{FLOW}/diff?from=1&to=77").status_code == 404


def test_restore_is_versioned_and_audited(client: TestClient, world: World) -> None:
    answer = client.post(f"/api/workflows/{FLOW}/restore", json={"version": 1})
    assert answer.json() == {"version": 4, "changed": True}
    again = client.post(f"/api/workflows/{FLOW}/restore", json={"version": 1})
    assert again.json() == {"version": 4, "changed": False}
    newest = audit_trail(world.conn, page_size=1).entries[0]
    assert (newest.action, newest.actor_id, newest.org_id, newest.auth_method) == (
        "workflow.restored", "u_ana", "o_acme", "session",
    )  # fmt: skip
    assert newest.correlation_id is not None


def test_restore_is_not_for_other_sites(client: TestClient) -> None:
    for headers, status in (
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"origin": "http://testserver"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
    ):
        answer = client.post(
            f"/api/workflows/{FLOW}/restore",
            content=b'{"version": 1}',
            headers={"content-type": "application/json"} | headers,
        )
        assert answer.status_code == status, headers
        versions = client.get(f"/api/workflows/{FLOW}/history").json()["versions"]
        assert len(versions) == (4 if status == 200 else 3)


def test_restore_needs_a_connection_that_may_write(world: World) -> None:
    with TestClient(sync_app(world, writable=False), headers=as_("ana")) as client:
        answer = client.post(f"/api/workflows/{FLOW}/restore", json={"version": 1})
    assert (answer.status_code, answer.json()["code"]) == (501, "read_only")


def test_what_the_host_refuses_is_a_conflict(client: TestClient, world: World) -> None:
    world.conn.execute("alter table workflow add check (name <> 'Intake') not valid")
    answer = client.post(f"/api/workflows/{FLOW}/restore", json={"version": 1})
    assert answer.status_code == 409
    world.conn.execute("alter table workflow drop constraint workflow_name_check")
    world.conn.execute(
        "do $$ begin execute format('revoke update on workflow from %I',"
        " 'web_writer_' || current_database()); end $$"
    )
    answer = client.post(f"/api/workflows/{FLOW}/restore", json={"version": 1})
    assert answer.status_code == 403


def test_api_keys_also_those_that_are_gone(client: TestClient, world: World) -> None:
    world.conn.execute("delete from api_key where id = 'k_ci'")
    keys = {key["api_key_id"]: key for key in client.get("/api/api-keys/activity").json()["keys"]}
    assert keys["k_ci"]["status"] == "deleted"
    assert (keys["k_ci"]["created_by_name"], keys["k_ci"]["revoked_by_name"]) == (
        "Ana Ferreira", "Dan",
    )  # fmt: skip
    assert keys["k_formula"]["status"] == "active"


def test_what_is_behind_a_run(client: TestClient, world: World) -> None:
    found = client.get(f"/api/executions/{world.run}/attribution").json()
    assert (found["credential_type"], found["credential_label"], found["version"]) == (
        "org_api_key", "kh_9f2a…", 2,
    )  # fmt: skip
    assert [node["id"] for node in found["snapshot"]["nodes"]] == ["mail", "ocr", "file"]
    for unknown in ("no-uuid", FLOW):
        assert client.get(f"/api/executions/{unknown}/attribution").status_code == 404


def test_runs_show_only_where_the_reader_role_may_read_them(
    client: TestClient, world: World
) -> None:
    world.conn.execute("revoke select on workflow_execution from pgaudit_wf_reader")
    assert client.get(f"/api/executions/{world.run}/attribution").status_code == 404


def test_exports_have_every_event_and_are_recorded(client: TestClient, world: World) -> None:
    entries = client.get("/api/security/audit?page_size=1000").json()["entries"]
    answer = client.get("/api/security/audit/export", params={"format": "csv"})
    assert answer.headers["content-disposition"].startswith(
        'attachment; filename="audit-trail-o_acme-'
    )
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [int(row["id"]) for row in rows] == [entry["id"] for entry in entries]
    assert any(row["user_agent"] == f"'{FORMULA}" for row in rows)
    lines = client.get("/api/security/audit/export?format=ndjson&action=org_api_key.*").text
    assert {json.loads(line)["action"] for line in lines.splitlines()} == {
        "org_api_key.created", "org_api_key.revoked",
    }  # fmt: skip
    ocsf = client.get("/api/security/audit/export?format=ocsf").text.splitlines()
    assert {json.loads(line)["metadata"]["version"] for line in ocsf} == {"1.6.0"}
    recorded = [
        (e.action, e.actor_id, e.metadata["format"], e.metadata.get("events"))
        for e in audit_trail(world.conn, action="audit.export*").entries[::-1]
    ]
    assert recorded == [
        ("audit.export_started", "u_ana", "csv", None),
        ("audit.exported", "u_ana", "csv", len(entries)),
        ("audit.export_started", "u_ana", "ndjson", None),
        ("audit.exported", "u_ana", "ndjson", 3),
        ("audit.export_started", "u_ana", "ocsf", None),
        # The four records of the exports before are events, too.
        ("audit.exported", "u_ana", "ocsf", len(entries) + 4),
    ]


def test_an_export_of_more_than_a_page_is_whole(client: TestClient, world: World) -> None:
    world.conn.execute(
        "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
        " select 'k_' || n, 'o_acme', 'u_ana', 'n', 'kh_', 'never-to-be-logged-' || n"
        " from generate_series(1, 2500) as n"
    )
    lines = client.get("/api/security/audit/export?format=ndjson").text.splitlines()
    ids = [json.loads(line)["id"] for line in lines]
    assert len(ids) == len(set(ids)) > 2500
    assert ids == sorted(ids, reverse=True)


def test_errors_are_problems(client: TestClient) -> None:
    for path, status in (
        ("/api/security/audit?page_size=0", 422),
        ("/api/security/audit?color=red", 422),
        ("/api/security/audit?outcome=maybe", 422),
        ("/api/security/audit?since=2026-01-01T00:00:00", 422),
        ("/api/security/audit?after=nonsense", 400),
        ("/api/security/audit?search=%00", 422),
        ("/api/security/audit/follow?after=nonsense", 400),
        ("/api/workflows/none/history", 404),
        ("/api/nowhere", 404),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (
            status, "application/problem+json",
        ), path  # fmt: skip
        assert answer.json().keys() >= {"type", "title", "status", "detail"}


def test_no_secret_is_in_any_answer(client: TestClient, world: World) -> None:
    paths = [path for path in ROUTES if path != "/nowhere"]
    paths += [f"/api/executions/{world.run}/attribution", "/api/security/audit/export?format=ocsf"]
    for name in ("ana", "bo", "nobody"):
        for path in paths:
            assert SECRET not in client.get(path, headers=as_(name)).text


def test_a_database_that_is_gone_is_503(world: World) -> None:
    pool = ConnectionPool(
        "host=/nonexistent dbname=x", min_size=0, max_size=1, open=False, timeout=0.2
    )
    with pool, TestClient(create_app(pool, lambda _: PEOPLE["ana"])) as client:
        for path in ("/healthz", "/api/security/audit"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_a_question_that_takes_too_long_is_503(world: World) -> None:
    with TestClient(sync_app(world, timeout=0.001), headers=as_("ana")) as client:
        answer = client.get("/api/security/audit?page_size=1000&search=x")
    assert (answer.status_code, answer.json()["code"]) == (503, "timeout")


def test_health_answers_without_a_principal_where_the_host_says_so(world: World) -> None:
    with TestClient(sync_app(world, open_health=True)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/api/security/audit").status_code == 401
