"""Rows and parts of workflows to test with."""

from typing import Any

from support.server import Conn


def edge(source: str, target: str, **more: object) -> dict[str, Any]:
    return {"id": f"{source}-{target}", "source": source, "target": target, **more}


def add_users(conn: Conn, prefix: str, count: int) -> None:
    """Users of the reference application, in one statement."""
    conn.execute(
        "insert into app_user (id, email) select i, i || '@example.com'"
        " from (select %s || g as i from generate_series(1, %s) as g) as s",
        [prefix, count],
    )
