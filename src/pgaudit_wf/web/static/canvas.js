// Lets people look around in a drawing of a workflow. Where names would be too small to read, nodes
// are arranged anew, in as many columns as the window has room for.
"use strict";

const READABLE = 0.7;
const MARGIN = 12;
// Text is 16 units high.
const LARGEST = 2.5;

class Canvas {
  constructor(root) {
    this.root = root;
    this.box = root.querySelector(".drawing");
    this.svg = this.box.querySelector("svg");
    this.view = this.svg.querySelector(".view");
    [this.width, this.height, this.gapX, this.gapY] = root.dataset.node.split(" ").map(Number);
    this.nodes = [...this.view.querySelectorAll(".node")].map((item) => {
      const [x, y] = item.getAttribute("transform").match(/-?\d+/g).map(Number);
      return { item, drawn: [x, y], x, y, changed: item.matches(".add, .change, .remove") };
    });
    this.edges = [...this.view.querySelectorAll(".edge")].map((item) => {
      const [from, to] = item.dataset.ends.split(" ").map((place) => this.nodes[place]);
      return { item, from, to, drawn: item.getAttribute("d") };
    });
    this.shown = -1;
    this.asDrawn = false;
    this.svg.removeAttribute("viewBox");
    root.classList.add("moves");
    root.querySelector(".tools").hidden = false;
    for (const text of this.view.querySelectorAll(".words text")) shorten(text);
    this.listen();
    this.arrange();
    new ResizeObserver(() => {
      if (this.box.clientWidth !== this.measured) this.arrange();
    }).observe(this.box);
  }

  bounds() {
    const [xs, ys] = [this.nodes.map((node) => node.x), this.nodes.map((node) => node.y)];
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    return {
      left, top, width: Math.max(...xs) + this.width - left, height: Math.max(...ys) + this.height - top,
    };
  }

  // The first view: everything, if it can be read; else what changed first.
  arrange() {
    this.measured = this.box.clientWidth;
    const wide = this.measured - 2 * MARGIN;
    const high = Math.max(window.innerHeight * 0.75, 320) - 2 * MARGIN;
    for (const node of this.nodes) [node.x, node.y] = node.drawn;
    let all = this.bounds();
    const isSmall = Math.min(wide / all.width, high / all.height) < READABLE;
    const layout = this.root.querySelector("[data-do=layout]");
    layout.hidden = !isSmall;
    const wrapped = isSmall && !this.asDrawn;
    if (wrapped) {
      this.wrap(wide);
      all = this.bounds();
    }
    this.draw(wrapped);
    const scale = Math.min(1, wide / all.width);
    // A little taller than the window is better than two ways to scroll.
    const limit = wrapped && all.height * scale <= 1100 ? 1100 : high;
    const row = (this.height + this.gapY) * scale;
    const room = wrapped && all.height * scale > limit
      ? Math.max(Math.floor((limit + this.gapY * scale) / row), 1) * row - this.gapY * scale
      : Math.min(all.height * scale, limit);
    this.box.style.height = `${Math.ceil(room + 2 * MARGIN)}px`;
    this.fit();
    this.smallest = Math.min(this.scale, READABLE) / 2;
    if (wrapped && all.height * scale > limit) {
      const first = this.nodes.filter((node) => node.changed).sort((a, b) => a.y - b.y)[0];
      const y = Math.min(first ? first.y : all.top, all.top + all.height - room / scale);
      this.show(scale, MARGIN - all.left * scale, MARGIN - y * scale);
    } else if (isSmall && !wrapped) {
      this.goTo(this.nodes.find((node) => node.changed) || this.nodes[0], READABLE);
    }
  }

