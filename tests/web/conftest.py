"""What the tests of the pages and the API start from."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser

from pgaudit_wf.dev.server import DevServer
from support.web_browser import Visit, Visits, chromium, serve
from support.web_world import World, make_world, mounted_app


@pytest.fixture
def world(
    server: DevServer, app_conn: psycopg.Connection[Any], secret: Callable[[], str]
) -> Iterator[World]:
    """A database that was worked with; it is searched for secrets at the end."""
    with make_world(server, app_conn) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def site(world: World) -> Iterator[str]:
    """Address of the pages, under a prefix as in a host's application."""
    with serve(mounted_app(world)) as address:
        yield f"{address}/audit"


@pytest.fixture
def visit(browser: Browser, site: str) -> Iterator[Visits]:
    """Open a browser as somebody, by name."""
    opened: list[Visit] = []

    def start(name: str | None, **options: object) -> Visit:
        opened.append(Visit(browser, site, name, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
