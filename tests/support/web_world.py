"""Two organizations with a history, and the app in front of them, for tests of pages and API."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from pgaudit_wf import record_event, request_context
from pgaudit_wf.dev.server import DevServer
from pgaudit_wf.integrity.note import VerifierKey
from pgaudit_wf.web import Principal, create_app
from pgaudit_wf.web.key_pages import RevokeKey

FLOW = "11111111-1111-4111-8111-111111111111"
OTHER_FLOW = "22222222-2222-4222-8222-222222222222"
SCRIPT = "<script>document.title='owned'</script>"
FORMULA = '=HYPERLINK("https://evil.example","click")'
SECRET = "never-to-be-logged-web"

PEOPLE = {
    "ana": Principal("u_ana", "o_acme", "owner", "Ana Ferreira", "Acme"),
    "bo": Principal("u_bo", "o_acme", "member", "Bo", "Acme"),
    "dan": Principal("u_dan", "o_acme", "admin", "Dan", "Acme"),
    "chidi": Principal("u_chidi", "o_globex", "owner", "Chidi", "Globex"),
    # Of whom the database knows nothing.
    "guest": Principal("u_guest", "o_acme", "guest", "Guest", "Acme"),
    # Of whom the host says more than the database knows.
    "liar": Principal("u_bo", "o_acme", "owner", "Bo", "Acme"),
}

ROWS = f"""
insert into organization (id, name) values ('o_acme', 'Acme'), ('o_globex', 'Globex');
insert into app_user (id, email, name, password_hash) values
    ('u_ana', 'ana@acme.example', 'Ana Ferreira', '{SECRET}-1'),
    ('u_bo', 'bo@acme.example', 'Bo', '{SECRET}-2'),
    ('u_dan', 'dan@acme.example', 'Dan', '{SECRET}-3'),
    ('u_chidi', 'chidi@globex.example', 'Chidi', '{SECRET}-4');
insert into member (org_id, user_id, role) values
    ('o_acme', 'u_ana', 'owner'), ('o_acme', 'u_bo', 'member'), ('o_acme', 'u_dan', 'admin'),
    ('o_globex', 'u_chidi', 'owner');
