"""What the tests of the pages and the API start from."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgaudit_wf.dev.server import DevServer
from support.web_world import World, make_world


@pytest.fixture
def world(
    server: DevServer, app_conn: psycopg.Connection[Any], secret: Callable[[], str]
) -> Iterator[World]:
    """A database that was worked with; it is searched for secrets at the end."""
    with make_world(server, app_conn) as made:
        yield made
