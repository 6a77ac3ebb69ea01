"""The ASGI middleware in Starlette, from request to database."""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

import httpx2
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from pgaudit_wf import RequestContext, bind, current_context, request_context
from pgaudit_wf.errors import InvalidContextError
from pgaudit_wf.integrations.asgi import AuditContextMiddleware, Principal, Who
from pgaudit_wf.integrations.http import TrustedProxies, correlation_id, header_text

afterwards: list[RequestContext] = []


def bound() -> dict[str, str]:
    return current_context().as_dict()


async def show(_request: Request) -> JSONResponse:
    task = BackgroundTask(lambda: afterwards.append(current_context()))
    return JSONResponse(bound(), background=task)


def show_in_thread(_request: Request) -> JSONResponse:
    return JSONResponse(bound())


async def show_own_id(_request: Request) -> JSONResponse:
    return JSONResponse({}, headers={"X-Request-ID": "mine"})


async def show_on_socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json(bound())
    await socket.close()


ROUTES = [
    Route("/", show),
    Route("/thread", show_in_thread),
    Route("/own-id", show_own_id),
    WebSocketRoute("/socket", show_on_socket),
]


def app(
    *outer: Middleware,
    principal: Principal | None = None,
    trusted_proxies: Iterable[str] = (),
    country_header: str | None = None,
) -> Starlette:
    own = Middleware(AuditContextMiddleware, principal, trusted_proxies, country_header)
    return Starlette(routes=ROUTES, middleware=[*outer, own])


def client(application: Starlette, host: str = "198.51.100.7") -> TestClient:
    return TestClient(application, client=(host, 50000), headers={"User-Agent": "agent"})


def test_a_request_is_bound_and_nothing_stays() -> None:
    response = client(app()).get("/", headers={"X-Request-ID": "r-1"})
    assert response.json() == {
        "ip": "198.51.100.7",
        "user_agent": "agent",
        "correlation_id": "r-1",
    }
    assert response.headers["x-request-id"] == "r-1"
    assert afterwards.pop().correlation_id == "r-1"
    assert current_context() == RequestContext()


@pytest.mark.parametrize("path", ["/", "/thread"])
@pytest.mark.parametrize("kind", ["dict", "context", "awaitable"])
def test_the_principal_goes_before_what_was_found(kind: str, path: str) -> None:
    async def ask(scope: Mapping[str, Any]) -> dict[str, str]:
        await asyncio.sleep(0)
        return {"actor_id": scope["path"], "user_agent": "known"}

    def principal(scope: Mapping[str, Any]) -> Who | Awaitable[Who]:
        if kind == "awaitable":
            return ask(scope)
        who = {"actor_id": scope["path"], "user_agent": "known"}
        return who if kind == "dict" else RequestContext().merge(**who)

    found = client(app(principal=principal)).get(path).json()
    assert found["actor_id"] == path
    assert found["user_agent"] == "known"
    assert found["ip"] == "198.51.100.7"


def test_starlettes_own_authentication_serves_as_principal() -> None:
    class Backend(AuthenticationBackend):
        async def authenticate(
            self, conn: HTTPConnection
        ) -> tuple[AuthCredentials, SimpleUser] | None:
            name = conn.headers.get("Authorization")
            return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None

    def principal(scope: Mapping[str, Any]) -> dict[str, str] | None:
        user = scope["user"]
        return {"actor_id": user.display_name} if user.is_authenticated else None

    application = app(Middleware(AuthenticationMiddleware, backend=Backend()), principal=principal)
    web = client(application)
    assert web.get("/", headers={"Authorization": "ada"}).json()["actor_id"] == "ada"
    assert "actor_id" not in web.get("/").json()


def test_a_principal_that_is_not_valid_fails_the_request() -> None:
    application = app(principal=lambda _: {"actor_id": "x" * 256})
    with pytest.raises(InvalidContextError, match="actor_id has 256 characters"):
        client(application).get("/")
    with pytest.raises(TypeError, match="unknown context field: user"):
        client(app(principal=lambda _: {"user": "ada"})).get("/")


def test_websockets_are_bound_too() -> None:
    with client(app()).websocket_connect("/socket", headers={"X-Request-ID": "s-1"}) as socket:
        assert socket.receive_json()["correlation_id"] == "s-1"
        assert (b"x-request-id", b"s-1") in (socket.extra_headers or [])