"""

NODES: list[dict[str, Any]] = [
    {
        "id": "mail",
        "type": "trigger",
        "position": {"x": 0, "y": 0},
        "data": {"label": "Mail", "config": {"triggerType": "Manual"}},
    },
    {
        "id": "ocr",
        "type": "action",
        "position": {"x": 0, "y": 160},
        "data": {
            "label": "OCR",
            "config": {"actionType": "HTTP Request", "endpoint": "https://a", "httpMethod": "GET"},
        },
    },
    {
        "id": "old",
        "type": "action",
        "position": {"x": 260, "y": 160},
        "data": {
            "label": "Old step",
            "config": {"actionType": "HTTP Request", "endpoint": "https://o", "httpMethod": "GET"},
        },
    },
]
EDGES: list[dict[str, Any]] = [
    {"id": "e1", "source": "mail", "target": "ocr"},
    {"id": "e2", "source": "mail", "target": "old"},
]


def edited() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    nodes = copy.deepcopy(NODES[:2])
    nodes[1]["data"]["label"] = "Reader"
    nodes[1]["data"]["config"]["endpoint"] = "https://b"
    nodes.append(
        {
            "id": "file",
            "type": "action",
            "position": {"x": 0, "y": 320},
            "data": {
                "label": SCRIPT,
                "config": {
                    "actionType": "HTTP Request",
                    "endpoint": "https://f",
                    "httpMethod": "GET",
                },
            },
        }
    )
    return nodes, [EDGES[0], {"id": "e3", "source": "ocr", "target": "file"}]


def person(name: str, request: str, **more: str) -> dict[str, Any]:
    who = PEOPLE[name]
    return {
        "actor_id": who.actor_id, "actor_label": who.actor_label, "org_id": who.org_id,
        "org_label": who.org_label, "auth_method": "session", "ip": "203.0.113.9",
        "country": "PT", "user_agent": "Firefox/145.0", "correlation_id": request,
    } | more  # fmt: skip


@dataclass
class World:
    """A database that was worked with, and logins for the app."""

    conn: psycopg.Connection[Any]
    reader_dsn: str
    writer_dsn: str
    undo_dsn: str
    owner_dsn: str
    run: str

    def rename(self, name: str, who: str = "ana") -> None:
        with request_context(self.conn, **person(who, "req_rename")):
            self.conn.execute("update workflow set name = %s where id = %s", [name, FLOW])


@contextmanager
def make_world(server: DevServer, conn: psycopg.Connection[Any]) -> Iterator[World]:
    conn.execute(ROWS.encode())
    with request_context(conn, **person("ana", "req_1")):
        conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges)"
            " values (%s, 'o_acme', 'Intake', %s, %s)",
            [FLOW, Jsonb(NODES), Jsonb(EDGES)],
        )
    with request_context(conn, **person("chidi", "req_2")):
        conn.execute(
            "insert into workflow (id, org_id, name, nodes, edges)"
            " values (%s, 'o_globex', 'Price watch', %s, %s)",
            [OTHER_FLOW, Jsonb(NODES), Jsonb(EDGES)],
        )
        _add_key(conn, "k_globex", "o_globex", "u_chidi", "kh_77be…")
    with request_context(conn, **person("ana", "req_3")):
        _add_key(conn, "k_ci", "o_acme", "u_ana", "kh_9f2a…")
        _add_key(conn, "k_formula", "o_acme", "u_ana", "kh_f0f0…", FORMULA)
    row = None
    with request_context(conn, **person("ana", "req_4", auth_method="api_key", api_key_id="k_ci")):
        nodes, edges = edited()
        conn.execute(
            "update workflow set nodes = %s, edges = %s where id = %s",
            [Jsonb(nodes), Jsonb(edges), FLOW],
        )
        row = conn.execute(
            "insert into workflow_execution (workflow_id, org_id) values (%s, 'o_acme')"
            " returning id::text",
            [FLOW],
        ).fetchone()
    with request_context(conn, **person("dan", "req_5", reason="the vendor changed")):
        conn.execute("update workflow set name = %s where id = %s", [SCRIPT, FLOW])
        conn.execute("update api_key set revoked_at = now() where id = 'k_ci'")
    with request_context(conn, **person("bo", "req_6", user_agent=FORMULA)):
        record_event(
            conn, "session.created", resource_type="session", outcome="denied",
            metadata={"why": "wrong password"},
        )  # fmt: skip
    database = conn.info.dbname
    logins = {"reader": f"web_reader_{database}", "writer": f"web_writer_{database}"}
    logins["undo"] = f"web_undo_{database}"
    conn.execute(
        sql.SQL(
            "create role {r} login in role pgaudit_wf_reader;"
            "create role {w} login in role pgaudit_wf_app;"
            "grant usage on schema public to {w};"
            "grant select, insert, update on workflow to {w};"
            "grant select on workflow_execution to pgaudit_wf_reader;"
            "create role {u} login in role pgaudit_wf_reader;"
            "grant usage on schema public to {u};"
            "grant select, insert, update, delete on api_key, workflow to {u}"
        ).format(**{name[0]: sql.Identifier(login) for name, login in logins.items()})
    )
    assert row is not None
    try:
        yield World(
            conn,
            server.dsn(database, logins["reader"]),
            server.dsn(database, logins["writer"]),
            server.dsn(database, logins["undo"]),
            server.dsn(database),
            row[0],
        )
    finally:
        for login in logins.values():
            conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(login)))


def _add_key(
    conn: psycopg.Connection[Any], key: str, org: str, user: str, prefix: str, name: str = "CI"
) -> None:
    conn.execute(
        "insert into api_key (id, org_id, user_id, name, key_prefix, key_hash)"
        " values (%s, %s, %s, %s, %s, %s)",
        [key, org, user, name, prefix, f"{SECRET}-{key}"],
    )


def whoever_asks(request: Request) -> Principal | None:
    """What a host would do: here the name stands in a header or a cookie."""
    name = request.headers.get("x-test-user") or request.cookies.get("test_user")
    return PEOPLE.get(name or "")


def sync_app(
    world: World, *, writable: bool = True, timeout: float = 15, open_health: bool = False
) -> Starlette:
    """The app by itself, on pools of connections that block."""
    pool = ConnectionPool(world.reader_dsn, min_size=1, max_size=4, open=False)
    write_pool = ConnectionPool(world.writer_dsn, min_size=1, max_size=2, open=False)
    undo_pool = ConnectionPool(world.undo_dsn, min_size=0, max_size=2, open=False)
    app = create_app(
        pool,
        whoever_asks,
        write_pool=write_pool if writable else None,
        undo_pool=undo_pool if writable else None,
        timeout=timeout,
        open_health=open_health,
    )

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        with pool, write_pool, undo_pool:
            yield

    return Starlette(routes=[Mount("/", app)], lifespan=lifespan)


def mounted_app(
    world: World,
    prefix: str = "/audit",
    *,
    verify_keys: tuple[VerifierKey, ...] | None = None,
    undo_dsn: str | None = None,
    revoke_key: RevokeKey | None = None,
) -> Starlette:
    """The app under a prefix of a host that is async throughout.

    Args:
        world: The database.
        prefix: Where it is mounted.
        verify_keys: Show the sealed log, with these keys; None: show none.
        undo_dsn: The login that undoes changes, if not the one made for it.
        revoke_key: Revokes API keys.
    """
    pool = AsyncConnectionPool(world.reader_dsn, min_size=1, max_size=4, open=False)
    write_pool = AsyncConnectionPool(world.writer_dsn, min_size=1, max_size=2, open=False)
    undo_pool = AsyncConnectionPool(undo_dsn or world.undo_dsn, min_size=0, max_size=2, open=False)
    owner_pool = ConnectionPool(world.owner_dsn, min_size=1, max_size=2, open=False)

    async def whoever(request: Request) -> Principal | None:
        return whoever_asks(request)

    app = create_app(
        pool,
        whoever,
        write_pool=write_pool,
        undo_pool=undo_pool,
        integrity_pool=None if verify_keys is None else owner_pool,
        verify_keys=verify_keys or (),
        revoke_key=revoke_key,
    )

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        with owner_pool:
            async with pool, write_pool, undo_pool:
                yield

    return Starlette(routes=[Mount(prefix, app)], lifespan=lifespan)
