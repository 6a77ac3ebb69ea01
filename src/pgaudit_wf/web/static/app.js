// Makes pages that work without it quicker to use: older entries come as one scrolls, new ones by
// themselves, and "3 minutes ago" stays true.
"use strict";

const UNITS = [["minute", 60, 60], ["hour", 3600, 24], ["day", 86400, 30], ["month", 2629746, 12], ["year", 31556952, 10000]];

function relative(moment) {
  const seconds = (Date.now() - moment) / 1000;
  if (seconds < 45) return "just now";
  for (const [name, size, limit] of UNITS) {
    const count = Math.max(Math.round(seconds / size), 1);
    if (count < limit) return `${count} ${name}${count === 1 ? "" : "s"} ago`;
  }
  return String(new Date(moment).getUTCFullYear());
}

function refreshTimes() {
  for (const time of document.querySelectorAll("time[data-relative]")) {
    const words = relative(Date.parse(time.dateTime));
    if (time.textContent !== words) time.textContent = words;
  }
}

async function fetchPage(address) {
  const answer = await fetch(address, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer;
}

// Our own server's pages, whose texts it has escaped; a parsed document runs no scripts.
const parse = (text) => new DOMParser().parseFromString(text, "text/html");

function scrollOn() {
  const list = document.getElementById("events");
  let busy = false;
  const load = async (link) => {
    if (busy) return;
    busy = true;
    link.textContent = "Loading…";
    try {
      const page = parse(await (await fetchPage(link.href)).text());
      list.append(...page.querySelectorAll("#events > li"));
      const next = page.getElementById("more");
      if (next) {
        link.href = next.href;
        link.textContent = next.textContent;
      } else {
        link.parentElement.remove();
      }
      refreshTimes();
    } catch {
      link.textContent = "That did not work; try again";
    }
    busy = false;
  };
  const more = document.getElementById("more");
  if (!list || !more) return;
  more.addEventListener("click", (event) => {
    event.preventDefault();
    load(more);
  });
  new IntersectionObserver((seen) => {
    if (seen.some((entry) => entry.isIntersecting)) load(more);
  }, { rootMargin: "300px" }).observe(more);
}

function followLive() {
  const line = document.querySelector("[data-live]");
  const list = document.getElementById("events");
  if (!line || !line.dataset.live || !list) return;
  const [status, button] = [line.querySelector("span"), line.querySelector("button")];
  let [address, paused, wait] = [line.dataset.live, false, 3000];
  line.hidden = false;
  const look = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetchPage(address);
        address = answer.headers.get("X-Live");
        const found = [...parse(`<ol>${await answer.text()}</ol>`).querySelectorAll("li.event")];
        const fresh = found.filter((item) => !document.getElementById(item.id));
        fresh.forEach((item) => item.classList.add("new"));
        list.prepend(...fresh);
        if (fresh.length) {
          document.querySelector("p.none")?.remove();
          status.textContent = `Live: ${fresh.length} new`;
        }
        wait = 3000;
      } catch {
        wait = Math.min(wait * 2, 60000);
        status.textContent = "Live, once the connection is back";
      }
    }
    setTimeout(look, wait);
  };
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume" : "Pause";
    status.textContent = paused ? "Paused" : "Live";
    line.classList.toggle("paused", paused);
  });
  setTimeout(look, wait);
}

refreshTimes();
setInterval(refreshTimes, 20000);
scrollOn();
followLive();
