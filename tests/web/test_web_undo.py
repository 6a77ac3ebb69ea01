"""Undo on the pages: the plan, its conflicts, the run, and who may."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient

from pgaudit_wf import audit_trail, request_context, undo_plan, undone_by
from pgaudit_wf.web.undo_pages import KINDS, OVERWRITABLE
from support.web_browser import Visit, Visits
from support.web_world import FLOW, OTHER_FLOW, SCRIPT, World, mounted_app, person, sync_app


def names(world: World) -> list[str]:
    found = world.conn.execute("select name from workflow order by id").fetchall()
    return [name for (name,) in found]


def event_of(world: World, request: str, action: str) -> int:
    [entry] = audit_trail(world.conn, correlation_id=request, action=action).entries
    return entry.id


def no_wider_than_the_window(visit: Visit) -> None:
    assert not visit.page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )


def test_an_owner_undoes_a_request_after_seeing_the_plan(visit: Visits, world: World) -> None:
    before = names(world)
    world.rename("Renamed by mistake")
    with request_context(world.conn, **person("dan", "req_later")):
        world.conn.execute("update workflow set name = 'Later' where id = %s", [FLOW])
    ana = visit("ana", viewport={"width": 1280, "height": 800})
    page = ana.go("/activity?correlation_id=req_rename")
    page.get_by_role("link", name="Undo this request…").click()
    expect(page.locator("h1")).to_have_text("Undo request req_rename?")
    row = page.locator(".plan tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("name changed since: event")
    expect(row).to_contain_text("by u_dan")
    expect(page.get_by_role("button", name=re.compile("back"))).to_have_count(0)
    ana.look("undo-conflict-1280")
    ana.check()
    page.get_by_label("changed since").select_option("overwrite")
    page.get_by_role("button", name="Plan again").click()
    expect(row).to_contain_text(f"name {SCRIPT}")
    ana.look("undo-ready-1280")
    ana.check()
    page.get_by_label("Why?").fill("a slip")
    page.get_by_role("button", name="Put 1 row back").click()
    expect(page.get_by_role("status").first).to_contain_text("1 row put back")
    expect(page.locator(".event")).to_have_count(1)
    expect(page.locator(".event .meta")).to_contain_text("an undo")
    assert names(world) == before
    [made] = audit_trail(world.conn, page_size=1).entries
    assert (made.actor_id, made.org_id, made.metadata["reason"]) == ("u_ana", "o_acme", "a slip")
    ana.check()

    page.locator(".event .sentence").click()
    page.get_by_role("link", name=f"event {event_of(world, 'req_rename', '*')}").click()
    expect(page.locator(".facts")).to_contain_text(f"by event {made.id} · Ana Ferreira")
    ana.look("undone-event-1280")
    ana.check()
    page.get_by_role("link", name=f"event {made.id}").click()
    expect(page.locator(".facts")).to_contain_text("Undoes")
    ana.go("/activity")
    undone = page.locator(".event", has_text="undone by Ana Ferreira")
    expect(undone).to_have_count(1)
    # An undo is undone like anything else.
    undone.get_by_role("link", name="undone").click()
    page.get_by_role("link", name="Undo this event…").click()
    page.get_by_label("Why?").fill("it was right")
    page.get_by_role("button", name="Put 1 row back").click()
    expect(page.get_by_role("status").first).to_contain_text("1 row put back")
    assert names(world) == ["Later", before[1]]
    assert undone_by(world.conn, (made,))[made.id].actor == "Ana Ferreira"


def test_what_has_changed_since_the_plan_was_shown_is_not_undone(
    visit: Visits, world: World
) -> None:
    world.rename("Renamed by mistake")
    dan = visit("dan", viewport={"width": 390, "height": 800}, is_mobile=True, color_scheme="dark")
    number = event_of(world, "req_rename", "*")
    page = dan.go(f"/undo?event_id={number}")
    expect(page.locator("h1")).to_have_text(f"Undo event {number}?")
    no_wider_than_the_window(dan)
    dan.look("undo-ready-390-dark")
    dan.check()
    with request_context(world.conn, **person("ana", "req_later")):
        world.conn.execute("update workflow set name = 'Meanwhile' where id = %s", [FLOW])
    page.get_by_label("Why?").fill("a slip")
    page.get_by_role("button", name="Put 1 row back").click()
    expect(page.get_by_role("heading", name="Conflict")).to_be_visible()
    expect(page.locator("main")).to_contain_text("has changed since the plan was shown")
    page = dan.go(f"/undo?event_id={number}&on_changed=skip")
    expect(page.locator(".plan tbody tr")).to_contain_text("skipped")
    no_wider_than_the_window(dan)
    dan.look("undo-skipped-390-dark")
    dan.check()
    page = dan.go(f"/undo?event_id={number}&on_changed=overwrite")
    world.conn.execute("update workflow set name = 'Again' where id = %s", [FLOW])
    page.get_by_label("Why?").fill("a slip")
    page.get_by_role("button", name="Put 1 row back").click()
    expect(page.locator("main")).to_contain_text("has changed since the plan was shown")
    assert names(world)[0] == "Again"


def test_nobody_else_undoes(visit: Visits, world: World) -> None:
    world.rename("Renamed by mistake")
    number = event_of(world, "req_rename", "*")
    with request_context(world.conn, **person("ana", "req_rename")):
        # The same request in another organization.
        world.conn.execute(
            "update workflow set name = 'Mine', description = 'x' where id = %s", [OTHER_FLOW]
        )
    after = names(world)
    for name, heading in (("bo", "Forbidden"), ("liar", "Forbidden"), (None, "Unauthorized")):
        page = visit(name).go(f"/undo?event_id={number}")
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    chidi = visit("chidi")
    page = chidi.go(f"/undo?event_id={number}")
    expect(page.locator(".none")).to_contain_text("There is nothing to undo")
    assert "Renamed by mistake" not in page.content()
    chidi.check()
    expect(
        chidi.go(f"/activity/events/{number}").get_by_role("heading", name="Not Found")
    ).to_be_visible()
    # Of the request, only what happened in the own organization.
    page = chidi.go("/undo?correlation_id=req_rename")
    expect(page.locator(".plan tbody tr")).to_have_count(1)
    expect(page.locator(".plan")).to_contain_text(OTHER_FLOW)
    page.get_by_label("Why?").fill("not ours")
    page.get_by_role("button", name="Put 1 row back").click()
    expect(page.get_by_role("status").first).to_contain_text("1 row put back")
    assert names(world) == [after[0], "Price watch"]


def test_a_form_that_is_not_ours_or_says_too_little_undoes_nothing(world: World) -> None:
    world.rename("Renamed by mistake")
    number = str(event_of(world, "req_rename", "*"))
    before = names(world)
    who = {"x-test-user": "ana"}
    with TestClient(sync_app(world), headers=who, follow_redirects=False) as client:
        plan = client.get("/undo", params={"event_id": number})
        found = dict(re.findall(r'name="(csrf_token|digest)" value="([^"]+)"', plan.text))
        form = {**found, "event_id": number, "reason": "a slip"}
        for change, status in (
            ({"csrf_token": "x" * 43}, 403),
            ({"reason": " "}, 422),
            ({"digest": "0" * 64}, 409),
            ({"event_id": "1x"}, 422),
            ({"event_id": str(2**63)}, 422),
            ({"event_id": "\u0663"}, 422),
            ({"correlation_id": "r"}, 422),
            ({"event_id": ""}, 422),
            ({"on_changed": "maybe"}, 400),
            ({"on_gone": "overwrite"}, 400),
        ):
            assert client.post("/undo", data=form | change).status_code == status, change
        for site_header in ("cross-site", "same-site"):
            sent = {"sec-fetch-site": site_header}
            assert client.post("/undo", data=form, headers=sent).status_code == 403
            asked = client.get("/undo", params={"event_id": number}, headers=sent)
            assert asked.status_code == 403
        assert names(world) == before
        assert client.post("/undo", data=form).status_code == 303
        assert client.post("/undo", data=form).status_code == 409
        assert "nothing to undo" in client.get("/undo", params={"event_id": number}).text
    assert names(world) == [SCRIPT, before[1]]
    with TestClient(sync_app(world, writable=False), headers=who) as client:
        assert client.get("/undo", params={"event_id": number}).status_code == 501
        assert "Undo this" not in client.get("/activity?correlation_id=req_rename").text


def test_the_login_that_undoes_is_held_to_its_rights_and_the_organization(world: World) -> None:
    for login, status in (
        # It sees every organization's events, and would undo them.
        (world.owner_dsn, 501),
        # The application's own login does not read the log.
        (world.writer_dsn, 403),
        # And this one changes nothing.
        (world.reader_dsn, 403),
    ):
        app = mounted_app(world, undo_dsn=login)
        with TestClient(app, headers={"x-test-user": "ana"}) as client:
            answer = client.get("/audit/undo", params={"correlation_id": "req_5"})
            assert (login, answer.status_code) == (login, status)


def test_every_choice_offered_is_one(world: World) -> None:
    for choice, kinds in (("skip", KINDS.keys()), ("overwrite", OVERWRITABLE)):
        assert undo_plan(world.conn, event_id=1, on_conflict=dict.fromkeys(kinds, choice)) == ()  # type: ignore[arg-type]
    for kind in KINDS.keys() - OVERWRITABLE:
        with pytest.raises(Exception, match="overwrite"):
            undo_plan(world.conn, event_id=1, on_conflict={kind: "overwrite"})
