"""`serve`: the pages on this machine, for one person."""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

from pgaudit_wf.cli.base import USAGE, Failure, add, check_conninfo
from pgaudit_wf.cli.base import connect as connect_once
from pgaudit_wf.cli.keys import authorities, verifier_keys
from pgaudit_wf.cli.options import DatabaseOption, KeysOption, TsaOption
from pgaudit_wf.cli.printing.output import console

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool
    from starlette.types import ASGIApp

    from pgaudit_wf.integrity.timestamp import Authority

COOKIE = "pgaudit_wf_visitor"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    add(app, serve)


def serve(
    org: Annotated[str, typer.Option("--org", help="Id of the organization to show.")],
    actor: Annotated[str, typer.Option("--as", help="Id of the member to show them as.")],
    database: DatabaseOption = "",
    write: Annotated[
        str,
        typer.Option(
            "--write",
            metavar="CONNINFO",
            envvar="PGAUDIT_WF_WRITE",
            show_default=False,
            help="A login that may update workflows; without it, versions cannot be restored.",
        ),
    ] = "",
    owner: Annotated[
        str,
        typer.Option(
            "--owner",
            metavar="CONNINFO",
            envvar="PGAUDIT_WF_OWNER",
            show_default=False,
            help="The schema's owner, for the Integrity page and for proofs.",
        ),
    ] = "",
    key: KeysOption = None,
    tsa: TsaOption = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 8765,
) -> None:
    """Serve the pages on this machine, at the address that is printed.

    The address contains a secret, which the first visit turns into a cookie; the database still
    decides what the actor may see. In your own application, mount pgaudit_wf.web.create_app()
    behind your own sign-in instead. Needs the package's extra "web"; the login of -d must be a
    member of pgaudit_wf_reader, or a superuser.

        pgaudit-wf serve --org o_acme --as u_ana
        pgaudit-wf serve --org o_acme --as u_ana --write postgresql://app@localhost/product
    """
    keys = verifier_keys(key) if key else []
    visit = Visitor(org, actor, database, write, owner, tuple(keys), tuple(authorities(tsa)))
    with running(visit, port) as (address, wait):
        console(stderr=True).print(
            f"Open {address}\nServing until Ctrl-C.", soft_wrap=True, highlight=False
        )
        wait()


@dataclass(frozen=True)
class Visitor:
    """The visitor; `reader` is the database, as a member of the reader role."""

    org: str
    actor: str
    reader: str
    write: str = ""
    owner: str = ""
    keys: tuple[Any, ...] = ()
    authorities: tuple[Authority, ...] = ()


