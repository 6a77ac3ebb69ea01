"""ASGI middleware for Starlette, FastAPI, Litestar, Quart and other ASGI frameworks."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

from pgaudit_wf.context.values import RequestContext, bind
from pgaudit_wf.integrations.http import TrustedProxies, correlation_id, header_text

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Who: TypeAlias = RequestContext | Mapping[str, Any] | None
Principal: TypeAlias = Callable[[Scope], Who | Awaitable[Who]]


class AuditContextMiddleware:
    """Binds a context for the time of each HTTP request and WebSocket connection.

    The context has the client's ip and user agent, a correlation id, and what `principal` says.
    The correlation id is the request's X-Request-ID, or else the trace id of its traceparent, or
    else a new one; the response carries it as X-Request-ID unless it has one already.

    Args:
        app: The application; add the middleware inside of what authenticates the request.
        principal: Called with the scope at the beginning of each request; returns who is asking, as
            a RequestContext or as a mapping of its fields, or nothing; or an awaitable of that.
            Its result takes precedence over what the middleware determined.
        trusted_proxies: Networks in CIDR notation whose X-Forwarded-For is believed; "unix" stands
            for a server that is reached through a Unix socket.
        country_header: A header in which a trusted proxy says what country the client is in.

    Raises:
        ValueError: A trusted proxy is not an address or network.
    """

    def __init__(
        self,
        app: App,
        principal: Principal | None = None,
        trusted_proxies: Iterable[str] = (),
        country_header: str | None = None,
    ) -> None:
        self._app = app
        self._principal = principal
        self._proxies = TrustedProxies(trusted_proxies)
        self._country_header = country_header and country_header.lower().encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        found = self._found(scope)
        answer = f"{found.correlation_id}".encode("latin-1")

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                headers = list(message.get("headers") or ())
                if all(name.lower() != b"x-request-id" for name, _ in headers):
                    message = {**message, "headers": [*headers, (b"x-request-id", answer)]}
            await send(message)

        who = await self._who(scope)
        with bind(found), bind(who):
            await self._app(scope, receive, send_with_id)

    async def _who(self, scope: Scope) -> RequestContext | None:
        if self._principal is None:
            return None
        who = self._principal(scope)
        if inspect.isawaitable(who):
            who = await who
        if who is None or isinstance(who, RequestContext):
            return who
        return RequestContext().merge(**who)

    def _found(self, scope: Scope) -> RequestContext:
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value.decode("latin-1"))

        def first(name: bytes) -> str | None:
            return headers.get(name, [None])[0]

        peer = (scope.get("client") or [None])[0]
        country = None
        if self._country_header and self._proxies.trusts_peer(peer):
            country = header_text(first(self._country_header))
        return RequestContext(
            ip=self._proxies.client_ip(peer, headers.get(b"x-forwarded-for", [])),
            country=country,
            user_agent=header_text(first(b"user-agent")),
            correlation_id=correlation_id(first(b"x-request-id"), first(b"traceparent")),
        )
