"""The page of an API key, and its route: as owner, admin, member and stranger."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect
from starlette.requests import Request
from starlette.testclient import TestClient

from pgaudit_wf import request_context
from pgaudit_wf.trail.statement import Read
from pgaudit_wf.web import Principal
from pgaudit_wf.web.database import Session
from support.web_browser import Visits, serve
from support.web_world import FLOW, SCRIPT, SECRET, World, mounted_app, person, sync_app


def watch(world: World) -> None:
    world.conn.execute("select pgaudit_wf._follow_api_keys(), pgaudit_wf._check_api_keys()")


@pytest.fixture
def world(world: World) -> World:
    """Keys that were used, one that expires soon and one of another organization."""
    conn = world.conn
    conn.execute(
        "update api_key set expires_at = now() + interval '5 days', last_used_at = now()"
        " where id = 'k_formula'"
    )
    for request, ip in (("r1", "198.51.100.7"), ("r2", "198.51.100.8"), ("r3", "2001:db8:7::1")):
        who = person("ana", request, auth_method="api_key", api_key_id="k_formula", ip=ip)
        with request_context(conn, **who):
            conn.execute("update workflow set description = %s where id = %s", [request, FLOW])
            if request == "r2":
                conn.execute(
                    "update workflow set nodes = nodes - 1, edges = '[]' where id = %s", [FLOW]
                )
            if request != "r3":
                conn.execute(
                    "insert into workflow_execution (workflow_id, org_id) values (%s, 'o_acme')",
                    [FLOW],
                )
    conn.execute(
        "select pgaudit_wf._report_leaked_key("
        "'scanner', 'https://git.example/a', prefix => 'kh_f0f0…')"
    )
    watch(world)
    return world


@pytest.fixture
def site(world: World) -> Iterator[str]:
    """As a host would have it that can revoke keys."""

    def revoke(request: Request, who: Principal, api_key_id: str, reason: str) -> None:
        assert (who.org_id, reason) == ("o_acme", "the vendor lost it")
        with request_context(world.conn):
            world.conn.execute("update api_key set revoked_at = now() where id = %s", [api_key_id])

    with serve(mounted_app(world, revoke_key=revoke)) as address:
        yield f"{address}/audit"


def test_an_owner_looks_at_a_key_and_revokes_it(visit: Visits, world: World) -> None:
    ana = visit("ana")
    page = ana.go("/activity")
    page.get_by_role("link", name="API key kh_f0f0…").first.click()
    expect(page).to_have_url(f"{ana.site}/api-keys/k_formula")
    expect(page.get_by_role("heading", level=1)).to_have_text("API key kh_f0f0… active")
    facts = page.locator(".facts")
    expect(facts).to_contain_text("by Ana Ferreira")
    expect(facts).to_contain_text("within 30 days")
    expect(page.locator(".note.bad")).to_contain_text("found in public just now")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    assert [" ".join(text.split()[:2]) for text in rows.all_inner_texts()] == [
        "2001:db8:7::/48 1", "198.51.100.0/24 3",
    ]  # fmt: skip
    ran = page.locator(".list li")
    expect(ran).to_have_count(2)
    expect(ran.first).to_contain_text(SCRIPT)
    expect(ran.first.get_by_role("link", name=re.compile("^Version"))).to_be_visible()
    expect(page.locator(".event")).to_have_count(4)
    assert SECRET not in page.content()
    ana.check()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            ana.look(f"key-{width}-{scheme}")
            # Nothing hangs out to the right.
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            ana.check()

    page.get_by_role("link", name="Revoke").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Revoke API key kh_f0f0…?")
    ana.look("key-revoke")
    ana.check()
    page.get_by_label("Why?").fill("the vendor lost it")
    page.get_by_role("button", name="Revoke it").click()
    expect(page).to_have_url(f"{ana.site}/api-keys/k_formula")
    expect(page.get_by_role("heading", level=1)).to_have_text("API key kh_f0f0… revoked")
    expect(page.get_by_role("link", name="Revoke")).to_have_count(0)
    row = world.conn.execute(
        "select actor_id, org_id, metadata ->> 'reason' from pgaudit_wf.security_audit_log"
        " where action = 'org_api_key.revoked' and resource_id = 'k_formula'"
    ).fetchone()
    assert row == ("u_ana", "o_acme", "the vendor lost it")
    assert ana.go("/api-keys/k_formula/revoke").locator(".status").inner_text() == "409"

    ana.go("/api-keys")
    page.get_by_role("link", name="kh_f0f0…").click()
    expect(page).to_have_url(f"{ana.site}/api-keys/k_formula")


def test_a_key_is_for_the_owners_and_admins_of_its_organization(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    run = Session.run

    async def count(self: Session, read: Read[Any]) -> Any:  # noqa: ANN401 - as it returns
        asked.append(read)
        return await run(self, read)

    monkeypatch.setattr(Session, "run", count)
    with TestClient(sync_app(world), follow_redirects=False) as client:

        def get(name: str | None, key: str = "k_formula") -> tuple[int, int]:
            headers = {"x-test-user": name} if name else {}
            pages = [f"/api-keys/{key}", f"/api/api-keys/{key}/details"]
            found = [client.get(path, headers=headers) for path in pages]
            for answer in found:
                assert SECRET not in answer.text
                if answer.status_code != 200:
                    assert "f0f0" not in answer.text
            return found[0].status_code, found[1].status_code

        assert get("ana") == (200, 200)
        # Two for the page, one for the route.
        assert len(asked) == 3
        assert get("dan") == (200, 200)
        assert get("bo") == (403, 403)
        assert get(None) == (401, 401)
        assert get("chidi") == (404, 404)
        # The host says that this member is the owner; the database does not.
        assert get("liar") == (404, 404)
        assert get("ana", "k_globex") == (404, 404)
        assert get("ana", "nobody") == (404, 404)
        assert get("ana", "a%00b") == (422, 422)

        key = client.get("/api/api-keys/k_formula/details", headers={"x-test-user": "dan"}).json()
        assert (key["status"], key["label"], key["uses"]) == ("active", "kh_f0f0…", 4)
        assert (key["created_by_name"], key["owner_id"]) == ("Ana Ferreira", "u_ana")
        assert [use["uses"] for use in key["networks"]] == [1, 3]
        assert [(ran["workflow_id"], ran["runs"]) for ran in key["ran"]] == [(FLOW, 1)] * 2
        # A run's time is its transaction's beginning, before the version that this made.
        assert {ran["version"] for ran in key["ran"]} == {3, 6}
        assert not any("hash" in name for name in key)

        # A key that is gone from its table is still there for the log.
        world.conn.execute("delete from api_key where id = 'k_ci'")
        key = client.get("/api/api-keys/k_ci/details", headers={"x-test-user": "ana"}).json()
        assert (key["status"], key["is_known"], key["expires_at"]) == ("deleted", False, None)

        # Without a hook there is nothing to press, and nothing to post to.
        ana = {"x-test-user": "ana"}
        assert "revoke" not in client.get("/api-keys/k_formula", headers=ana).text
        assert client.get("/api-keys/k_formula/revoke", headers=ana).status_code == 501
        assert client.post("/api-keys/k_formula/revoke", headers=ana).status_code == 403
