"""What becomes of versions on the pages and in the API: files, copies, deleted ones put back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail, request_context
from support.web_browser import Visits
from support.web_world import FLOW, NODES, OTHER_FLOW, SCRIPT, World, person, sync_app

SIZES = {"wide": (1280, 800), "phone": (390, 800)}


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(sync_app(world), headers={"x-test-user": "ana"}) as made:
        yield made


def delete(world: World) -> None:
    with request_context(world.conn, **person("dan", "req_gone")):
        world.conn.execute("delete from workflow where id = %s", [FLOW])


def post(client: TestClient, path: str, body: dict[str, Any], **headers: str) -> Any:  # noqa: ANN401
    return client.post(f"/api/workflows/{path}", json=body, headers=headers)


def test_a_deleted_workflow_is_put_back_by_the_api(client: TestClient, world: World) -> None:
    there = post(client, f"{FLOW}/undelete", {})
    assert (there.status_code, there.json()["code"]) == (409, "PA304")
    delete(world)
    assert post(client, f"{FLOW}/restore", {"version": 1}).status_code == 404
    for name, status in (("bo", 403), ("liar", 404), ("chidi", 404), ("nobody", 401)):
        answer = post(client, f"{FLOW}/undelete", {}, **{"x-test-user": name})
        assert answer.status_code == status, name
        copied = post(client, f"{FLOW}/copy", {"version": 1}, **{"x-test-user": name})
        assert copied.status_code == status, name
    assert post(client, f"{FLOW}/undelete", {}, origin="https://evil.example").status_code == 403
    assert post(client, f"{FLOW}/undelete", {"reason": ""}).status_code == 422
    answer = post(client, f"{FLOW}/undelete", {"reason": "by mistake"})
    assert answer.json() == {"version": 4, "changed": True}
    newest = audit_trail(world.conn, page_size=1).entries[0]
    assert (newest.action, newest.actor_id) == ("workflow.undeleted", "u_ana")
    assert newest.metadata["reason"] == "by mistake"
    with TestClient(sync_app(world, writable=False), headers={"x-test-user": "ana"}) as other:
        assert post(other, f"{FLOW}/undelete", {}).status_code == 501


def test_versions_are_files_and_copies(client: TestClient, world: World) -> None:
    file = client.get(f"/api/workflows/{FLOW}/export?version=1")
    assert file.json()["nodes"] == NODES
    assert "Intake%20v1.json" in file.headers["content-disposition"]
    assert client.get(f"/api/workflows/{FLOW}/export").json()["name"] == SCRIPT
    assert client.get(f"/api/workflows/{OTHER_FLOW}/export").status_code == 404
    assert client.get(f"/api/workflows/{FLOW}/export?version=9").status_code == 404
    made = post(client, f"{FLOW}/copy", {"version": 1, "name": "Intake 2"}).json()["workflow_id"]
    copied = client.get(f"/api/workflows/{made}").json()
    assert (copied["name"], copied["nodes"], copied["version"]) == ("Intake 2", NODES, 1)
    event = audit_trail(world.conn, page_size=1).entries[0]
    assert event.action == "workflow.created"
    assert event.metadata["reason"] == f"copy of version 1 of workflow {FLOW}"
    taken = post(client, f"{FLOW}/copy", {"version": 1, "id": FLOW})
    assert taken.status_code == 409
    assert post(client, f"{FLOW}/copy", {"version": 9}).status_code == 404
    assert post(client, f"{FLOW}/copy", {"version": 1, "id": "no uuid"}).status_code == 400


def test_a_restore_may_say_which_version_it_rests_on(client: TestClient, world: World) -> None:
    etag = client.get(f"/api/workflows/{FLOW}").headers["etag"]
    assert etag == '"3"'
    world.rename("meanwhile")
    refused = post(client, f"{FLOW}/restore", {"version": 1}, **{"if-match": etag})
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (412, "PA305")
    differences = problem["differences"]
    assert (differences["base"], differences["current"]) == (3, 4)
    assert differences["theirs"]["settings"][0]["after"] == "meanwhile"
    assert differences["yours"]["nodes_added"][0]["label"] == "Old step"
    for wrong in ("3", 'W/"3"', '"x"', ""):
        answer = post(client, f"{FLOW}/restore", {"version": 1}, **{"if-match": wrong})
        assert answer.status_code == 422, wrong
    assert client.get(f"/api/workflows/{FLOW}").headers["etag"] == '"4"'
    both = post(client, f"{FLOW}/restore", {"version": 1}, **{"if-match": '"3", "4"'})
    assert both.json() == {"version": 5, "changed": True}
    whatever = post(client, f"{FLOW}/restore", {"version": 2}, **{"if-match": "*"})
    assert whatever.json() == {"version": 6, "changed": True}


READ = [
    f"/api/workflows/{FLOW}", f"/api/workflows/{FLOW}/history", f"/api/workflows/{FLOW}/export",
    f"/api/workflows/{FLOW}/diff?from=1&to=2", "/workflows", f"/workflows/{FLOW}",
    f"/workflows/{FLOW}/versions/2", f"/workflows/{FLOW}/compare?from=1&to=3",
]  # fmt: skip
NOT_FOR_MEMBERS = [
    "/activity", "/api/security/audit", "/api/security/audit/export", "/api-keys", "/runs",
    "/integrity", "/api/api-keys/activity", "/api/executions/x/attribution", "/checkpoint",
    f"/workflows/{FLOW}/restore/1", f"/workflows/{FLOW}/copy/1", f"/workflows/{FLOW}/publish/1",
    f"/workflows/{FLOW}/undelete",
]  # fmt: skip
POSTS = [
    (f"/api/workflows/{FLOW}/restore", {"version": 1}), (f"/api/workflows/{FLOW}/undelete", {}),
    (f"/api/workflows/{FLOW}/copy", {"version": 1}),
    (f"/api/workflows/{FLOW}/publish", {"version": 1}),
]  # fmt: skip


def let_members_read(world: World, org: str | None = None) -> None:
    world.conn.execute(
        "insert into pgaudit_wf.version_policy (org_id, members_read) values (%s, true)"
        " on conflict (org_id) do update set members_read = true",
        [org],
    )


@pytest.mark.parametrize("org", [None, "o_acme"])
def test_every_member_reads_versions_where_that_is_set(
    client: TestClient, world: World, org: str | None
) -> None:
    def statuses(name: str, paths: list[str]) -> set[int]:
        answers = (client.get(path, headers={"x-test-user": name}) for path in paths)
        return {answer.status_code for answer in answers}

    assert statuses("bo", READ) == statuses("guest", READ) == {403}
    let_members_read(world, org)
    for name in ("bo", "ana", "dan"):
        assert statuses(name, READ) == {200}, name
    # Whom only the host takes for something; an owner of another organization; nobody.
    assert statuses("guest", [*READ, *NOT_FOR_MEMBERS]) == {403}
    assert statuses("chidi", [path for path in READ if path != "/workflows"]) == {404}
    assert statuses("nobody", [*READ, *NOT_FOR_MEMBERS]) == {401}
    assert statuses("bo", NOT_FOR_MEMBERS) == {403}
    for path, body in POSTS:
        for name in ("bo", "guest", "liar"):
            refused = client.post(path, json=body, headers={"x-test-user": name})
            assert refused.status_code == 403, (path, name)
    start = client.get("/", headers={"x-test-user": "bo"}, follow_redirects=False)
    assert start.headers["location"].endswith("/workflows")
    # What is set for the organization counts before what is set for all.
    world.conn.execute(
        "insert into pgaudit_wf.version_policy (org_id, members_read) values ('o_acme', false)"
        " on conflict (org_id) do update set members_read = false"
    )
    assert statuses("bo", READ) == {403}
    recorded = audit_trail(world.conn, action="audit.retention_changed", page_size=1).entries
    assert recorded


def test_a_member_looks_at_versions(visit: Visits, world: World) -> None:
    let_members_read(world)
    bo = visit("bo", viewport={"width": 390, "height": 800})
    page = bo.go("/workflows")
    expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(["Workflows"])
    page.get_by_role("link", name=SCRIPT).click()
    expect(page.locator(".timeline > li")).to_have_count(3)
    expect(page.locator("main")).to_contain_text("Ana Ferreira")
    expect(page.get_by_role("link", name="Restore")).to_have_count(0)
    expect(page.get_by_role("link", name="Request")).to_have_count(0)
    bo.look("member-history")
    bo.check()
    page.get_by_role("link", name="View version 2 on canvas").click()
    expect(page.locator("svg .node")).to_have_count(4)
    expect(page.get_by_role("link", name="Copy to a new workflow")).to_have_count(0)
    expect(page.get_by_role("button", name="Save name")).to_have_count(0)
    expect(page.get_by_role("link", name="Download as JSON")).to_be_visible()
    bo.look("member-version")
    bo.check()
    expect(bo.go("/activity").get_by_role("heading", name="Forbidden")).to_be_visible()


def test_publishing_by_the_api(client: TestClient, world: World) -> None:
    assert not client.get(f"/api/workflows/{FLOW}").json()["is_published"]
    answer = post(client, f"{FLOW}/publish", {"version": 2, "reason": "tested"})
    assert answer.json() == {"version": 2}
    assert client.get(f"/api/workflows/{FLOW}?version=2").json()["is_published"]
    event = audit_trail(world.conn, page_size=1).entries[0]
    assert (event.action, event.actor_id, event.metadata["reason"]) == (
        "workflow.version_published", "u_ana", "tested",
    )  # fmt: skip
    assert post(client, f"{FLOW}/publish", {"version": None}).json() == {"version": None}
    assert post(client, f"{FLOW}/publish", {}).status_code == 422
    assert post(client, f"{FLOW}/publish", {"version": 9}).status_code == 404
    for name, status in (("bo", 403), ("chidi", 404), ("liar", 404), ("nobody", 401)):
        refused = post(client, f"{FLOW}/publish", {"version": 1}, **{"x-test-user": name})
        assert refused.status_code == status, name


def fits(page: Page) -> bool:
    return not page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_journey_of_a_deleted_workflow(visit: Visits, world: World, size: str) -> None:
    width, height = SIZES[size]
    dan = visit("dan", viewport={"width": width, "height": height})
    delete(world)
    page = dan.go(f"/workflows/{FLOW}")
    expect(page.locator(".note.bad")).to_contain_text("Deleted just now")
    expect(page.get_by_role("link", name="Restore version")).to_have_count(0)
    dan.look(f"deleted-{size}")
    dan.check()
    assert fits(page)
    expect(dan.go(f"/workflows/{FLOW}/restore/1").locator("main")).to_contain_text("put it back")
    page = dan.go(f"/workflows/{FLOW}/versions/2")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as JSON").click()
    assert json.loads(download.value.path().read_text())["nodes"][1]["data"]["label"] == "Reader"
    page.get_by_role("link", name="Put it back").click()
    dan.look(f"undelete-{size}")
    dan.check()
    assert fits(page)
    page.get_by_label("Why?").fill("by mistake")
    page.get_by_role("button", name="Put it back").click()
    expect(page.get_by_role("status")).to_have_text("Version 4 is current now.")
    first = page.locator(".timeline > li").first
    expect(first).to_contain_text("put back as in version 3, after it was deleted")
    page = dan.go(f"/workflows/{FLOW}/versions/1")
    dan.look(f"version-{size}")
    assert fits(page)
    page.get_by_role("link", name="Copy to a new workflow").click()
    dan.look(f"copy-{size}")
    dan.check()
    assert fits(page)
    page.get_by_label("Name").fill("Intake 2")
    page.get_by_role("button", name="Copy version 1").click()
    expect(page.locator("h1")).to_have_text("Intake 2")
    page = dan.go(f"/workflows/{FLOW}/versions/2")
    page.get_by_role("link", name="Publish", exact=True).click()
    dan.look(f"publish-{size}")
    dan.check()
    assert fits(page)
    page.get_by_label("Why?").fill("tested")
    page.get_by_role("button", name="Publish version 2").click()
    expect(page.get_by_role("heading", name="Version 2 published")).to_be_visible()
    dan.look(f"published-{size}")
    expect(dan.go("/workflows").locator(".list")).to_contain_text("version 2 published")
    expect(dan.go(f"/workflows/{FLOW}").locator(".timeline > li").nth(2)).to_contain_text(
        "published"
    )
    page = dan.go(f"/workflows/{FLOW}/publish/2")
    page.get_by_label("Why?").fill("not yet")
    page.get_by_role("button", name="Unpublish version 2").click()
    expect(page.get_by_role("link", name="Publish", exact=True)).to_be_visible()
    page = dan.go("/activity")
    expect(page.locator(".event").first).to_contain_text("unpublished a version")
    expect(page.locator(".event").nth(3)).to_contain_text("put back a deleted workflow")
