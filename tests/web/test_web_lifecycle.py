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
    page = dan.go("/activity")
    expect(page.locator(".event").nth(1)).to_contain_text("put back a deleted workflow")
