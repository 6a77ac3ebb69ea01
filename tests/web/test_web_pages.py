"""The pages in a real browser: the journeys of owner, admin, member and stranger."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from pgaudit_wf import audit_trail
from support.web_browser import Visits
from support.web_world import FLOW, FORMULA, OTHER_FLOW, SCRIPT, World


def test_an_owner_reads_filters_and_follows_the_activity(visit: Visits, world: World) -> None:
    ana = visit("ana")
    page = ana.go("/")
    expect(page).to_have_url(f"{ana.site}/activity")
    revoked = page.locator(".event.remove", has_text="revoked an org API key")
    expect(revoked.locator(".sentence")).to_have_text("Dan revoked an org API key kh_9f2a…")
    expect(revoked.locator(".meta")).to_contain_text("203.0.113.9, PT")
    expect(revoked.locator("time")).to_have_text("just now")
    assert page.locator(".event").count() > 8
    assert "Globex" not in page.content()
    ana.look("activity-light")
    ana.check()

    page.get_by_role("link", name="API keys").last.click()
    expect(page.locator(".event")).to_have_count(3)
    page.get_by_role("link", name="Denied").click()
    expect(page.locator(".event")).to_have_count(1)
    expect(page.locator(".event")).to_contain_text("could not sign in")
    page.get_by_role("link", name="All", exact=True).click()
    page.get_by_label("Search the activity").fill("vendor")
    page.keyboard.press("Enter")
    expect(page.locator(".event")).to_have_count(2)
    ana.check()

    ana.go("/activity")
    page.get_by_text("More filters").click()
    page.get_by_label("Network").fill("203.0.113.0/24")
    page.get_by_label("Changed field").fill("revoked_at")
    page.keyboard.press("Enter")
    expect(page.locator(".event")).to_have_count(1)
    expect(page.locator(".narrowed")).to_contain_text(
        "from 203.0.113.0/24, that changed revoked_at"
    )
    expect(page.get_by_label("Network")).to_have_value("203.0.113.0/24")
    ana.check()
    ana.go("/activity?api_key_id=nobody")
    expect(page.locator(".event")).to_have_count(0)
    ana.go("/activity")
    everything = page.locator(".event").count()
    page.get_by_text("More filters").click()
    page.get_by_label("Without action").fill("org_api_key.* workflow.*")
    page.keyboard.press("Enter")
    expect(page.locator(".narrowed")).to_contain_text("without action org_api_key.* or workflow.*")
    rest = page.locator(".event").count()
    assert 0 < rest < everything
    page.get_by_label("Without action").fill("")
    page.get_by_label("Action", exact=True).fill("org_api_key.* workflow.*")
    page.keyboard.press("Enter")
    expect(page.locator(".event")).to_have_count(everything - rest)

    page.get_by_role("link", name="Activity").first.click()
    world.rename("Arrived while looking")
    expect(page.locator(".event.new")).to_contain_text("Arrived while looking")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    ana.check()


def test_older_events_come_by_scrolling_and_without_scripts(visit: Visits, world: World) -> None:
    world.conn.execute(
        "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
        " select 'k_' || n, 'o_acme', 'u_ana', 'n', 'kh_' || n, 'never-to-be-logged-' || n"
        " from generate_series(1, 120) as n"
    )
    ana = visit("ana")
    page = ana.go("/activity")
    expect(page.locator(".event")).to_have_count(50)
    for expected in (100, 131):
        page.keyboard.press("End")
        page.mouse.wheel(0, 100_000)
        expect(page.locator(".event")).to_have_count(expected)
    ids = page.locator(".event").evaluate_all("found => found.map(item => item.id)")
    assert len(set(ids)) == len(ids)

    plain = visit("ana", java_script_enabled=False)
    page = plain.go("/activity")
    seen: list[str] = []
    while True:
        seen += [str(item.get_attribute("id")) for item in page.locator(".event").all()]
        older = page.get_by_role("link", name="Older events")
        if not older.count():
            break
        older.click()
    assert seen == ids


def test_an_event_shows_its_diff_and_what_else_the_request_did(visit: Visits) -> None:
    ana = visit("ana")
    page = ana.go("/activity")
    page.get_by_role("link", name=re.compile("Dan revoked an org API key")).click()
    row = page.locator("table.diff tr", has_text="revoked_at")
    expect(row.locator("del")).to_have_text("empty")
    expect(row.locator("ins")).to_contain_text("20")
    expect(page.locator("main")).to_contain_text("the vendor changed")
    related = page.locator(".event")
    expect(related).to_have_count(1)
    expect(related).to_contain_text("edited a workflow")
    ana.look("event-light")
    ana.check()
    related.locator(".sentence").click()
    expect(page.locator(".changes")).to_contain_text(f"renamed Intake to {SCRIPT}")
    page.get_by_role("link", name="Version 3", exact=True).click()
    expect(page.get_by_role("heading", name="Version 3 current")).to_be_visible()


def test_names_are_text_whatever_they_are(visit: Visits) -> None:
    ana = visit("ana")
    page = ana.go("/workflows")
    expect(page.get_by_role("link", name=SCRIPT)).to_be_visible()
    for path in (
        "/activity", f"/workflows/{FLOW}", f"/workflows/{FLOW}/versions/2",
        f"/workflows/{FLOW}/versions/3", f"/workflows/{FLOW}/compare?from=1&to=3",
        f"/workflows/{FLOW}/restore/1", "/activity?search=%3Cscript%3Ealert(1)%3C/script%3E",
        "/activity?search=%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", "/runs",
    ):  # fmt: skip
        page = ana.go(path)
        assert "owned" not in page.title().replace(SCRIPT, "")
        assert page.locator("main script, main img").count() == 0
    page = ana.go("/activity?resource_id=k_formula")
    page.locator(".sentence").click()
    expect(page.locator("table.diff")).to_contain_text(FORMULA)
    assert page.locator("a[href*='evil']").count() == 0
    assert ana.complaints == []


def test_an_admin_looks_through_the_versions_and_restores_one(visit: Visits, world: World) -> None:
    dan = visit("dan")
    page = dan.go(f"/workflows/{FLOW}")
    versions = page.locator(".timeline > li")
    expect(versions).to_have_count(3)
    expect(versions.first).to_contain_text("current")
    expect(versions.first.locator(".changes")).to_contain_text(f"renamed Intake to {SCRIPT}")
    second = versions.nth(1)
    expect(second).to_contain_text("Ana Ferreira")
    expect(second).to_contain_text("with API key k_ci")
    expect(second.locator(".changes .add").first).to_contain_text("added node")
    expect(second.locator(".changes .remove").first).to_contain_text("removed node Old step")
    expect(second.locator(".changes .change")).to_contain_text("renamed node OCR to Reader")
    expect(second.locator(".changes .change")).to_contain_text("https://a → https://b")
    dan.look("history-light")
    dan.check()

    page.get_by_role("link", name="View version 2 on canvas").click()
    expect(page.locator("svg .node")).to_have_count(4)
    expect(page.locator("svg .node.add")).to_contain_text("<script>")
    expect(page.locator("svg .node.change")).to_contain_text("Reader")
    expect(page.locator("svg .node.remove")).to_contain_text("Old step")
    expect(page.locator("svg .edge.add")).to_have_count(1)
    expect(page.locator("svg .edge.remove")).to_have_count(1)
    dan.look("canvas-light")
    dan.check()
    page.get_by_role("link", name="Old step, HTTP Request, removed").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#node")).to_contain_text("https://o")
    page.get_by_role("link", name="Reader, HTTP Request, changed").click()
    expect(page.locator("#node h2")).to_be_focused()
    expect(page.locator("#node .changes")).to_contain_text("endpoint: https://a → https://b")
    dan.check()
    page.get_by_role("link", name="Versions that changed this node").click()
    expect(page.locator(".timeline > li")).to_have_count(2)
    page.get_by_role("link", name="Show all versions").click()

    page.get_by_label("From").fill("1")
    page.get_by_label("To", exact=True).fill("3")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".changes")).to_contain_text(f"renamed Intake to {SCRIPT}")
    expect(page.locator("svg .node.remove")).to_contain_text("Old step")
    dan.check()
    page.go_back()

    page.get_by_role("link", name="Restore version 1").click()
    expect(page.get_by_role("heading", name="Restore version 1?")).to_be_visible()
    expect(page.locator(".changes")).to_contain_text(f"renamed {SCRIPT} to Intake")
    dan.look("restore-light")
    dan.check()
    page.get_by_label("Why?").fill("as before the audit")
    page.get_by_role("button", name="Restore version 1").click()
    expect(page.get_by_role("status")).to_have_text("Version 4 is current now.")
    expect(page.locator("h1")).to_have_text("Intake")
    expect(page.locator(".timeline > li").first).to_contain_text("restored from 1")
    row = world.conn.execute(
        "select actor_id, source from pgaudit_wf.workflow_timeline where is_current"
        " and workflow_id = %s",
        [FLOW],
    ).fetchone()
    assert row == ("u_dan", "restore")
    assert audit_trail(world.conn, page_size=1).entries[0].metadata["reason"] == (
        "as before the audit"
    )

    page = dan.go(f"/workflows/{FLOW}/versions/2")
    page.get_by_label("Name", exact=True).fill("as delivered")
    page.get_by_label("Note").fill("what the customer signed")
    page.get_by_role("button", name="Save name").click()
    expect(page.locator("main")).to_contain_text("as delivered: what the customer signed")
    dan.look("named-light")
    dan.check()
    page = dan.go("/activity")
    expect(page.locator(".event").first).to_contain_text("named a version of a workflow")


def test_a_form_of_another_site_restores_nothing(visit: Visits, world: World) -> None:
    ana = visit("ana")
    page = ana.go(f"/workflows/{FLOW}/restore/1")
    page.locator("input[name=csrf_token]").evaluate("field => { field.value = 'x'.repeat(43); }")
    page.get_by_label("Why?").fill("no reason")
    page.get_by_role("button", name="Restore version 1").click()
    expect(page.get_by_role("heading", name="Forbidden")).to_be_visible()
    ana.check()
    page.goto("about:blank")
    page.set_content(
        f"<form method=post action='{ana.site}/workflows/{FLOW}/restore/1'>"
        "<input name=csrf_token value=x><button>Win</button></form>"
    )
    page.get_by_role("button", name="Win").click()
    page.wait_for_url(f"{ana.site}/**")
    assert "Version 4" not in page.content()
    newest = world.conn.execute("select pgaudit_wf._newest_version(%s)", [FLOW]).fetchone()
    assert newest == (3,)


def test_keys_and_runs(visit: Visits, world: World) -> None:
    ana = visit("ana")
    page = ana.go("/api-keys")
    key = page.locator(".key", has_text="kh_9f2a…")
    expect(key).to_contain_text("revoked just now by Dan")
    expect(key).to_contain_text("created just now by Ana Ferreira")
    ana.look("keys-light")
    ana.check()
    key.get_by_role("link", name="2 events").click()
    expect(page.locator(".event")).to_have_count(2)

    page = ana.go("/runs")
    expect(page.locator(".list li")).to_contain_text("org api key kh_9f2a…")
    ana.look("runs-light")
    ana.check()
    page.get_by_role("link", name="Version 2 of").click()
    expect(page.get_by_role("heading", name="Version 2", exact=True)).to_be_visible()


@pytest.mark.parametrize(("name", "heading"), [("bo", "Forbidden"), (None, "Unauthorized")])
def test_a_member_and_a_stranger_see_nothing(visit: Visits, name: str | None, heading: str) -> None:
    somebody = visit(name)
    for path in (
        "/activity",
        "/workflows",
        f"/workflows/{FLOW}",
        "/api-keys",
        "/runs",
        "/integrity",
    ):
        page = somebody.go(path)
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        assert "Dan" not in page.content()
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px"
    somebody.check()


def test_the_owner_of_another_organization_finds_only_his_own(visit: Visits) -> None:
    chidi = visit("chidi")
    page = chidi.go("/activity")
    expect(page.locator(".event").first).to_be_visible()
    assert "Ana" not in page.content()
    for path in (
        f"/workflows/{FLOW}",
        f"/workflows/{FLOW}/versions/1",
        f"/workflows/{FLOW}/restore/1",
    ):
        expect(chidi.go(path).get_by_role("heading", name="Not Found")).to_be_visible()
    expect(chidi.go(f"/workflows/{OTHER_FLOW}").locator("h1")).to_have_text("Price watch")
    chidi.check()


@pytest.mark.parametrize(
    ("look", "options"),
    [
        ("dark", {"color_scheme": "dark"}),
        (
            "phone",
            {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
        ),
    ],
)
def test_in_the_dark_and_on_a_phone(
    visit: Visits, world: World, look: str, options: dict[str, object]
) -> None:
    ana = visit("ana", **options)
    for name, path in (
        ("activity", "/activity"), ("history", f"/workflows/{FLOW}"),
        ("canvas", f"/workflows/{FLOW}/versions/2"), ("keys", "/api-keys"), ("runs", "/runs"),
        ("restore", f"/workflows/{FLOW}/restore/1"), ("integrity", "/integrity"),
    ):  # fmt: skip
        page = ana.go(path)
        expect(page.locator("h1")).to_be_visible()
        too_wide = page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        assert not too_wide, path
        ana.look(f"{name}-{look}")
        ana.check()
