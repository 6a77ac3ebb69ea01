"""Real workflows on the canvas, measured in a real browser, and long texts compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from psycopg.types.json import Jsonb

from pgaudit_wf import request_context
from pgaudit_wf.web.text_diff import compare
from support.web_browser import Visits
from support.web_world import World, person

HISTORIES = Path(__file__).parent / "data" / "histories.jsonl"
SIZES = ((1280, 900), (768, 1024), (390, 844))

MEASURE = """() => {
  const box = document.querySelector('.drawing').getBoundingClientRect();
  const found = {nodes: 0, outside: [], overflowing: [], changed: 0, smallest: 99};
  for (const node of document.querySelectorAll('.node')) {
    const at = node.querySelector('rect').getBoundingClientRect();
    const wide = Math.min(at.right, box.right) - Math.max(at.left, box.left);
    const high = Math.min(at.bottom, box.bottom) - Math.max(at.top, box.top);
    const name = node.querySelector('title').textContent;
    found.nodes += 1;
    if (Math.max(wide, 0) * Math.max(high, 0) < 0.9 * at.width * at.height)
      found.outside.push(name);
    for (const text of node.querySelectorAll('text')) {
      const here = text.getBoundingClientRect();
      if (here.left < at.left || here.right > at.right) found.overflowing.push(name);
    }
    if (node.matches('.add, .change, .remove')) {
      found.changed += 1;
      const label = node.querySelector('.label');
      const size = parseFloat(getComputedStyle(label).fontSize) * label.getScreenCTM().a;
      found.smallest = Math.min(found.smallest, size);
    }
  }
  return found;
}"""
SCALE = "document.querySelector('.view').getScreenCTM().a"
PLACE = (
    "(() => { const at = document.querySelector('.view').getScreenCTM(); return [at.e, at.f] })()"
)


def save(world: World, name: str, versions: list[dict[str, Any]]) -> str:
    flow = ""
    for version in versions:
        graph = [Jsonb(version["nodes"]), Jsonb(version["edges"])]
        with request_context(world.conn, **person("ana", "req_real")):
            if flow:
                world.conn.execute(
                    "update workflow set nodes = %s, edges = %s where id = %s", [*graph, flow]
                )
                continue
            row = world.conn.execute(
                "insert into workflow (id, org_id, name, nodes, edges) values"
                " (gen_random_uuid(), 'o_acme', %s, %s, %s) returning id::text",
                [name, *graph],
            ).fetchone()
            assert row
            flow = row[0]
    return flow


def test_every_node_of_real_workflows_is_seen_and_what_changed_can_be_read(
    visit: Visits, world: World
) -> None:
    ana = visit("ana")
    changed = 0
    for line in HISTORIES.read_text().splitlines():
        history = json.loads(line)
        flow = save(world, history["workflow"], history["versions"])
        row = world.conn.execute("select pgaudit_wf._newest_version(%s)", [flow]).fetchone()
        assert row
        count = row[0]
        for path in (f"versions/{count}", f"compare?from=1&to={count}"):
            page = ana.go(f"/workflows/{flow}/{path}")
            for number, (width, height) in enumerate(SIZES):
                page.emulate_media(color_scheme="dark" if number % 2 else "light")
                page.set_viewport_size({"width": width, "height": height})
                page.evaluate("new Promise(done => setTimeout(done, 50))")
                seen = page.evaluate(MEASURE)
                assert seen["nodes"]
                assert (seen["outside"], seen["overflowing"]) == ([], []), (path, width)
                changed += seen["changed"]
                if seen["changed"]:
                    assert seen["smallest"] >= 11, (history["workflow"], width)
        page = ana.go(f"/workflows/{flow}")
        lines = page.locator(".timeline > li").evaluate_all(
            "found => found.map(item => item.getBoundingClientRect().height / 24)"
        )
        # Five lines, and the space to the next.
        assert max(lines) < 6.1
        ana.look(f"real-{history['workflow']}")
    assert changed > 20
    ana.check()


def test_two_hundred_nodes_zoom_and_move_smoothly(visit: Visits, world: World) -> None:
    nodes = [
        {"id": f"n{number}", "type": "action", "position": {"x": 400 * (number % 20),
         "y": 300 * (number // 20)}, "data": {"label": f"😀 A rather long name of step {number}"}}
        for number in range(200)
    ]  # fmt: skip
    edges = [
        {"id": f"e{n}", "source": f"n{n}", "target": f"n{n + 1}"} for n in range(len(nodes) - 1)
    ]
    later = [dict(node) for node in nodes]
    later[150] = {**nodes[150], "data": {"label": "Changed"}}
    later[3] = {**nodes[3], "position": {"x": 0, "y": 5000}}
    flow = save(
        world, "Large", [{"nodes": nodes, "edges": edges}, {"nodes": later, "edges": edges}]
    )
    ana = visit("ana", has_touch=True)
    page = ana.go(f"/workflows/{flow}/versions/2")
    # What changed comes first.
    assert page.locator(".node.change").evaluate(
        "node => { const box = document.querySelector('.drawing').getBoundingClientRect();"
        " const at = node.getBoundingClientRect();"
        " return at.top >= box.top && at.bottom <= box.bottom }"
    )
    expect(page.locator(".node.move")).to_have_count(1)
    assert page.locator(".node .label").first.text_content() != "😀 A rather long name of step 0"
    assert str(page.locator(".node .label").first.text_content()).endswith("…")
    box = page.locator(".drawing").bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + 100
    page.mouse.move(x, y)
    scale = page.evaluate(SCALE)
    page.mouse.wheel(0, -200)
    page.wait_for_function(f"{SCALE} > {scale}")
    scale, place = page.evaluate(SCALE), page.evaluate(PLACE)
    page.mouse.down()
    page.mouse.move(x - 80, y - 40, steps=4)
    page.mouse.up()
    moved = page.evaluate(PLACE)
    assert (round(moved[0] - place[0]), round(moved[1] - place[1])) == (-80, -40)
    assert page.locator("#node").is_hidden()
    page.locator(".drawing").focus()
    for key, condition in (("-", "<"), ("+", "==")):
        page.keyboard.press(key)
        assert eval(f"round({page.evaluate(SCALE)}, 6) {condition} round({scale}, 6)")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(PLACE) != moved
    page.keyboard.press("0")
    assert page.evaluate(MEASURE)["outside"] == []
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="As in the editor").click()
    page.get_by_role("button", name="Next change").click()
    expect(page.locator("a:focus .node.move, a:focus .node.change")).to_be_visible()
    touch(page, x, y)
    # A frame of a drag, painted.
    took = page.evaluate(
        """async () => {
          const box = document.querySelector('.drawing');
          const send = (type, x) => box.dispatchEvent(new PointerEvent(
            type, {pointerId: 1, clientX: x, clientY: 300, bubbles: true, button: 0}));
          box.setPointerCapture = () => {};
          send('pointerdown', 300);
          const began = performance.now();
          for (let x = 300; x < 330; x++) {
            send('pointermove', x);
            await new Promise(requestAnimationFrame);
          }
          return (performance.now() - began) / 30;
        }"""
    )
    assert took < 120
    ana.check()


def touch(page: Page, x: float, y: float) -> None:
    """Two fingers that move apart."""
    scale = page.evaluate(SCALE)
    client = page.context.new_cdp_session(page)
    for kind, apart in (("Start", 40), ("Move", 60), ("Move", 90)):
        points = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        client.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function(f"{SCALE} > {scale}")


def test_a_long_text_is_compared_by_word_or_line() -> None:
    prose = "You answer questions of customers about their invoices. " * 4
    found = compare("prompt", prose + "Be short.", prose + "Be friendly.")
    assert [(part.tone, part.text) for part in found.parts][-4:] == [
        ("", "s of customers about their invoices. Be "), ("remove", "short"),
        ("add", "friendly"), ("", "."),
    ]  # fmt: skip
    assert (found.before, found.after, found.changes) == ("short", "friendly", 1)
    long = {"a": 1, "items": [*range(30)], "z": "end of it"}
    found = compare("body", json.dumps(long), json.dumps({**long, "z": "the end"}))
    assert [(part.tone, part.text) for part in found.parts if part.tone] == [
        ("gap", "32 lines"), ("remove", '  "z": "end of it"'), ("add", '  "z": "the end"'),
    ]  # fmt: skip
    assert found.by_line
    assert compare("url", "https://a", "https://b").parts == ()
    for before, after in (
        ("", "x" * 99), ("a\nb", ""), ("", ""), ("é" * 99, "e\u0301" * 99),
        ("x" * 10_000_000, "y" * 10_000_000), ("{" * 500, "[" * 500),
    ):  # fmt: skip
        found = compare("any", before, after)
        whole = "".join(part.text for part in found.parts if part.tone == "remove")
        assert found.is_cut or not found.parts or whole in before
        assert found.size < 100_000
