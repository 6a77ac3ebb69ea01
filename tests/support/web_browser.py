"""The app behind a real HTTP server, in a thread, and a browser to visit it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.applications import Starlette

from support.needs import missing

CHROMIUM = Path("/usr/bin/chromium")
# Where to leave pictures for people to look at; without it none are made.
PICTURES = os.environ.get("PGAUDIT_WF_PICTURES")


@contextmanager
def serve(app: Starlette) -> Iterator[str]:
    """Serve an app on a loopback port; yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive(), "uvicorn did not start"
                assert time.monotonic() < deadline, "uvicorn takes too long"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser without a window."""
    if not CHROMIUM.exists():
        missing(f"there is no {CHROMIUM} (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-dev-shm-usage",
            ],
        )  # fmt: skip
        yield started
        started.close()


class Visit:
    """Somebody's browser; what it complains of fails the test."""

    def __init__(self, browser: Browser, site: str, name: str | None, **options: object) -> None:
        self._context = browser.new_context(base_url=site, **options)  # type: ignore[arg-type]
        self._context.set_default_timeout(20_000)
        if name:
            self._context.add_cookies([{"name": "test_user", "value": name, "url": site}])
        self.site = site
        self.page = self._context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type == "error"
                and not message.text.startswith("Failed to load resource")
                else None
            ),
        )

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.site}{path}")
        return self.page

    def look(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)

    def check(self) -> None:
        """Nothing serious for people who do not see or use no mouse, and no complaint."""
        found = Axe().run(self.page).response["violations"]
        serious = [
            (rule["id"], [node["html"][:200] for node in rule["nodes"]])
            for rule in found
            if rule["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert self.complaints == []

    def close(self) -> None:
        self._context.close()


Visits = Callable[..., Visit]