@contextmanager
def running(visitor: Visitor, port: int = 0) -> Iterator[tuple[str, Any]]:
    """Serve the pages; yield the address with the secret, and a function that waits for Ctrl-C.

    Args:
        visitor: The visitor.
        port: On 127.0.0.1; 0 for any that is free.

    Raises:
        Failure: The extra is missing, the port is taken, or the actor may not read.
    """
    from psycopg_pool import ConnectionPool

    from pgaudit_wf.errors import MissingExtraError

    try:
        import uvicorn

        from pgaudit_wf.web import Principal, create_app
    except (ImportError, MissingExtraError) as error:
        raise Failure("the pages need more packages", 'pip install "pgaudit-wf[web]"') from error
    role, name = _role(visitor)
    _check_other_logins(visitor)
    principal = Principal(visitor.actor, visitor.org, role, name, auth_method="cli")
    with ExitStack() as stack:

        def pool(conninfo: str) -> ConnectionPool[Any]:
            made = ConnectionPool(
                check_conninfo(conninfo), min_size=1, max_size=4, open=False, name="pages",
                kwargs={"application_name": "pgaudit-wf serve"},
            )  # fmt: skip
            return stack.enter_context(made)

        secret = secrets.token_urlsafe(24)

        def visiting(request: Any) -> Principal | None:  # noqa: ANN401 - a Request
            given = request.cookies.get(COOKIE, "")
            return principal if hmac.compare_digest(given.encode(), secret.encode()) else None

        app = create_app(
            pool(visitor.reader),
            visiting,
            write_pool=pool(visitor.write) if visitor.write else None,
            integrity_pool=pool(visitor.owner) if visitor.owner else None,
            verify_keys=visitor.keys,
            authorities=visitor.authorities,
            open_health=True,
        )
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            # Listen at once, so that an early visitor waits instead of being refused.
            listener.listen()
        except OSError as error:
            raise Failure(
                f"port {port} cannot be had: {error.strerror}", "--port 0 takes a free one", USAGE
            ) from error
        config = uvicorn.Config(
            _SecretLinkGate(app, secret), log_level="warning", ws="none", lifespan="off",
            server_header=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield (
            f"{address}/?{urlencode({'enter': secret})}",
            lambda: server.run(sockets=[listener]),
        )


def _role(visitor: Visitor) -> tuple[str, str | None]:
    """Ask the database what the actor is in the organization, and is called.

    Raises:
        Failure: Nobody who may read, or the login may not ask.
    """
    import psycopg

    with connect_once(visitor.reader) as conn, conn.transaction():
        try:
            # As each page does it: a superuser or owner that may not become the reader fails later.
            conn.execute("set local role pgaudit_wf_reader")
        except psycopg.errors.InsufficientPrivilege as error:
            raise Failure(
                f"login {conn.info.user} may not read the trail: it is no member of"
                " pgaudit_wf_reader",
                f'as a superuser: grant pgaudit_wf_reader to "{conn.info.user}"',
            ) from error
        conn.execute(
            "select set_config('app.org_id', %s, true), set_config('app.actor_id', %s, true)",
            [visitor.org, visitor.actor],
        )
        try:
            row = conn.execute(
                "select coalesce(d.role, 'member'), d.name"
                " from (select pgaudit_wf._readable_history_org() as org) as o"
                " left join pgaudit_wf.describe_actors(%s, %s) as d on true"
                " where o.org is not null",
                [visitor.org, [visitor.actor]],
            ).fetchone()
        except psycopg.errors.InsufficientPrivilege as error:
            raise Failure(
                f"the directory of users and members cannot be read: {error.diag.message_primary}",
                "pgaudit-wf doctor says how to mend it",
            ) from error
    if row is None:
        raise _no_reader(visitor)
    return row[0], row[1]


def _no_reader(visitor: Visitor) -> Failure:
    from pgaudit_wf.trail.statement import one

    message = f"{visitor.actor} is neither an owner nor an admin of {visitor.org}"
    with connect_once(visitor.reader) as conn:
        (unset,) = one(conn, "select pgaudit_wf._unset_directories()")
    if "org_member" in unset:
        return Failure(
            f"{message}, as nobody is of any: the view pgaudit_wf.org_member is still empty",
            "as the schema's owner: select pgaudit_wf.use_directory('org_member', 'public.member',"
            """ '{"actor_id": "user_id"}')""",
        )
    return Failure(message, "pgaudit_wf.org_member says who is")


def _check_other_logins(visitor: Visitor) -> None:
    """Ask whether the logins to restore and to verify with may do that.

    Raises:
        Failure: One may not.
    """
    from pgaudit_wf.trail.statement import one

    if visitor.write:
        with connect_once(visitor.write) as conn:
            (login,) = one(conn, "select current_user")
        with connect_once(visitor.reader) as conn:
            for (problem,) in conn.execute("select pgaudit_wf._restore_problems(%s)", [login]):
                raise Failure(f"login {login} of --write cannot restore versions: {problem}")
    if visitor.owner:
        with connect_once(visitor.owner) as conn:
            owner, is_owner = one(
                conn,
                "select o.name, pg_has_role(current_user, o.name, 'usage')"
                " from pgaudit_wf._schema_owner() as o (name)",
            )
        if not is_owner:
            raise Failure(
                f"the login of --owner is neither {owner}, to whom the schema belongs, nor a"
                " member of it",
                "leave --owner out, and the pages go without Integrity and proofs",
            )


class _SecretLinkGate:
    """Admits requests with the secret: turns it into a cookie and removes it from the address."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        self._app = app
        self._secret = secret

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        from starlette.requests import Request
        from starlette.responses import RedirectResponse

        if scope["type"] == "http" and scope["path"] == "/":
            given = Request(scope).query_params.get("enter", "")
            if hmac.compare_digest(given.encode(), self._secret.encode()):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, self._secret, httponly=True, samesite="lax")
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)
