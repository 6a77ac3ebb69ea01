"""What the tests of triggers start from."""

from collections.abc import Iterator

import psycopg
import pytest

from support.server import Conn


@pytest.fixture
def db(db_dsn: str) -> Iterator[Conn]:
    """A database where attach() makes triggers of the given form."""
    with psycopg.connect(db_dsn, autocommit=True) as connection:
        yield connection