  wrap(wide) {
    const [stepX, stepY] = [this.width + this.gapX, this.height + this.gapY];
    const columns = Math.max(Math.floor((wide / READABLE + this.gapX) / stepX), 1);
    const across = this.root.dataset.across === "true";
    const key = across ? (node) => [node.x, node.y] : (node) => [node.y, node.x];
    [...this.nodes]
      .sort((a, b) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1])
      .forEach((node, place) => {
        node.x = (place % columns) * stepX;
        node.y = Math.floor(place / columns) * stepY;
      });
  }

  draw(wrapped) {
    for (const node of this.nodes) node.item.setAttribute("transform", `translate(${node.x} ${node.y})`);
    for (const edge of this.edges) edge.item.setAttribute("d", wrapped ? this.route(edge) : edge.drawn);
  }

  route({ from, to }) {
    if (Math.abs(to.x - from.x) >= this.width && Math.abs(to.y - from.y) < this.height) {
      const right = to.x > from.x;
      const [x1, x2] = [from.x + (right ? this.width : 0), to.x + (right ? 0 : this.width)];
      const [y1, y2, middle] = [from.y + this.height / 2, to.y + this.height / 2, (x1 + x2) / 2];
      return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
    }
    const down = to.y > from.y;
    const [x1, x2] = [from.x + this.width / 2, to.x + this.width / 2];
    const [y1, y2] = [from.y + (down ? this.height : 0), to.y + (down ? 0 : this.height)];
    const middle = (y1 + y2) / 2;
    return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
  }

  show(scale, x, y) {
    const all = this.bounds();
    // Something always stays in sight.
    const keep = (at, begin, size, room) =>
      Math.min(Math.max(at, 60 - (begin + size) * scale), room - 60 - begin * scale);
    this.scale = scale;
    this.x = keep(x, all.left, all.width, this.box.clientWidth);
    this.y = keep(y, all.top, all.height, this.box.clientHeight);
    this.view.setAttribute("transform", `translate(${this.x} ${this.y}) scale(${scale})`);
    const isWhole = all.width * scale <= this.box.clientWidth && all.height * scale <= this.box.clientHeight;
    // One finger scrolls the page, unless there is something to move into sight.
    this.box.style.touchAction = isWhole ? "pan-y" : "none";
  }

  fit() {
    const all = this.bounds();
    const [wide, high] = [this.box.clientWidth, this.box.clientHeight];
    const scale = Math.min(1, (wide - 2 * MARGIN) / all.width, (high - 2 * MARGIN) / all.height);
    this.show(scale, (wide - all.width * scale) / 2 - all.left * scale, (high - all.height * scale) / 2 - all.top * scale);
  }

  // Returns whether there was anything left to zoom.
  zoom(factor, x = this.box.clientWidth / 2, y = this.box.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.smallest), LARGEST);
    const ratio = scale / this.scale;
    this.show(scale, x - (x - this.x) * ratio, y - (y - this.y) * ratio);
    return ratio !== 1;
  }

  goTo(node, scale = Math.max(this.scale, READABLE)) {
    this.show(
      scale,
      this.box.clientWidth / 2 - (node.x + this.width / 2) * scale,
      this.box.clientHeight / 2 - (node.y + this.height / 2) * scale,
    );
  }

  act(what) {
    if (what === "in") this.zoom(1.25);
    if (what === "out") this.zoom(0.8);
    if (what === "fit") this.fit();
    if (what === "next") {
      const changed = this.nodes.filter((node) => node.item.matches(".add, .change, .remove, .move"));
      this.shown = (this.shown + 1) % changed.length;
      this.goTo(changed[this.shown]);
      changed[this.shown].item.parentElement.focus({ preventScroll: true });
    }
    if (what === "layout") {
      this.asDrawn = !this.asDrawn;
      this.root.querySelector("[data-do=layout]").setAttribute("aria-pressed", String(this.asDrawn));
      this.arrange();
    }
  }

  listen() {
    const keys = {
      "+": () => this.zoom(1.25), "=": () => this.zoom(1.25), "-": () => this.zoom(0.8), 0: () => this.fit(),
      ArrowLeft: () => this.show(this.scale, this.x + 60, this.y),
      ArrowRight: () => this.show(this.scale, this.x - 60, this.y),
      ArrowUp: () => this.show(this.scale, this.x, this.y + 60),
      ArrowDown: () => this.show(this.scale, this.x, this.y - 60),
    };
    this.box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    this.root.querySelector(".tools").addEventListener("click", (event) => this.act(event.target.dataset.do));
    this.box.addEventListener("wheel", (event) => {
      const at = this.box.getBoundingClientRect();
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (sideways) this.show(this.scale, this.x - (event.deltaX || event.deltaY), this.y);
      // At the end of the scale the wheel scrolls the page.
      const used = sideways
        || this.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 20 : 500)), event.clientX - at.left, event.clientY - at.top);
      if (used) event.preventDefault();
    }, { passive: false });
    // To a node that is out of sight, by the keyboard.
    this.box.addEventListener("focusin", (event) => {
      const node = this.nodes.find(({ item }) => item.parentElement === event.target);
      if (!node) return;
      const [at, here] = [this.box.getBoundingClientRect(), node.item.getBoundingClientRect()];
      if (here.left < at.left || here.right > at.right || here.top < at.top || here.bottom > at.bottom) this.goTo(node);
    });
    // Browsers scroll even what is hidden to what has the focus.
    this.box.addEventListener("scroll", () => this.box.scrollTo(0, 0));
    this.box.addEventListener("dragstart", (event) => event.preventDefault());
    this.followPointers();
  }

  followPointers() {
    const down = new Map();
    let moved = 0;
    const middle = () => {
      const points = [...down.values()];
      return {
        x: points.reduce((sum, point) => sum + point.x, 0) / points.length,
        y: points.reduce((sum, point) => sum + point.y, 0) / points.length,
        apart: points.length > 1 ? Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y) : 0,
      };
    };
    this.box.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (!down.size) moved = 0;
      down.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    this.box.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      const before = middle();
      down.set(event.pointerId, { x: event.clientX, y: event.clientY });
      const after = middle();
      moved += Math.abs(after.x - before.x) + Math.abs(after.y - before.y) + Math.abs(after.apart - before.apart);
      if (moved < 5) return;
      this.box.setPointerCapture(event.pointerId);
      this.box.classList.add("held");
      this.show(this.scale, this.x + after.x - before.x, this.y + after.y - before.y);
      const at = this.box.getBoundingClientRect();
      if (before.apart && after.apart) this.zoom(after.apart / before.apart, after.x - at.left, after.y - at.top);
    });
    const up = (event) => {
      down.delete(event.pointerId);
      if (!down.size) this.box.classList.remove("held");
    };
    this.box.addEventListener("pointerup", up);
    this.box.addEventListener("pointercancel", up);
    this.box.addEventListener("click", (event) => {
      // The end of a drag opens nothing.
      if (moved >= 5) event.preventDefault();
      else this.open(event);
      moved = 0;
    });
  }

  async open(event) {
    const link = event.target.closest("a[href]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const address = new URL(link.href.baseVal, document.baseURI);
    try {
      const answer = await fetch(address, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(String(answer.status));
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.getElementById("node").replaceWith(page.getElementById("node"));
    } catch {
      window.location.assign(address);
      return;
    }
    this.view.querySelector("[aria-current]")?.removeAttribute("aria-current");
    link.setAttribute("aria-current", "true");
    history.replaceState(null, "", address);
    document.querySelector("#node h2").focus({ preventScroll: true });
    document.querySelector("#node").scrollIntoView({ block: "nearest" });
  }
}

// An SVG has no text-overflow.
function shorten(text) {
  const room = text.parentElement.width.baseVal.value;
  if (text.getComputedTextLength() <= room) return;
  // By characters, not halves of them.
  const whole = [...text.textContent.replace(/…$/, "")];
  let [fits, not] = [0, whole.length];
  while (not - fits > 1) {
    const half = (fits + not) >> 1;
    text.textContent = `${whole.slice(0, half).join("").trimEnd()}…`;
    [fits, not] = text.getComputedTextLength() <= room ? [half, not] : [fits, half];
  }
  text.textContent = `${whole.slice(0, fits).join("").trimEnd()}…`;
}

for (const root of document.querySelectorAll("[data-canvas]")) new Canvas(root);