def test_an_id_that_the_application_answers_with_stays() -> None:
    assert client(app()).get("/own-id").headers.get_list("x-request-id") == ["mine"]


def test_lifespan_passes_through() -> None:
    with client(app()) as web:
        assert web.get("/").status_code == 200


PROXIES = ["10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], "198.51.100.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["1.2.3.4", "203.0.113.9,10.0.0.2"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.1", ['"[2001:db9::1]:4711"'], "2001:db9::1"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("2001:db8::1", ["fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["<script>"], "10.0.0.1"),
        (None, ["203.0.113.9"], None),
        ("testclient", ["203.0.113.9"], None),
    ],
)
def test_only_trusted_proxies_are_believed(
    peer: str | None, forwarded: list[str], expected: str | None
) -> None:
    assert TrustedProxies(PROXIES).client_ip(peer, forwarded) == expected


def test_a_unix_socket_can_be_trusted() -> None:
    assert TrustedProxies(["unix"]).client_ip(None, ["203.0.113.9"]) == "203.0.113.9"
    assert TrustedProxies(["unix"]).client_ip("10.0.0.1", ["203.0.113.9"]) == "10.0.0.1"


def test_trusted_proxies_have_to_be_networks() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        AuditContextMiddleware(app(), trusted_proxies=["proxy.internal"])
    with pytest.raises(ValueError, match="not one string"):
        AuditContextMiddleware(app(), trusted_proxies="10.0.0.0/8")


def test_headers_of_proxies_reach_the_context_from_proxies_only() -> None:
    application = app(trusted_proxies=PROXIES, country_header="CF-IPCountry")
    headers = [("X-Forwarded-For", "203.0.113.9"), ("CF-IPCountry", "AT")]
    trusted = client(application, "10.0.0.1").get("/", headers=headers).json()
    assert (trusted["ip"], trusted["country"]) == ("203.0.113.9", "AT")
    stranger = client(application).get("/", headers=headers).json()
    assert stranger["ip"] == "198.51.100.7"
    assert "country" not in stranger


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("request_id", "traceparent", "expected"),
    [
        ("r-1", f"00-{TRACE}-00f067aa0ba902b7-01", "r-1"),
        (None, f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        ("bad id\r\nSet-Cookie: x", f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        ("x" * 129, None, "[0-9a-f]{32}"),
        ("", None, "[0-9a-f]{32}"),
        (None, f"00-{'0' * 32}-00f067aa0ba902b7-01", "(?!0{32})[0-9a-f]{32}"),
        (None, "00-nonsense", "[0-9a-f]{32}"),
        ("r-1\n", None, "[0-9a-f]{32}"),
    ],
)
def test_a_correlation_id_is_taken_when_harmless_and_made_when_not(
    request_id: str | None, traceparent: str | None, expected: str
) -> None:
    assert re.fullmatch(expected, correlation_id(request_id, traceparent))


def test_header_text_never_makes_a_request_fail() -> None:
    assert header_text(None) is None
    assert RequestContext(user_agent=header_text("a\0b\ud800")).user_agent == "ab?"


def test_concurrent_requests_write_under_their_own_names(
    conn: psycopg.Connection[Any], dsn: str
) -> None:
    conn.execute("create table note (id int primary key, text text)")
    conn.execute("select pgaudit_wf.attach('note')")

    async def write(request: Request) -> JSONResponse:
        number = int(request.path_params["number"])
        async with await psycopg.AsyncConnection.connect(dsn) as own, request_context(own):
            await own.execute("insert into note values (%s, 'text')", [number])
            await asyncio.sleep(0.01)
        return JSONResponse({})

    application = Starlette(
        routes=[Route("/{number:int}", write)],
        middleware=[
            Middleware(
                AuditContextMiddleware, principal=lambda scope: {"actor_id": f"u{scope['path']}"}
            )
        ],
    )

    async def main() -> None:
        transport = httpx2.ASGITransport(application, client=("203.0.113.9", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as web:
            with bind(reason="outer"):
                await asyncio.gather(*(web.get(f"/{number}") for number in range(10)))

    asyncio.run(main())
    rows = conn.execute(
        "select actor_id, resource_id, host(ip), metadata ->> 'reason' "
        "from pgaudit_wf.security_audit_log where action !~ '^audit[.]' order by resource_id"
    ).fetchall()
    assert rows == [(f"u/{n}", f"{n}", "203.0.113.9", "outer") for n in range(10)]
